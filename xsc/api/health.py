"""Health: what hosts prove of what they hold, and how peers are judged."""

from __future__ import annotations

from xsc.api.endpoint import Endpoint, Key, Model, NamedPeer, Nothing, get, named, post
from xsc.api.peers import Who
from xsc.base.grade import Dimension, Grade


class Challenge(Model):
    """Whom to challenge: a peer, by its name, its id or the beginning of it; null for all."""

    who: str | None = None


class Challenged(NamedPeer):
    """What a challenge came to."""

    customer: Key
    """Whose data it was about."""
    customer_name: str = named("customer")
    outcome: str
    """ok, bad_proof, missing, timeout, unreachable or prober_void."""
    reason: str
    """Why it is not "ok"; else empty."""


class Observed(Model):
    """What was observed of a node in one dimension."""

    dimension: Dimension
    good_ppm: int
    """Hours that were good, in ppm of one, as they count now: they decay."""
    bad_ppm: int
    rank_ppm: int
    """The bound by which nodes are ranked, as if each had begun with some good hours."""
    upper_ppm: int
    """The share that is good at most, by which they are judged."""


class Event(Model):
    """Why a score changed."""

    at_ms: int
    before: Grade
    after: Grade
    dimension: Dimension | None
    cause: str
    evidence: Key | None
    """The hash of a signed record that shows it; null where only the judge saw it."""


class Judgement(NamedPeer):
    """How one node judges another: who is judged, or who judges this node."""

    grade: Grade
    next_step: str
    """What it takes to another grade."""
    until_ms: int | None
    """When a bad grade is over if nothing more is found."""
    observed: list[Observed]
    events: list[Event]
    """The last ones, the oldest first."""


class Report(NamedPeer):
    """A peer whose observations count."""

    recognition_ppm: int
    """Mutual recognition, by which they are weighed."""


class Why(Judgement):
    """How this node judges a peer, and what it is worth in the market."""

    quality_ppm: int
    """What its price is divided by."""
    reports: list[Report]
    """Whose observations count in that, and in nothing else."""


class Unheard(NamedPeer):
    """A peer that does not say how it judges this node."""

    reason: str


class OfMe(Model):
    """How others judge this node, by their own account."""

    peers: list[Judgement]
    unheard: list[Unheard]


WHY = get("/v1/health/why", Who, Why, "Say how a peer is judged, and why.")
ME = get("/v1/health/me", Nothing, OfMe, "Ask the peers how they judge this node.")
LIFT = post("/v1/health/lift", Who, Why, "Hold nothing against a peer that was found until now.")
CHALLENGE = Endpoint(
    "POST",
    "/v1/health/challenge",
    Challenge,
    Challenged,
    "Have hosts prove what they hold, now.",
    rows="challenged",
)
