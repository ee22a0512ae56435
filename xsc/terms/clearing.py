"""What a provider publishes of its clearings (docs/design/allocation.md, P1 to P5).

A `ClearingRecord` names by hash what was published and one clearing followed from, and says what
only the provider can: capacity, what credit and shares left of each need. A `ClearingProof` packs
it with the values that it names, so anybody recomputes it. A `TwoTierAllocationState` sums up all
present clearings of a node; it is the value at `allocation/state`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, ClassVar, Self, TypeAlias

from pydantic import Field, model_validator

from xsc.base.encoding import tagged_sha256
from xsc.base.limits import (
    ALLOCATIONS_MAX,
    CLEARING_BYTES_MAX,
    COMMITMENT_BYTES_MAX,
    DAMPING_HISTORY_MAX,
    KIB,
    NEEDS_MAX,
    OFFER_PAUSES_MAX,
    PEERS_MAX,
    PPM,
    SLOTS_MAX,
    SPACE_EVIDENCE_BYTES_MAX,
)
from xsc.identity.envelope import Count, Id32, Record
from xsc.terms.quote import Kind, SlotId, Tier
from xsc.terms.slot import AvailabilitySlot, DivisionRule, Steps, check_rising

_Number = Annotated[bytes, Field(max_length=64)]
Ratio: TypeAlias = tuple[_Number, _Number]
"""A fraction in lowest terms. Its numbers are big-endian, in the fewest bytes: they may be long."""
LineValue: TypeAlias = tuple[SlotId, Tier, Steps, Count]
"""A need, the stage that serves it, its units, and the price."""


def to_ratio(value: Fraction) -> tuple[bytes, bytes]:
    """Return a fraction as records have it."""
    return tuple(  # type: ignore[return-value]
        number.to_bytes((number.bit_length() + 7) // 8, "big")
        for number in (value.numerator, value.denominator)
    )


def from_ratio(value: tuple[bytes, bytes]) -> Fraction:
    """Return the fraction that a record has.

    Raises:
        ValueError: it is not in lowest terms, or its bytes are not the shortest.
    """
    below = int.from_bytes(value[1], "big")
    if below == 0:
        raise ValueError("a fraction over zero")
    fraction = Fraction(int.from_bytes(value[0], "big"), below)
    if to_ratio(fraction) != value:
        raise ValueError("a fraction is not in its shortest form")
    return fraction


class SpaceValue(Record):
    """A value of a space with the record that signs it; whoever reads it checks both."""

    record: Annotated[bytes, Field(max_length=SPACE_EVIDENCE_BYTES_MAX)]
    value: Annotated[bytes, Field(max_length=CLEARING_BYTES_MAX)]

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Return the value that a provider keeps of what its clearings name.

        Raises:
            TooLarge, RecordInvalid: it is none.
        """
        most = COMMITMENT_BYTES_MAX + SPACE_EVIDENCE_BYTES_MAX + KIB
        return cls.from_bytes(raw, size_max=most)

    @property
    def name(self) -> bytes:
        """The hash by which clearings name it: of the record, which has the hash of the value."""
        return tagged_sha256("clearing/named", self.record)


class TierLine(Record):
    """How one stage was served."""

    tier: Tier
    capacity: Count
    """What came to the stage."""
    given: Count
    denominator: Ratio
    """Sum of the weights, or of the numerators of the proportional rule; 0 in the auction."""
    level: Ratio | None
    """Units a unit of weight; None where every need was sated, and in the auction."""

    @model_validator(mode="after")
    def _is_exact(self) -> Self:
        from_ratio(self.denominator)
        if self.level is not None:
            from_ratio(self.level)
        if self.given > self.capacity:
            raise ValueError("a stage gives more than came to it")
        return self


class Participant(Record):
    """One customer of a clearing: what it published, what it may have, what it is granted."""

    KIND: ClassVar[str] = "clearing_participant"

    customer: Id32
    commitment: Id32
    """By `SpaceValue.name`, as all that was published."""
    recognition: Id32 | None
    """None where it gives the provider nothing that counts."""
    eligible: Annotated[tuple[tuple[SlotId, Steps], ...], Field(max_length=NEEDS_MAX)]
    """Needs by rising ids, with the units that credit and shares leave: the provider's word."""
    lines: Annotated[tuple[LineValue, ...], Field(max_length=2 * NEEDS_MAX)]
    """What is granted: by stages, in each by need."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        check_rising("needs", [need for need, _ in self.eligible])
        return self


class ClearingRecord(Record):
    """Signed by the provider: one of its slots, divided among the needs that there were then."""

    KIND: ClassVar[str] = "clearing"

    provider: Id32
    slot: AvailabilitySlot
    at_ms: Count
    """Within the window of the slot that is divided."""
    capacity: Count
    """What is divided: the slot's quantity without what is pinned, at most; the provider's word."""
    commitment: Id32
    """The provider's own: it has the slot."""
    recognition: Id32 | None
    """The provider's own; None where it recognises nobody."""
    participants: Annotated[tuple[Participant, ...], Field(max_length=ALLOCATIONS_MAX)]
    """By rising ids."""
    left_out: Annotated[tuple[Id32, ...], Field(max_length=PEERS_MAX)]
    """By rising ids: customers with matching needs for whom it had no room; the provider's word."""
    tiers: Annotated[tuple[TierLine, ...], Field(min_length=3, max_length=3)]
    """Mutual, one-way, open."""

    @model_validator(mode="after")
    def _is_well_formed(self) -> Self:
        if self.slot.window_at(self.at_ms) is None:
            raise ValueError("the slot has no window at that time")
        if self.capacity > self.slot.quantity:
            raise ValueError("more is divided than the slot has")
        check_rising("customers", [each.customer for each in self.participants])
        check_rising("customers that were left out", self.left_out)
        if sum(len(each.eligible) for each in self.participants) > ALLOCATIONS_MAX:
            raise ValueError(f"it has more than {ALLOCATIONS_MAX} lines")
        if [line.tier for line in self.tiers] != ["mutual", "one_way", "open"]:
            raise ValueError("the stages are not mutual, one-way, open")
        return self

    @property
    def names(self) -> frozenset[bytes]:
        """The names of all published values that it followed from."""
        found = {self.commitment, self.recognition}
        for each in self.participants:
            found |= {each.commitment, each.recognition}
        return frozenset(name for name in found if name is not None)


class ClearingProof(Record):
    """A clearing record with the values that it names, as `xsc verify` reads it.

    Whoever packs it signs it, which proves nothing more.
    """

    clearing: Annotated[bytes, Field(max_length=CLEARING_BYTES_MAX)]
    """The record, signed by its provider."""
    named: Annotated[tuple[SpaceValue, ...], Field(max_length=2 * ALLOCATIONS_MAX)]


class SlotAllocationRecord(Record):
    """What one need is granted of the present window of one slot."""

    KIND: ClassVar[str] = "slot_allocation"

    slot: SlotId
    customer: Id32
    need: SlotId
    tier: Tier
    quantity: Steps
    price: Count
    granted_ms: Count
    """When it was offered last; 0 where nothing is left to take, or its customer is paused."""

    @property
    def key(self) -> tuple[bytes, bytes, bytes]:
        """What names it in a state."""
        return self.slot, self.customer, self.need

    @property
    def said(self) -> tuple[Tier, int, int]:
        """What is granted: tier, steps and price."""
        return self.tier, self.quantity, self.price


class SlotDenominators(Record):
    """How the present window of one slot was divided."""

    slot: SlotId
    window: tuple[Count, Count]
    kind: Kind
    rule: DivisionRule
    capacity: Count
    clearing: Id32
    """Id of the clearing record: the first one of those that came to the same."""
    tiers: Annotated[tuple[TierLine, ...], Field(min_length=3, max_length=3)]


def recipient_totals(
    slots: Iterable[SlotDenominators], lines: Iterable[SlotAllocationRecord]
) -> tuple[tuple[bytes, Kind, int], ...]:
    """Return by customer and kind what all lines of divided slots come to, in steps."""
    kinds = {slot.slot: slot.kind for slot in slots}
    totals = Counter[tuple[bytes, Kind]]()
    for line in lines:
        if line.slot in kinds:
            totals[line.customer, kinds[line.slot]] += line.quantity
    return tuple(sorted((*key, steps) for key, steps in totals.items()))


class TwoTierAllocationState(Record):
    """What a node presently grants; the one value at `allocation/state`.

    The record of its space signs, numbers, dates and stamps it.
    """

    KIND: ClassVar[str] = "allocation_state"

    slot_denominators: Annotated[tuple[SlotDenominators, ...], Field(max_length=SLOTS_MAX)] = ()
    """By rising slot."""
    slot_allocations: Annotated[
        tuple[SlotAllocationRecord, ...], Field(max_length=ALLOCATIONS_MAX)
    ] = ()
    """By rising slot, customer and need; of a slot no more than its stages gave."""
    recipient_totals: Annotated[
        tuple[tuple[Id32, Kind, Count], ...], Field(max_length=2 * PEERS_MAX)
    ] = ()
    """By rising id and kind: steps over all slots, as the sum of `slot_allocations`."""
    pauses: Annotated[
        tuple[tuple[SlotId, Id32, Count, Count], ...], Field(max_length=OFFER_PAUSES_MAX)
    ] = ()
    """By rising slot and customer: how often in a row that let an offer lapse, and until when it is
    offered nothing more."""
    mr_values: Annotated[tuple[tuple[Id32, Count], ...], Field(max_length=PEERS_MAX)] = ()
    """By rising ids: mutual recognition above 0, in ppm."""
    damping_factor: Annotated[int, Field(ge=0, le=PPM)] = PPM
    """In ppm, from the history (`xsc.allocation.program`)."""
    damping_history: Annotated[
        tuple[tuple[Count, Count], ...], Field(max_length=DAMPING_HISTORY_MAX)
    ] = ()
    """What was granted beyond this node's needs, in ppm of them, and when; the oldest first."""
    converged: bool = False
    convergence_history: Annotated[
        tuple[tuple[Count, Count], ...], Field(max_length=DAMPING_HISTORY_MAX)
    ] = ()
    """Share of the clearings that were new or gone, in ppm, and when; the oldest first."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if recipient_totals(self.slot_denominators, self.slot_allocations) != self.recipient_totals:
            raise ValueError("the totals are not the sums of the allocations")
        check_rising("slots", [slot.slot for slot in self.slot_denominators])
        check_rising("allocations", [line.key for line in self.slot_allocations])
        check_rising("recognised peers", [peer for peer, _ in self.mr_values])
        check_rising("pauses", [pause[:2] for pause in self.pauses])
        given = Counter[bytes]()
        for line in self.slot_allocations:
            given[line.slot] += line.quantity
        for slot in self.slot_denominators:
            if (
                not given.pop(slot.slot, 0)
                <= sum(tier.given for tier in slot.tiers)
                <= slot.capacity
            ):
                raise ValueError("more is allocated than was divided")
        if given:
            raise ValueError("an allocation is of a slot that was not divided")
        return self
