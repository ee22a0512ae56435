"""What a node measures of itself: counts and levels of one moment."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le

from xsc.api.endpoint import Endpoint, Key, Model, Nothing, OfPeer, get, listing, named, post
from xsc.api.market import Kind
from xsc.api.peers import Found
from xsc.api.status import Status

POINTS_MAX = 2_000


class Margin(Model):
    """How many own objects have a margin."""

    margin: int
    """Shards at hosts that answer, less those that are needed."""
    objects: int


class KindMeasures(Model):
    """Storage in bytes, or compute in fuel a second, over all own slots and needs."""

    kind: Kind
    offered: int
    granted: int
    """Of what is offered, to needs of others."""
    drawn: int
    """Of that, by leases."""
    needed: int
    received: int
    """Of what is needed, from slots of others."""
    reserve_micro: int
    """The least price of an own slot, a GiB and hour or a Gfuel; 0 without one."""
    price_max_micro: int
    """The most that this node pays where a need says nothing."""


class LeaseMeasures(Model):
    """Leases of one kind, that this node gave or took."""

    role: Literal["customer", "provider"]
    kind: Kind
    leases: int
    """Leases that are open."""
    leased_bytes: int
    """Bytes that are held under open leases."""
    lease_price_micro: int
    """Mean price of open leases, weighed by what is held, in micro-credits; 0 without any."""


class PeerMeasures(Found, OfPeer):
    """What this node knows of a peer."""

    up: bool
    grade_level: int
    """Its grade as a number: 0 new, 1 vetted, 2 watch, 3 suspended, 4 barred."""
    quality_ppm: int
    """What its price is divided by."""
    balance_micro: int
    """Positive where the peer owes."""
    limit_micro: int
    """What it may owe."""
    own_limit_micro: int | None
    """What this node may owe it, as it said last; null before it has."""
    proven_age_ms: int | None
    """Since it had proven all that it was challenged for; null before it has."""
    head_age_ms: int | None
    """Since the date of its newest head in the space that came here; null without any."""


class EventMeasures(Model):
    """Lines of the log of one name, since the start, and sums of their fields."""

    event: str
    lines: int
    size_bytes: int = 0
    fuel: int = 0
    amount_micro: int = 0
    duration_ms: int = 0


class Measures(Model):
    """What a node measures of itself."""

    at_ms: int
    status: Status
    margins: list[Margin]
    kinds: list[KindMeasures]
    leases: list[LeaseMeasures]
    peers: list[PeerMeasures]
    events: list[EventMeasures]
    proofs: int
    """Records kept here that prove a peer wrong: forks of ledgers, false clearings,
    contradictory receipts."""
    queue_delay_ms: int
    """How long a job that comes now waits for a worker, as jobs took of late."""
    loop_delay_ms: int
    """By how much the event loop was late at most, within the last ten seconds."""


class Alert(Model):
    """A condition that needs the operator."""

    id: str
    kind: str
    peer: Key | None
    """Whom it is about."""
    name: str | None = named("peer")
    says: str
    since_ms: int
    over_ms: int | None
    """When it was over; null while it is not."""
    told: int
    """How many targets of `notify` have heard of it."""


class Acknowledge(Model):
    """One alert by its id, or all."""

    id: str | None = None


class Acknowledged(Model):
    """How many alerts are not shown any more."""

    alerts: int


class Told(Model):
    """What came of a test alert at a target of `notify`."""

    target: str
    """The program or the host, without what may be secret."""
    taken: bool
    reason: str
    """Why it was not taken; empty if it was."""


class Tested(Model):
    """What came of a test alert."""

    targets: list[Told]


class LogLine(Model):
    """A line of the log."""

    at_ms: int
    level: str
    """info, warning or error."""
    event: str
    says: str
    """The event and its fields, in words."""


class Work(Model):
    """Long work that was asked for, and how far it is."""

    id: str
    """As the request named it."""
    done_bytes: int
    total_bytes: int


class PeerSample(Model):
    """What a sample says of a peer."""

    peer: Key
    """The beginning of its id where it is no peer any more."""
    name: str = named("peer")
    balance_micro: int
    availability_ppm: int


class Sample(Model):
    """What people plot, at one moment."""

    at_ms: int
    used_bytes: int
    granted_bytes: int
    margin: int | None
    """The least of any own object; null without any."""
    price_micro: int
    """What a GiB and hour costs this node, in the mean of its leases; 0 without any."""
    peers: list[PeerSample]


class Within(Model):
    """The samples of the last so long, thinned out evenly to so many."""

    within_ms: Annotated[int, Ge(1), Le(2**53)] = 30 * 86_400_000
    points: Annotated[int, Ge(1), Le(POINTS_MAX)] = 500


MEASURES = get("/v1/measures", Nothing, Measures, "Say what the node measures of itself.")
METRICS: Endpoint[Nothing, str] = Endpoint(
    "GET", "/metrics", Nothing, str, "Say the same as metrics of Prometheus.", gives="text"
)
ALERTS = listing("/v1/alerts", Nothing, Alert, "List what needs the operator.")
ACKNOWLEDGE = post("/v1/alerts/acknowledge", Acknowledge, Acknowledged, "Show alerts no longer.")
TEST = post("/v1/alerts/test", Nothing, Tested, "Send a test alert to each target of notify.")
LOG = listing("/v1/log", Nothing, LogLine, "Show the last lines of the log.", rows="lines")
WORK = listing("/v1/work", Nothing, Work, "Say how far work is that a request named.")
HISTORY = listing(
    "/v1/history", Within, Sample, "Show what was measured every minute.", rows="samples"
)
