"""Makes the record of a clearing, and checks one: both do the same computation.

Whoever checks trusts the provider's word for the capacity, for what credit and shares left of
each need, that nobody and no recognition is missing, and that nothing in it had been replaced. A
customer sees whether it is there, and each line follows from what the record has
(docs/design/allocation.md, P1 to P5). A record names what was published by hash, so whoever checks
it needs these values, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self, TypeAlias

from xsc.allocation.clearing import TIERS, Bid, SlotTerms, Standing, clear, lot, salt_of
from xsc.allocation.matching import Party, mismatch
from xsc.allocation.recognition import mutual_ppm, read_weights, tier_of
from xsc.base.errors import LimitError, PeerError, ProofInvalid, RecordInvalid
from xsc.base.ids import short, to_text
from xsc.base.limits import (
    CLEARING_BYTES_MAX,
    CLEARING_VALUE_BYTES,
    KIB,
    SPACE_EVIDENCE_BYTES_MAX,
    STRANGER_BYTES_MAX,
)
from xsc.base.units import ceil_div
from xsc.identity.envelope import Id32, Signed, open_signed
from xsc.space.limits import VALUE_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.space.record import SpaceRecord, check_value, open_record
from xsc.terms.clearing import (
    ClearingRecord,
    LineValue,
    Participant,
    SpaceValue,
    TierLine,
    TwoTierAllocationState,
    to_ratio,
)
from xsc.terms.quote import Tier
from xsc.terms.slot import AvailabilitySlot, Commitment

Pin: TypeAlias = tuple[bytes, bytes]
"""A customer and one of its needs."""

Said: TypeAlias = tuple[Id32, SpaceValue, SpaceValue | None]
"""A node, its commitment, and its recognition where it has one."""

Granted: TypeAlias = tuple[Tier, int, int]
"""Tier, units and price."""

Game: TypeAlias = tuple[SlotTerms, list[Bid], dict[bytes, Standing], bytes]
"""Terms, bids, weights and salt."""

_PARTICIPANT_BYTES = 256
"""Of a participant, beside what it published and what grows with its needs."""
_NEED_BYTES = 192
"""Of a need: what is eligible, and two lines."""
_FRAME_BYTES = 4 * KIB
"""Of the record, beside its slot, participants and what the provider published."""
_STATES_READ = 4
"""States that are read once: a frame of the allocation program reads and makes three."""


def charged(size_bytes: int) -> int:
    """Return what a value counts of CLEARINGS_BYTES_MAX."""
    return max(size_bytes, CLEARING_VALUE_BYTES)


@dataclass(frozen=True, slots=True)
class Published:
    """What a node published, parsed, and the space records that sign it."""

    node: bytes
    commitment: Commitment
    commitment_value: SpaceValue
    weights: Mapping[bytes, int] = field(default_factory=dict)
    """What it gives to others, in ppm."""
    recognition_value: SpaceValue | None = None

    @property
    def named(self) -> dict[bytes, SpaceValue]:
        """What records name of it: its commitment, then its recognition where it has one."""
        values = (self.commitment_value, self.recognition_value)
        return {value.name: value for value in values if value is not None}

    @property
    def size_bytes(self) -> int:
        """What it takes of what is kept, with what is granted to it."""
        values = (self.commitment_value, self.recognition_value)
        sizes = [len(each.record) + len(each.value) for each in values if each is not None]
        return (
            _PARTICIPANT_BYTES + _NEED_BYTES * len(self.commitment.needs) + sum(map(charged, sizes))
        )

    @classmethod
    def read(cls, node: bytes, commitment: SpaceValue, recognition: SpaceValue | None) -> Self:
        """Return what a node published; who signed it is not checked.

        Raises:
            TooLarge, RecordInvalid: a value is none of its kind.
        """
        said = Commitment.read(commitment.value) if commitment.value else Commitment()
        weights = {} if recognition is None else read_weights(node, recognition.value)
        return cls(node, said, commitment, weights, recognition)

    @property
    def said(self) -> Said:
        """What `read` makes it from."""
        return self.node, self.commitment_value, self.recognition_value

    @property
    def recognition_name(self) -> bytes | None:
        """How a record names its recognition."""
        return None if self.recognition_value is None else self.recognition_value.name


def standing(provider: Published, customer: Published) -> Standing:
    """Return the tier and weight of a customer at a provider."""
    mine = provider.weights.get(customer.node, 0)
    if not mine:
        return "open", 1
    theirs = customer.weights.get(provider.node, 0)
    tier = tier_of(mine, theirs)
    return tier, mutual_ppm(mine, theirs) if tier == "mutual" else mine


def parties(provider: Published, customer: Published) -> tuple[Party, Party]:
    """Return the provider as the customer sees it, and the customer as the provider does."""
    return (
        Party(provider.node, standing(customer, provider)[0]),
        Party(customer.node, standing(provider, customer)[0]),
    )


def wanted(
    slot: AvailabilitySlot, at_ms: int, provider: Published, customer: Published
) -> dict[bytes, int]:
    """Return what each need that matches a slot then accepts of its provider, above 0."""
    there, here = parties(provider, customer)
    found = {
        need.slot_id: need.cap(provider.node)
        for need in customer.commitment.needs
        if need.kind == slot.kind and mismatch(slot, there, need, here, at_ms) is None
    }
    return {need_id: units for need_id, units in found.items() if units}


@dataclass(frozen=True, slots=True)
class Taker:
    """A customer as it stands at a provider, with what its needs that match a slot accept."""

    published: Published
    tier: Tier
    weight: int
    wanted: Mapping[bytes, int]


def takers_of(
    slot: AvailabilitySlot, at_ms: int, provider: Published, others: Iterable[Published]
) -> list[Taker]:
    """Return who needs something of a slot: the most recognised stand first, strangers by lot."""
    found = [
        Taker(other, *standing(provider, other), units)
        for other in others
        if (units := wanted(slot, at_ms, provider, other))
    ]
    salt = salt_of(slot.slot_id, at_ms)

    def rank(taker: Taker) -> tuple[int, int, bytes]:
        return TIERS.index(taker.tier), -taker.weight, lot(salt, taker.published.node)

    return sorted(found, key=rank)


def admitted(
    slot: AvailabilitySlot,
    provider: Published,
    takers: Iterable[Taker],
    *,
    bytes_max: int,
    needs_max: int,
) -> list[Taker]:
    """Return the customers that take part, so that there is room for what is granted and named.

    Who publishes or needs more than there is room for is passed over, and a stranger that
    publishes more than STRANGER_BYTES_MAX as well.

    Args:
        slot: what is cleared.
        provider: whose slot it is.
        takers: of the slot, in their order.
        bytes_max: of the record with what it names.
        needs_max: of those that take part.
    """
    room = bytes_max - _FRAME_BYTES - len(slot.to_bytes()) - provider.size_bytes
    lines = needs_max
    taken: list[Taker] = []
    for taker in takers:
        size, needs = taker.published.size_bytes, len(taker.wanted)
        if size > room or needs > lines or (taker.tier == "open" and size > STRANGER_BYTES_MAX):
            continue
        taken.append(taker)
        room, lines = room - size, lines - needs
    return taken


@dataclass(frozen=True, slots=True)
class Clearing:
    """All that the division of a slot at a time follows from."""

    slot: AvailabilitySlot
    at_ms: int
    capacity: int
    provider: Published
    customers: Sequence[Published]
    """Those that take part."""
    eligible: Mapping[bytes, Mapping[bytes, int]]
    """Units by customer and need: above 0, and what `wanted` says at most."""
    left_out: Iterable[bytes] = ()
    """Customers for whom there was no room."""

    @property
    def game(self) -> Game:
        """What `clear` takes."""
        slot, bids = self.slot, list[Bid]()
        for customer in self.customers:
            units, damping_ppm = self.eligible[customer.node], customer.commitment.damping_ppm
            bids += [
                Bid(customer.node, need.slot_id, units[need.slot_id], need.price_max, damping_ppm)
                for need in customer.commitment.needs
                if need.slot_id in units
            ]
        weights = {each.node: standing(self.provider, each) for each in self.customers}
        prices = slot.price_mutual, slot.price_one_way, slot.reserve
        salt = salt_of(slot.slot_id, self.at_ms)
        return SlotTerms(self.capacity, *prices, slot.rule), bids, weights, salt

    def check(self) -> None:
        """Check that the slot is published, and each eligible need matches it and asks for as much.

        Raises:
            RecordInvalid: it is not so.
        """
        if self.slot not in self.provider.commitment.slots:
            raise RecordInvalid("the provider does not publish this slot")
        for customer in self.customers:
            most = wanted(self.slot, self.at_ms, self.provider, customer)
            for need_id, units in self.eligible[customer.node].items():
                if units > most.get(need_id, 0):
                    raise RecordInvalid(
                        f"need {to_text(need_id)} of {short(customer.node)} does not match the "
                        "slot, or asks for less than is said to be eligible"
                    )

    def record(self) -> ClearingRecord:
        """Divide the slot, and return the record, not yet signed."""
        cleared, provider = clear(*self.game), self.provider
        lines: defaultdict[bytes, list[LineValue]] = defaultdict(list)
        for line in cleared.lines:
            lines[line.customer].append((line.need, line.tier, line.quantity, line.price))
        return ClearingRecord(
            provider=provider.node,
            slot=self.slot,
            at_ms=self.at_ms,
            capacity=self.capacity,
            commitment=provider.commitment_value.name,
            recognition=provider.recognition_name,
            participants=tuple(
                Participant(
                    customer=customer.node,
                    commitment=customer.commitment_value.name,
                    recognition=customer.recognition_name,
                    eligible=tuple(sorted(self.eligible[customer.node].items())),
                    lines=tuple(lines[customer.node]),
                )
                for customer in sorted(self.customers, key=lambda customer: customer.node)
            ),
            left_out=tuple(sorted(self.left_out)),
            tiers=tuple(
                TierLine(
                    tier=result.tier,
                    capacity=result.capacity,
                    given=result.given,
                    denominator=to_ratio(result.denominator),
                    level=None if result.level is None else to_ratio(result.level),
                )
                for result in cleared.tiers
            ),
        )


def read_published(
    node: bytes,
    commitment: SpaceValue,
    recognition: SpaceValue | None,
    *,
    network: bytes,
    at_ms: int,
) -> Published:
    """Return what a node published, once the records that sign it were checked.

    Raises:
        PeerError, LimitError: a signature, digest, path, date or value is wrong.
    """
    for value, path in (
        (commitment, UserSpacePaths.COMMITMENT),
        (recognition, UserSpacePaths.RECOGNITION),
    ):
        if value is not None:
            record = open_record(value.record, owner=node, network=network, now_ms=at_ms).record
            if record.path != path:
                raise RecordInvalid(f"a record of {short(node)} is of {record.path}, not of {path}")
            check_value(record, value.value)
    return Published.read(node, commitment, recognition)


@lru_cache(maxsize=_STATES_READ)
def read_state(raw: bytes) -> TwoTierAllocationState:
    """Return the state of its bytes; an empty one where there are none.

    Raises:
        TooLarge, RecordInvalid: they are of no such thing.
    """
    if not raw:
        return TwoTierAllocationState()
    return TwoTierAllocationState.from_bytes(raw, size_max=VALUE_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Checked:
    """A clearing record that recomputes, and what it followed from."""

    signed: Signed[ClearingRecord]
    clearing: Clearing

    @property
    def record(self) -> ClearingRecord:
        """The record."""
        return self.signed.record


def _clearing_of(
    record: ClearingRecord, named: Mapping[bytes, SpaceValue], network: bytes
) -> Clearing:
    """Return what a record says that it followed from, all signatures checked.

    Raises:
        PeerError, LimitError: as `read_published`, or a value is missing.
    """

    def read(node: bytes, commitment: bytes, recognition: bytes | None) -> Published:
        if commitment not in named or (recognition is not None and recognition not in named):
            raise RecordInvalid(f"what {short(node)} had published is missing")
        given = None if recognition is None else named[recognition]
        return read_published(node, named[commitment], given, network=network, at_ms=record.at_ms)

    taking = record.participants
    return Clearing(
        record.slot,
        record.at_ms,
        record.capacity,
        read(record.provider, record.commitment, record.recognition),
        [read(each.customer, each.commitment, each.recognition) for each in taking],
        {each.customer: dict(each.eligible) for each in taking},
        record.left_out,
    )


def open_clearing(raw: bytes, network: bytes | None = None) -> Signed[ClearingRecord]:
    """Return a clearing record that its provider signed; what it says is not checked.

    Raises:
        PeerError, LimitError: it is none.
    """
    signed = open_signed(raw, ClearingRecord, network=network, size_max=CLEARING_BYTES_MAX)
    if signed.author != signed.record.provider:
        raise RecordInvalid("the clearing is not signed by its provider")
    return signed


def price_of(lines: Sequence[Granted]) -> int:
    """Return the price of an entitlement of some lines.

    Of two stages the mean, rounded up. Where needs go unserved it can be above the reserve: what
    others lose by it is charged, or it would cost nothing to state a higher price.
    """
    return ceil_div(sum(units * price for _, units, price in lines), sum(line[1] for line in lines))


def lines_of(record: ClearingRecord) -> dict[Pin, Granted]:
    """Return what a clearing grants."""
    lines: defaultdict[Pin, list[Granted]] = defaultdict(list)
    for each in record.participants:
        for need, tier, units, price in each.lines:
            lines[each.customer, need].append((tier, units, price))
    return {
        pin: (of[0][0], sum(units for _, units, _ in of), price_of(of)) for pin, of in lines.items()
    }


def _check_said(signed: Signed[ClearingRecord], said: SpaceValue) -> None:
    """Check that a state of the provider has of a clearing only lines that its record has.

    Raises:
        PeerError, LimitError: it has another.
    """
    record = signed.record
    by = open_signed(
        said.record, SpaceRecord, network=signed.network, size_max=SPACE_EVIDENCE_BYTES_MAX
    )
    if (by.author, by.record.path) != (record.provider, UserSpacePaths.ALLOCATION_STATE):
        return
    state = read_state(check_value(by.record, said.value))
    granted = lines_of(record)
    named = {each.slot for each in state.slot_denominators if each.clearing == signed.id}
    for line in state.slot_allocations:
        of = granted.get((line.customer, line.need))
        if line.slot in named and line.said != of:
            raise RecordInvalid(
                f"the state grants {short(line.customer)} {line.quantity} in {line.tier} at "
                f"{line.price}, and the clearing that it names does not"
            )


def check_clearing(
    raw: bytes, values: Iterable[SpaceValue], *, network: bytes | None = None
) -> Checked:
    """Return a clearing record, once it was recomputed from what it names.

    Args:
        raw: the record.
        values: those that it names, and maybe others: of a state of its provider the lines are
            compared.
        network: its network; None for any.

    Raises:
        ProofInvalid: the first thing that is wrong.
    """
    try:
        signed = open_clearing(raw, network)
        record, named = signed.record, {each.name: each for each in values}
        clearing = _clearing_of(record, named, signed.network)
        clearing.check()
        again = clearing.record()
        for name in sorted(named.keys() - record.names):
            _check_said(signed, named[name])
    except (PeerError, LimitError) as fault:
        raise ProofInvalid(fault.message, hint=fault.hint) from None
    for said, right in zip(record.participants, again.participants, strict=True):
        if said != right:
            raise ProofInvalid(
                f"the outcome of {short(said.customer)} is {_outcome(said)}, "
                f"and by the rule {_outcome(right)}"
            )
    for told, true in zip(record.tiers, again.tiers, strict=True):
        if told != true:
            raise ProofInvalid(f"the stage {told.tier} is not as the rule serves it")
    return Checked(signed, clearing)


def _outcome(participant: Participant) -> str:
    lines = [f"{quantity} in {tier} at {price}" for _, tier, quantity, price in participant.lines]
    return ", ".join(lines) or "nothing"
