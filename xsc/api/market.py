"""The market and the allocation: slots and needs, quotes, leases, clearings, what was granted."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le

from xsc.api.endpoint import (
    Endpoint,
    Id,
    Key,
    Model,
    Nothing,
    OfNode,
    OfPeer,
    get,
    listing,
    named,
    post,
)
from xsc.base.limits import FUEL_MAX, MEMORY_BYTES_DEFAULT, MEMORY_BYTES_MAX

MONTH_MS = 30 * 24 * 3_600_000

Moment = Annotated[int, Ge(0), Le(2**63 - 1)]
Kind = Literal["storage", "compute"]
Role = Literal["offer", "need"]
Unit = Literal["bytes", "fuel_per_s"]
Window = tuple[int, int]
"""From a moment to another one, which is not part of it."""


class Statement(Model):
    """What changes of a slot or need; null is left as it is."""

    quantity: int | None = None
    """Bytes, or fuel a second. An offer rounds down to steps of 64 MiB or 10 Mfuel/s, a need up."""
    unit: Unit | None = None
    """Of the quantity; null is that of the kind, and the other one is refused."""
    workers: int | None = None
    """In place of the quantity of compute: so many workers of this node."""
    from_ms: Moment | None = None
    to_ms: Moment | None = None
    every: str | None = None
    """A recurrence such as `Mon-Fri 20:00-08:00 Europe/Berlin`."""
    price_micro: int | None = None
    """Micro-credits a GiB and hour, or a Gfuel: the reserve, or the most that a need pays."""
    filters: dict[str, str] | None = None
    location: str | None = None
    rule: Literal["weighted-uniform", "proportional"] | None = None
    spread: int | None = None
    """Over how many providers a need of storage goes, none with more than its share; a new one as
    many as an object needs."""


class Declare(Statement):
    """A slot or need that is made."""

    role: Role
    kind: Kind
    standing: bool = False
    """An offer of everything, as it is made by default: nothing else is stated."""


class Edit(Statement):
    """An own slot or need, and what changes of it."""

    id: str


class Priced(OfNode):
    """What a node asks or pays for a kind."""

    kind: Kind
    unit: Unit
    price_micro: int
    """The price or reserve, or the most that a need pays."""


class Slot(Priced):
    """One slot or need."""

    id: Key
    role: Role
    origin: Literal["default", "stated"]
    """Whether its node keeps it at what it has, asks and stores, or somebody stated it."""
    quantity: int
    granted: int | None
    """Of the quantity, what is granted now; null where that is not known here."""
    used: int | None
    """Of what is granted, what is drawn; null where that is not known here."""
    price_unit: Literal["GiB_hour", "Gfuel"]
    """What micro-credits are for: a GiB and hour, or a Gfuel."""
    parts: dict[Key, int]
    """Of a need, what of its quantity is of one provider alone, by node."""
    windows: tuple[Window, ...]
    """A need without any is there until it is withdrawn, and so is a window without an end."""


class Declared(Id):
    """A slot or need that was made or changed, and what all of it comes to."""

    day_micro: int
    month_micro: int
    """In 30 days."""
    object_bytes: int | None
    """Of a need of storage: what objects fit in it with the default code; null of all else."""
    spread: int | None
    """Over how many providers that goes."""
    warnings: list[str]
    """What may keep it from being met, a sentence each."""


class Estimate(Model):
    """What would be bought: bytes kept for a time, fuel, or both."""

    size_bytes: Annotated[int, Ge(0), Le(2**60)] = 0
    duration_ms: Annotated[int, Ge(1), Le(2**53)] = MONTH_MS
    code: str | None = None
    """`K,M`; that of a put that names none by default."""
    fuel: Annotated[int, Ge(0), Le(FUEL_MAX)] = 0
    memory_bytes: Annotated[int, Ge(1), Le(MEMORY_BYTES_MAX)] = MEMORY_BYTES_DEFAULT


class Cost(Model):
    """What that costs at the prices quoted now."""

    coded_bytes: int
    """The bytes with their parity shards."""
    code: str
    hours: int
    """Rounded up: storage is billed by the millisecond."""
    storage_price_micro: int
    """A GiB and hour, of the dearest of as many hosts as the code has shards; 0 for no bytes."""
    storage_micro: int
    compute_price_micro: int
    """A Gfuel, of the cheapest provider; 0 for no fuel."""
    compute_micro: int
    total_micro: int


class Quote(Priced):
    """What one peer asks."""

    tier: str
    price_mutual_micro: int
    price_one_way_micro: int
    reserve_micro: int
    slot: Key
    available: int
    """What of the slot nothing is granted of: bytes, or fuel a second."""


class Lease(OfPeer):
    """One lease."""

    lease_id: Key
    role: Literal["customer", "provider"]
    slot: Key
    need: Key | None
    """Of a cleared lease, the need that it serves."""
    clearing: Key | None
    """The record that granted it, for `xsc market clearing` at its provider."""
    origin: Literal["cleared", "now"]
    tier: str
    kind: str
    state: str
    quantity: int
    """What is kept free: bytes, or fuel steps a second; 0 for now."""
    held: int
    """Bytes that are stored."""
    used: int
    """Fuel steps that ran; under a cleared rate, those whose time is to come."""
    price_micro: int
    billed_micro: int
    settled_micro: int
    start_ms: int
    end_ms: int


class LeaseId(Id):
    """A lease by the beginning of its id: the lease, or its denial."""

    denial: bool = False


class AccountId(Id):
    """What is between this node and a provider: the newest voucher, or the count that it pays."""

    count: bool = False


class Stage(Model):
    """What a stage of a clearing gives."""

    tier: str
    quantity: int
    price: int


class Explained(OfNode):
    """Why one need came out at one slot as it did."""

    clearing: Key | None
    provider: Key
    provider_name: str = named("provider")
    slot: Key
    window: Window | None
    kind: str
    need: Key
    tier: str
    weight: int | None
    eligible: int | None
    granted: int | None
    stages: list[Stage]
    price: int | None
    because: str
    changes: list[str]


class PassedOver(Model):
    """A provider, or a lease there, that was not used."""

    node: Key
    lease_id: Key | None
    """Null: no lease there in particular."""
    reason: str


class Explanation(Model):
    """Why needs came out as they did, whether there is more, and what was passed over of late."""

    why: list[Explained]
    more: bool
    passed_over: list[PassedOver]


class Clearing(Model):
    """One clearing of an own slot."""

    id: Key
    slot: Key
    kind: str
    at_ms: int
    rule: str


class Tier(Model):
    """What one tier of a slot has to give, and gives."""

    tier: str
    capacity: int
    given: int
    denominator: int | float


class Pinned(OfNode):
    """What a need has drawn that is granted no more."""

    need: Key
    quantity: int


class Allocation(Pinned):
    """What one need has of a slot."""

    tier: str
    price: int
    """What is charged: of two stages the mean."""
    drawn: int
    granted_ms: int
    until_ms: int


class OfSlot(OfNode):
    """A window of a slot."""

    slot: Key
    kind: str
    window: Window


class Show(Model):
    """How much of what other nodes cleared is shown; all of it without a number."""

    slots: Annotated[int, Ge(0), Le(2**31)] | None = None
    """At most so many slots of others, of each in its turn."""
    lines: Annotated[int, Ge(0), Le(2**31)] | None = None
    """At most so many allocations of each of them."""


class Cleared(OfSlot):
    """A window of a slot, and what it gives."""

    rule: str
    clearing: Key
    capacity: int
    tiers: list[Tier]
    allocations: list[Allocation]
    more: int
    """How many allocations are not shown."""
    pinned: list[Pinned]


class Shown(Model):
    """What was cleared, here and by nodes that are followed."""

    slots: list[Cleared]
    more: int
    """How many slots are not shown."""
    converged: bool
    network_converged: bool
    damping_factor_ppm: int
    damping_history: list[tuple[int, int]]
    mr_values: dict[Key, int]
    recipient_totals: dict[Key, dict[Kind, int]]
    """By node and kind: bytes, or fuel a second."""
    program_fault: str


class Groups(Model):
    """The eleven groups of nodes, and the names of all in them."""

    groups: dict[str, list[Key]]
    names: dict[Key, str]


class Stamped(OfNode):
    """A commitment that is known here, and whether it is of the cut."""

    sequence: int
    written_ms: int
    offers: int
    needs: int
    consistent: bool
    unheard: list[Key]
    """Nodes of whom its author had heard something that has not been heard of here."""


class Entitled(OfSlot):
    """What one own need has at one slot."""

    need: Key
    tier: str | None = None
    quantity: int = 0
    drawn: int
    price: int
    granted_ms: int | None = None
    until_ms: int
    clearing: Key | None = None


class Entitlements(Model):
    """What own needs have, and in all by need."""

    allocations: list[Entitled]
    totals: dict[Key, int]


SLOTS = listing("/v1/market/slots", Nothing, Slot, "List offers and needs.")
DECLARE = post("/v1/market/slots", Declare, Declared, "Make an offer or a need.")
EDIT = Endpoint("PUT", "/v1/market/slots/{id}", Edit, Declared, "Change an own offer or need.")
WITHDRAW = Endpoint("DELETE", "/v1/market/slots/{id}", Id, Id, "Withdraw one.")
QUOTES = listing("/v1/market/quotes", Nothing, Quote, "Ask all peers for their prices.")
ESTIMATE = get("/v1/market/estimate", Estimate, Cost, "Say what storage or fuel would cost.")
LEASES = listing("/v1/market/leases", Nothing, Lease, "List leases in both roles.")
LEASE = get("/v1/market/leases/{id}", LeaseId, bytes, "Return a signed lease.", gives="cbor")
ACCOUNT = get("/v1/market/accounts/{id}", AccountId, bytes, "Return a voucher.", gives="cbor")
CLEARINGS = listing("/v1/market/clearings", Nothing, Clearing, "List own clearings.")
CLEARING = get("/v1/market/clearings/{id}", Id, bytes, "Return a clearing record.", gives="cbor")
SHOW = get("/v1/allocation", Show, Shown, "Show what was cleared.")
GROUPS = get("/v1/allocation/groups", Nothing, Groups, "List the groups of nodes.")
CONSISTENT = listing(
    "/v1/allocation/consistent", Nothing, Stamped, "Say what is of one cut.", rows="commitments"
)
EXPECTED = get("/v1/allocation/expected", Nothing, Entitlements, "Show what own needs are granted.")
RECEIVED = get("/v1/allocation/received", Nothing, Entitlements, "Show what was drawn of it.")
WHY = get("/v1/allocation/why/{id}", Id, Explanation, "Explain an outcome, or a node's.")
