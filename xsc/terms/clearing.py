"""What a provider publishes of its clearings (docs/design/allocation.md, P1 to P5).

A `ClearingRecord` names by hash what was published and one clearing followed from, and says what
only the provider can: capacity, what credit and shares left of each need. A `ClearingProof` packs
it with the values that it names, so anybody computes what it comes to. A `TwoTierAllocationState`
says what all present clearings of a node came to; it is the value at `allocation/state`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, ClassVar, Self, TypeAlias

from pydantic import Field, model_validator

from xsc.base import encoding, limits
from xsc.identity.envelope import Count, Id32, Record
from xsc.terms.quote import Kind, SlotId, Tier
from xsc.terms.slot import AvailabilitySlot, DivisionRule, Steps, check_rising

Named: TypeAlias = tuple[Id32, Id32, Id32 | None]
"""A node, and how its commitment and its recognition are named (`SpaceValue.name`); None where it
recognises nobody."""


class SpaceValue(Record):
    """A value of a space with the record that signs it; whoever reads it checks both."""

    record: Annotated[bytes, Field(max_length=limits.SPACE_EVIDENCE_BYTES_MAX)]
    value: Annotated[bytes, Field(max_length=limits.CLEARING_BYTES_MAX)]

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Return the value that a provider keeps of what its clearings name.

        Raises:
            TooLarge, RecordInvalid: it is none.
        """
        most = limits.COMMITMENT_BYTES_MAX + limits.SPACE_EVIDENCE_BYTES_MAX + limits.KIB
        return cls.from_bytes(raw, size_max=most)

    @property
    def name(self) -> bytes:
        """The hash by which clearings name it: of the record, which has the hash of the value."""
        return encoding.tagged_sha256("clearing/named", self.record)


class ClearingRecord(Record):
    """Signed by the provider: what the division of one of its slots then followed from."""

    KIND: ClassVar[str] = "clearing"

    provider: Named
    slot: AvailabilitySlot
    at_ms: Count
    """Within the window of the slot that is divided."""
    capacity: Count
    """What is divided: the slot's quantity without what is pinned, at most; the provider's word."""
    participants: Annotated[tuple[Named, ...], Field(max_length=limits.ALLOCATIONS_MAX)]
    """The customers, by rising ids."""
    eligible: Annotated[
        tuple[tuple[Id32, SlotId, Steps], ...], Field(max_length=limits.ALLOCATIONS_MAX)
    ]
    """By rising customer and need the units that credit and shares leave: the provider's word."""
    left_out: Annotated[tuple[Id32, ...], Field(max_length=limits.PEERS_MAX)]
    """By rising ids: customers with matching needs for whom it had no room; the provider's word."""

    @model_validator(mode="after")
    def _is_well_formed(self) -> Self:
        if self.slot.window_at(self.at_ms) is None:
            raise ValueError("the slot has no window at that time")
        if self.capacity > self.slot.quantity:
            raise ValueError("more is divided than the slot has")
        check_rising("customers", [customer for customer, _, _ in self.participants])
        check_rising("needs", [each[:2] for each in self.eligible])
        check_rising("customers that were left out", self.left_out)
        return self

    @property
    def names(self) -> frozenset[bytes]:
        """The names of all published values that it followed from."""
        everybody = self.provider, *self.participants
        return frozenset(name for _, *names in everybody for name in names if name is not None)


class ClearingProof(Record):
    """A clearing record with the values that it names, as `xsc verify` reads it.

    Whoever packs it signs it, which proves nothing more.
    """

    clearing: Annotated[bytes, Field(max_length=limits.CLEARING_BYTES_MAX)]
    """The record, signed by its provider."""
    named: Annotated[tuple[SpaceValue, ...], Field(max_length=2 * limits.ALLOCATIONS_MAX)]


class TierLine(Record):
    """How one stage was served."""

    tier: Tier
    capacity: Count
    """What came to the stage."""
    given: Count
    denominator: Count
    """Sum of the weights; of the proportional rule the sum of the numerators, in millionths of a
    unit; 0 in the auction."""


class SlotAllocationRecord(Record):
    """What one need is granted of the present window of one slot."""

    customer: Id32
    need: SlotId
    tier: Tier
    quantity: Steps
    price: Count
    granted_ms: Count
    """When it was offered last; 0 where nothing is left to take, or its customer is paused."""

    @property
    def pin(self) -> tuple[bytes, bytes]:
        """What names it in a slot: the customer and its need."""
        return self.customer, self.need

    @property
    def said(self) -> tuple[bytes, bytes, Tier, int, int]:
        """What is granted: customer, need, tier, steps and price."""
        return *self.pin, self.tier, self.quantity, self.price


class SlotDenominators(Record):
    """How the present window of one slot was divided, and among whom."""

    slot: SlotId
    window: tuple[Count, Count]
    kind: Kind
    rule: DivisionRule
    clearing: Id32
    """Id of the clearing record: the first one of those that came to the same."""
    tiers: Annotated[tuple[TierLine, ...], Field(min_length=3, max_length=3)]
    """Mutual, one-way, open: what came to the first is all that was divided."""
    allocations: Annotated[
        tuple[SlotAllocationRecord, ...], Field(max_length=limits.ALLOCATIONS_MAX)
    ]
    """By rising customer and need; no more than its stages gave."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        check_rising("allocations", [line.pin for line in self.allocations])
        given = sum(tier.given for tier in self.tiers)
        if not sum(line.quantity for line in self.allocations) <= given <= self.tiers[0].capacity:
            raise ValueError("more is allocated than was divided")
        return self


class TwoTierAllocationState(Record):
    """What a node presently grants; the one value at `allocation/state`.

    The record of its space signs, numbers, dates and stamps it.
    """

    slot_denominators: Annotated[
        tuple[SlotDenominators, ...], Field(max_length=limits.SLOTS_MAX)
    ] = ()
    """By rising slot."""
    pauses: Annotated[
        tuple[tuple[SlotId, Id32, Count, Count], ...], Field(max_length=limits.OFFER_PAUSES_MAX)
    ] = ()
    """By rising slot and customer: how often in a row that let an offer lapse, and until when it is
    offered nothing more."""
    mr_values: Annotated[tuple[tuple[Id32, Count], ...], Field(max_length=limits.PEERS_MAX)] = ()
    """By rising ids: mutual recognition above 0, in ppm."""
    damping_factor: Annotated[int, Field(ge=0, le=limits.PPM)] = limits.PPM
    """In ppm, from the history (`xsc.allocation.program`)."""
    damping_history: Annotated[
        tuple[tuple[Count, Count], ...], Field(max_length=limits.DAMPING_HISTORY_MAX)
    ] = ()
    """What was granted beyond this node's needs, in ppm of them, and when; the oldest first."""
    converged: bool = False
    convergence_history: Annotated[
        tuple[tuple[Count, Count], ...], Field(max_length=limits.DAMPING_HISTORY_MAX)
    ] = ()
    """Share of the clearings that were new or gone, in ppm, and when; the oldest first."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        check_rising("slots", [slot.slot for slot in self.slot_denominators])
        check_rising("recognised peers", [peer for peer, _ in self.mr_values])
        check_rising("pauses", [pause[:2] for pause in self.pauses])
        return self

    @property
    def recipient_totals(self) -> Mapping[tuple[bytes, Kind], int]:
        """What all that is granted comes to by customer and kind, in steps."""
        totals = Counter[tuple[bytes, Kind]]()
        for slot in self.slot_denominators:
            for line in slot.allocations:
                totals[line.customer, slot.kind] += line.quantity
        return totals
