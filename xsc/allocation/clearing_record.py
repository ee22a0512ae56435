"""Makes the record of a clearing, and checks one.

A record has what a clearing followed from. Whoever checks trusts the provider's word for the
capacity, for what credit and shares left of each need, that nobody and no recognition is missing,
and that nothing in it had been replaced. What it comes to anybody computes, and compares with what
the provider's state says of it (docs/design/allocation.md, P1 to P5). A record names what was
published by hash, so whoever checks it needs these values, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import TypeAlias

from xsc.allocation.clearing import TIERS, Bid, Pin, SlotClearing, clear, lot, salt_of
from xsc.allocation.matching import mismatch
from xsc.allocation.published import Published, Said, standing
from xsc.base.errors import LimitError, PeerError, ProofInvalid, RecordInvalid
from xsc.base.ids import short, to_text
from xsc.base.limits import CLEARING_BYTES_MAX, KIB, SPACE_EVIDENCE_BYTES_MAX
from xsc.identity.envelope import Signed, open_signed
from xsc.space.limits import VALUE_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.space.record import SpaceRecord, check_value, open_dated
from xsc.terms.clearing import ClearingRecord, SpaceValue, TwoTierAllocationState
from xsc.terms.slot import AvailabilitySlot

STRANGER_BYTES_MAX = 16 * KIB
"""What a clearing reads of a customer that its provider does not recognise."""

_FRAME_BYTES = 4 * KIB
"""Of the record, beside its slot, participants and what the provider published."""
_STATES_READ = 4
"""States that are read once: a frame of the allocation program reads and makes three."""


def wanted(
    slot: AvailabilitySlot, at_ms: int, provider: Published, customer: Published
) -> dict[bytes, int]:
    """Return what each need that matches a slot then accepts of its provider, above 0."""
    found = {
        need.slot_id: need.cap(provider.node)
        for need in customer.commitment.needs
        if need.kind == slot.kind and mismatch(slot, provider, need, customer, at_ms) is None
    }
    return {need_id: units for need_id, units in found.items() if units}


Taking: TypeAlias = tuple[Published, Mapping[bytes, int]]
"""A customer that takes part, and what each need of it that matches the slot accepts."""


def admitted(
    slot: AvailabilitySlot,
    at_ms: int,
    provider: Published,
    others: Iterable[Published],
    *,
    bytes_max: int,
    needs_max: int,
) -> tuple[list[Taking], list[bytes]]:
    """Return who takes part of those that need something of a slot, and who is left out.

    The most recognised come first, then strangers by lot. Who publishes or needs more than there is
    room for is passed over, and a stranger that publishes more than STRANGER_BYTES_MAX as well.

    Args:
        slot: what is cleared.
        at_ms: when.
        provider: whose slot it is.
        others: whom it knows.
        bytes_max: of the record with what it names.
        needs_max: of those that take part.
    """
    salt, ranked = salt_of(slot.slot_id, at_ms), []
    for other in others:
        if units := wanted(slot, at_ms, provider, other):
            tier, weight = standing(provider, other)
            ranked.append(((TIERS.index(tier), -weight, lot(salt, other.node)), other, units))
    room = bytes_max - _FRAME_BYTES - len(slot.to_bytes()) - provider.size_bytes
    taken, left_out = list[Taking](), list[bytes]()
    for (place, *_), other, units in sorted(ranked, key=itemgetter(0)):
        size = other.size_bytes
        is_large = TIERS[place] == "open" and size > STRANGER_BYTES_MAX
        if is_large or size > room or len(units) > needs_max:
            left_out.append(other.node)
        else:
            taken.append((other, units))
            room, needs_max = room - size, needs_max - len(units)
    return taken, left_out


@dataclass(frozen=True, slots=True)
class Clearing:
    """All that the division of a slot at a time follows from."""

    record: ClearingRecord
    provider: Published
    customers: Mapping[bytes, Published]
    """Those that take part, by id."""

    @property
    def game(self) -> tuple[AvailabilitySlot, int, list[Bid], bytes]:
        """What `clear` takes."""
        of, stands, prices = self.record, {}, dict[Pin, int]()
        for node, customer in self.customers.items():
            stands[node] = *standing(self.provider, customer), customer.commitment.damping_ppm
            prices |= {(node, need.slot_id): need.price_max for need in customer.commitment.needs}
        bids = [
            Bid(node, need, units, prices[node, need], *stands[node])
            for node, need, units in of.eligible
        ]
        return of.slot, of.capacity, bids, salt_of(of.slot.slot_id, of.at_ms)

    def clear(self) -> SlotClearing:
        """Divide the slot."""
        return clear(*self.game)


def read_published(said: Said, *, network: bytes, at_ms: int) -> Published:
    """Return what a node published, once the records that sign it were checked.

    Raises:
        PeerError, LimitError: a signature, digest, path, date or value is wrong.
    """
    node = said[0]
    paths = UserSpacePaths.COMMITMENT, UserSpacePaths.RECOGNITION
    for value, path in zip(said[1:], paths, strict=True):
        if value is not None:
            record = open_dated(
                value.record, SpaceRecord, owner=node, network=network, now_ms=at_ms
            ).record
            if record.path != path:
                raise RecordInvalid(f"a record of {short(node)} is of {record.path}, not of {path}")
            check_value(record, value.value)
    return Published.read(*said)


@lru_cache(maxsize=_STATES_READ)
def read_state(raw: bytes) -> TwoTierAllocationState:
    """Return the state of its bytes; an empty one where there are none.

    Raises:
        TooLarge, RecordInvalid: they are of no such thing.
    """
    if not raw:
        return TwoTierAllocationState()
    return TwoTierAllocationState.from_bytes(raw, size_max=VALUE_BYTES_MAX)


def _clearing_of(
    record: ClearingRecord, named: Mapping[bytes, SpaceValue], network: bytes
) -> Clearing:
    """Return what a record says that it followed from, once that was checked.

    Raises:
        PeerError, LimitError: as `read_published`, or a value is missing, or the slot is not
            published, or an eligible need does not match it, or asks for less.
    """

    def read(node: bytes, commitment: bytes, recognition: bytes | None) -> Published:
        if commitment not in named or (recognition is not None and recognition not in named):
            raise RecordInvalid(f"what {short(node)} had published is missing")
        given = None if recognition is None else named[recognition]
        said = node, named[commitment], given
        return read_published(said, network=network, at_ms=record.at_ms)

    provider = read(*record.provider)
    if record.slot not in provider.commitment.slots:
        raise RecordInvalid("the provider does not publish this slot")
    customers = {each[0]: read(*each) for each in record.participants}
    most: dict[Pin, int] = {}
    for node, customer in customers.items():
        units_of = wanted(record.slot, record.at_ms, provider, customer)
        most |= {(node, need_id): units for need_id, units in units_of.items()}
    for node, need_id, units in record.eligible:
        if units > most.get((node, need_id), 0):
            raise RecordInvalid(
                f"need {to_text(need_id)} of {short(node)} does not match the slot, or asks for "
                "less than is said to be eligible"
            )
    return Clearing(record, provider, customers)


def open_clearing(raw: bytes, network: bytes | None = None) -> Signed[ClearingRecord]:
    """Return a clearing record that its provider signed; what it says is not checked.

    Raises:
        PeerError, LimitError: it is none.
    """
    signed = open_signed(raw, ClearingRecord, network=network, size_max=CLEARING_BYTES_MAX)
    if signed.author != signed.record.provider[0]:
        raise RecordInvalid("the clearing is not signed by its provider")
    return signed


def check_clearing(
    raw: bytes, values: Iterable[SpaceValue], *, network: bytes | None = None
) -> Clearing:
    """Return a clearing, once all that its record says was checked.

    Args:
        raw: the record.
        values: those that it names, and maybe others: what a state of its provider says of it is
            compared with what it comes to.
        network: its network; None for any.

    Raises:
        ProofInvalid: the first thing that is wrong.
    """
    try:
        signed = open_clearing(raw, network)
        record, named = signed.record, {each.name: each for each in values}
        clearing = _clearing_of(record, named, signed.network)
        for name in sorted(named.keys() - record.names):
            _check_outcome(clearing, signed, named[name])
    except (PeerError, LimitError) as fault:
        raise ProofInvalid(fault.message, hint=fault.hint) from None
    return clearing


def _check_outcome(clearing: Clearing, signed: Signed[ClearingRecord], said: SpaceValue) -> None:
    """Check that a state of the provider says of a clearing what it comes to.

    Raises:
        PeerError, LimitError: it says something else.
    """
    by = open_signed(
        said.record, SpaceRecord, network=signed.network, size_max=SPACE_EVIDENCE_BYTES_MAX
    )
    if (by.author, by.record.path) != (signed.author, UserSpacePaths.ALLOCATION_STATE):
        return
    record, right = signed.record, clearing.clear()
    expected = {(*pin, *granted) for pin, granted in right.lines.items()}
    state = read_state(check_value(by.record, said.value))
    for slot in state.slot_denominators:
        if slot.clearing != signed.id:
            continue
        for line in slot.allocations:
            if line.said not in expected:
                raise RecordInvalid(
                    f"the state grants {short(line.customer)} {line.quantity} in {line.tier} at "
                    f"{line.price}, and by the rule the clearing that it names does not"
                )
        if len(slot.allocations) < len(expected):
            raise RecordInvalid("the state withholds what the clearing that it names grants")
        if (slot.slot, slot.tiers) != (record.slot.slot_id, right.tiers):
            raise RecordInvalid("a stage of the state is not as the rule serves it")
