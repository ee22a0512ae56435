"""Peers: invite, join, list, rename, confirm, recognise, block, remove."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le, MaxLen

from xsc.api.endpoint import Endpoint, Key, Model, NamedPeer, Nothing, listing, named, post
from xsc.base.grade import Grade
from xsc.base.limits import PPM

INVITATION_TTL_MS = 24 * 3_600_000
INVITATION_TTL_MS_MIN = 1_000
INVITATION_TTL_MS_MAX = 30 * 86_400_000


class Spent(Model):
    """What a peer had this node do within the last minute by calls of one method."""

    method: str
    """Empty of calls that this node does not know."""
    units: int
    """What it was charged, by a table: a unit is about a microsecond of a processor."""
    processor_us: int
    """What was measured, in threads and jails as well."""


class Found(Model):
    """What probes and challenges come to."""

    state: str
    grade: Grade
    """How it is judged."""
    availability_ppm: int
    response_ms: int
    outcome: str | None
    """Of the last challenge, the worst where there are several; null before the first."""
    unproven_micro: int
    """What this node pays it for bytes once it proves that it holds them."""
    owed_unproven_micro: int
    """What it pays this node once this one proves what it holds."""


class Probed(Found, NamedPeer):
    """What probes and challenges say of one peer."""

    last_seen_ms: int | None
    challenged_ms: int | None
    """When that was."""
    proven_ms: int | None
    """The last time at which it had proven all that it was challenged for; null: not yet."""
    unproven_since_ms: int | None
    """Since when it has not; null where all is decided."""
    owed_unproven_since_ms: int | None


class Peer(Probed):
    """One peer."""

    addresses: list[str]
    reaches_us: bool | None
    """Whether the peer says that it reaches this node; null before it has said anything."""
    clock_refused: bool
    """Whether it refused the last probe because the clocks are too far apart."""
    introducer: Key | None
    """Who introduced it; null of a peer that an invitation made known."""
    introducer_name: str | None = named("introducer")
    hops: int
    """Introductions between the two nodes."""
    confirmed: bool
    """Whether the operator answers for an introduced peer as for an invited one."""
    recognised_ppm: int
    recognises_ppm: int
    tier: str
    balance_micro: int
    limit_micro: int
    shared_through: str | None
    """The introducer with whose other peers it shares that limit."""
    spent: list[Spent]
    units_left: int
    """Of its share of this node, now; less than nothing is owed."""
    synced_bytes_left: int
    """The same, of what is written for it and synced, and not paid."""


class RecognisedPeer(NamedPeer):
    """A peer, and how much this node recognises it."""

    weight_ppm: int


class Forgotten(Model):
    """A peer that is none any more, and how this node called it."""

    id: Key
    name: str


class Invitation(Model):
    """An invitation, good for one peer."""

    invitation: str
    expires_ms: int


class Invite(Model):
    """How long an invitation is good."""

    ttl_ms: Annotated[int, Ge(INVITATION_TTL_MS_MIN), Le(INVITATION_TTL_MS_MAX)] = INVITATION_TTL_MS


class Join(Model):
    """An invitation, and how its node is called here."""

    invitation: Annotated[str, MaxLen(16_384)]
    name: Annotated[str, MaxLen(64)] | None = None


class Who(Model):
    """A peer, by its name, its id or the beginning of it."""

    who: str


class Rename(Who):
    """How a peer is called here from now on."""

    name: Annotated[str, MaxLen(64)]


class Recognise(Who):
    """How much this node recognises a peer."""

    weight_ppm: Annotated[int, Ge(0), Le(PPM)]


LIST = listing("/v1/peers", Nothing, Peer, "List all known peers.")
JOIN = post("/v1/peers", Join, NamedPeer, "Accept another node's invitation.", status=201)
INVITE = post("/v1/peers/invitations", Invite, Invitation, "Make an invitation.", status=201)
RECOGNISE = post("/v1/peers/{who}/recognise", Recognise, RecognisedPeer, "Weigh a peer.")
RENAME = post("/v1/peers/{who}/rename", Rename, NamedPeer, "Name a peer.")
CONFIRM = post("/v1/peers/{who}/confirm", Who, NamedPeer, "Answer for a peer.")
BLOCK = post("/v1/peers/{who}/block", Who, NamedPeer, "Refuse a peer everything.")
REMOVE = Endpoint("DELETE", "/v1/peers/{who}", Who, Forgotten, "Forget a peer.")
