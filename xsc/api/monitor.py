"""What a node measures of itself: counts and levels of one moment."""

from __future__ import annotations

from typing import Literal

from xsc.api.endpoint import Endpoint, Model, Nothing, OfPeer, get
from xsc.api.market import Kind
from xsc.api.status import Status


class Margin(Model):
    """How many own objects have a margin."""

    margin: int
    """Hosts that answer, less the shards that are needed."""
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


class PeerMeasures(OfPeer):
    """What this node knows of a peer."""

    state: str
    up: bool
    availability_ppm: int
    response_ms: int
    probes: int
    misses: int
    balance_micro: int
    """Positive where the peer owes."""
    limit_micro: int
    """What it may owe."""
    own_limit_micro: int | None
    """What this node may owe it, as it said last; null before it has."""
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
    queue_delay_ms: int
    """How long a job that comes now waits for a worker, as jobs took of late."""
    loop_delay_ms: int
    """By how much the event loop was late at most, within the last ten seconds."""


MEASURES = get("/v1/measures", Nothing, Measures, "Say what the node measures of itself.")
METRICS: Endpoint[Nothing, str] = Endpoint(
    "GET", "/metrics", Nothing, str, "Say the same as metrics of Prometheus.", gives="text"
)
