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
from xsc.allocation.matching import Party, mismatch, overlap, windows_of
from xsc.allocation.recognition import mutual_ppm, read_weights, tier_of
from xsc.base.errors import LimitError, PeerError, ProofInvalid, RecordInvalid
from xsc.base.ids import short, to_text
from xsc.base.limits import (
    ALLOCATIONS_MAX,
    CLEARING_BYTES_MAX,
    CLEARING_VALUE_BYTES,
    CLEARINGS_BYTES_MAX,
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
    SlotAllocationRecord,
    SpaceValue,
    TierLine,
    TwoTierAllocationState,
    to_ratio,
)
from xsc.terms.quote import Tier
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot, Window

Pin: TypeAlias = tuple[bytes, bytes]
"""A customer and one of its needs."""

Said: TypeAlias = tuple[Id32, SpaceValue, SpaceValue | None]
"""A node, its commitment, and its recognition where it has one."""

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

    named: Mapping[bytes, SpaceValue] = field(init=False)
    """What records name of it: its commitment, then its recognition where it has one."""
    size_bytes: int = field(init=False)
    """What it takes of what is kept, with what is granted to it."""

    def __post_init__(self) -> None:
        values = (self.commitment_value, self.recognition_value)
        named = {value.name: value for value in values if value is not None}
        size = _PARTICIPANT_BYTES + _NEED_BYTES * len(self.commitment.needs)
        size += sum(charged(len(each.record) + len(each.value)) for each in named.values())
        object.__setattr__(self, "named", named)
        object.__setattr__(self, "size_bytes", size)

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


@dataclass(frozen=True, slots=True)
class Offer:
    """What is cleared: one window of one slot, and what only the provider can say of it."""

    slot: AvailabilitySlot
    window: Window
    at_ms: int
    capacity: int

    @property
    def salt(self) -> bytes:
        """Under which ties fall."""
        return salt_of(self.slot.slot_id, self.at_ms)


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


def wanted(offer: Offer, provider: Published, customer: Published) -> dict[bytes, int]:
    """Return what each need that matches accepts of this provider: its quantity, or its cap."""
    slot, now_ms = offer.slot, offer.at_ms
    ahead = max(offer.window[0], now_ms), offer.window[1]
    if min(offer.window[1], slot.valid_until_ms) <= now_ms:
        return {}
    there, here = parties(provider, customer)
    found = {
        need.slot_id: min(need.quantity, need.cap(provider.node))
        for need in customer.commitment.needs
        if need.kind == slot.kind
        and need.valid_until_ms > now_ms
        and overlap(ahead, windows_of(need)) is not None
        and mismatch(slot, there, need, here) is None
    }
    return {need_id: units for need_id, units in found.items() if units}


@dataclass(frozen=True, slots=True)
class Taker:
    """A customer as it stands at a provider, with the needs that match one of its slots."""

    published: Published
    tier: Tier
    weight: int
    needs: tuple[NeedSlot, ...]


def rank(taker: Taker, salt: bytes) -> tuple[int, int, bytes, bytes]:
    """Return the place of a customer among those that want to take part.

    It is by tier, weight, lot and node: the most recognised stand first, strangers by lot.
    """
    node = taker.published.node
    return TIERS.index(taker.tier), -taker.weight, lot(salt, node), node


def admitted(
    provider: Published,
    takers: Iterable[Taker],
    slot: AvailabilitySlot,
    *,
    bytes_max: int = CLEARINGS_BYTES_MAX,
    needs_max: int = ALLOCATIONS_MAX,
) -> list[Taker]:
    """Return the customers that take part, so that there is room for what is granted and named.

    Who publishes or needs more than there is room for is passed over, and a stranger that
    publishes more than STRANGER_BYTES_MAX as well.

    Args:
        provider: whose slot it is.
        takers: by rising `rank`.
        slot: what is cleared.
        bytes_max: of the record with what it names.
        needs_max: of those that take part.
    """
    room = bytes_max - _FRAME_BYTES - len(slot.to_bytes()) - provider.size_bytes
    lines = needs_max
    taken: list[Taker] = []
    for taker in takers:
        size, needs = taker.published.size_bytes, len(taker.needs)
        if size > room or needs > lines or (taker.tier == "open" and size > STRANGER_BYTES_MAX):
            continue
        taken.append(taker)
        room, lines = room - size, lines - needs
    return taken


def game_of(
    offer: Offer,
    provider: Published,
    customers: Iterable[Published],
    eligible: Mapping[bytes, Mapping[bytes, int]],
) -> Game:
    """Return what `clear` takes.

    Args:
        offer: what is cleared.
        provider: whose slot it is.
        customers: those that take part.
        eligible: units by customer and need, as `check_eligible` wants them.
    """
    slot, bids, weights = offer.slot, list[Bid](), dict[bytes, Standing]()
    for customer in customers:
        weights[customer.node] = standing(provider, customer)
        units = eligible.get(customer.node, {})
        bids += [
            Bid(
                customer.node,
                need.slot_id,
                units[need.slot_id],
                need.price_max,
                customer.commitment.damping_ppm,
            )
            for need in customer.commitment.needs
            if need.slot_id in units
        ]
    ladder = slot.price_mutual, slot.price_one_way, slot.reserve
    return SlotTerms(offer.capacity, *ladder, slot.rule), bids, weights, offer.salt


def check_eligible(
    offer: Offer,
    provider: Published,
    customers: Iterable[Published],
    eligible: Mapping[bytes, Mapping[bytes, int]],
) -> None:
    """Check that each need that is eligible matches the slot, and asks for as much.

    Raises:
        RecordInvalid: one does not.
    """
    for customer in customers:
        most = wanted(offer, provider, customer)
        for need_id, units in eligible.get(customer.node, {}).items():
            if units > most.get(need_id, 0):
                raise RecordInvalid(
                    f"need {to_text(need_id)} of {short(customer.node)} does not match the slot, "
                    "or asks for less than is said to be eligible"
                )


def clear_window(
    offer: Offer,
    provider: Published,
    customers: Sequence[Published],
    eligible: Mapping[bytes, Mapping[bytes, int]],
    *,
    left_out: Iterable[bytes] = (),
) -> ClearingRecord:
    """Clear one window of a slot and return the record, not yet signed.

    Args:
        offer: what is cleared.
        provider: whose slot it is.
        customers: those that `admitted` returned, each with a need that matches.
        eligible: units by customer and need, above 0 and of what `wanted` says at most.
        left_out: customers that were not admitted.

    Raises:
        RecordInvalid: the slot is not published.
    """
    if offer.slot not in provider.commitment.slots:
        raise RecordInvalid("the provider does not publish this slot")
    cleared = clear(*game_of(offer, provider, customers, eligible))
    lines: defaultdict[bytes, list[LineValue]] = defaultdict(list)
    for line in cleared.lines:
        lines[line.customer].append((line.need, line.tier, line.quantity, line.price))
    return ClearingRecord(
        provider=provider.node,
        slot=offer.slot,
        window=offer.window,
        at_ms=offer.at_ms,
        capacity=offer.capacity,
        commitment=provider.commitment_value.name,
        recognition=provider.recognition_name,
        participants=tuple(
            Participant(
                customer=customer.node,
                commitment=customer.commitment_value.name,
                recognition=customer.recognition_name,
                eligible=tuple(sorted(eligible.get(customer.node, {}).items())),
                lines=tuple(lines[customer.node]),
            )
            for customer in sorted(customers, key=lambda customer: customer.node)
        ),
        left_out=tuple(sorted(left_out)),
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


def offer_of(record: ClearingRecord) -> Offer:
    """Return what a record says was cleared."""
    return Offer(record.slot, record.window, record.at_ms, record.capacity)


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
    provider: Published
    customers: list[Published]

    @property
    def record(self) -> ClearingRecord:
        """The record."""
        return self.signed.record

    @property
    def game(self) -> Game:
        """What was cleared, as `clear` takes it."""
        eligible = eligible_of(self.record)
        return game_of(offer_of(self.record), self.provider, self.customers, eligible)


def _open_inputs(
    record: ClearingRecord, named: Mapping[bytes, SpaceValue], network: bytes
) -> tuple[Published, list[Published]]:
    """Return what the provider and the customers published, all signatures checked.

    Raises:
        PeerError, LimitError: as `read_published`, or a value is missing.
    """

    def read(node: bytes, commitment: bytes, recognition: bytes | None) -> Published:
        if commitment not in named or (recognition is not None and recognition not in named):
            raise RecordInvalid(f"what {short(node)} had published is missing")
        given = None if recognition is None else named[recognition]
        return read_published(node, named[commitment], given, network=network, at_ms=record.at_ms)

    return read(record.provider, record.commitment, record.recognition), [
        read(each.customer, each.commitment, each.recognition) for each in record.participants
    ]


def eligible_of(record: ClearingRecord) -> dict[bytes, dict[bytes, int]]:
    """Return the eligible units by customer and need."""
    return {each.customer: dict(each.eligible) for each in record.participants}


def open_clearing(raw: bytes, network: bytes | None = None) -> Signed[ClearingRecord]:
    """Return a clearing record that its provider signed; what it says is not checked.

    Raises:
        PeerError, LimitError: it is none.
    """
    signed = open_signed(raw, ClearingRecord, network=network, size_max=CLEARING_BYTES_MAX)
    if signed.author != signed.record.provider:
        raise RecordInvalid("the clearing is not signed by its provider")
    return signed


def price_of(lines: Sequence[tuple[Tier, int, int]]) -> int:
    """Return the price of an entitlement, by tier, units and price of its lines.

    Of two stages the mean, rounded up. Where needs go unserved it can be above the reserve: what
    others lose by it is charged, or it would cost nothing to state a higher price.
    """
    return ceil_div(sum(units * price for _, units, price in lines), sum(line[1] for line in lines))


def lines_of(record: ClearingRecord) -> dict[Pin, SlotAllocationRecord]:
    """Return what a clearing grants; nothing of it is offered yet."""
    lines: defaultdict[Pin, list[tuple[Tier, int, int]]] = defaultdict(list)
    for each in record.participants:
        for need, tier, units, price in each.lines:
            lines[each.customer, need].append((tier, units, price))
    return {
        (customer, need): SlotAllocationRecord(
            slot=record.slot.slot_id,
            window=record.window,
            customer=customer,
            need=need,
            tier=of[0][0],
            quantity=sum(units for _, units, _ in of),
            price=price_of(of),
            granted_ms=0,
        )
        for (customer, need), of in lines.items()
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
    granted = set(lines_of(record).values())
    named = {
        (each.slot, each.window) for each in state.slot_denominators if each.clearing == signed.id
    }
    for line in state.slot_allocations:
        told = line.model_copy(update={"granted_ms": 0})
        if (line.slot, line.window) in named and told not in granted:
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
        provider, customers = _open_inputs(record, named, signed.network)
        what = offer_of(record), provider, customers, eligible_of(record)
        check_eligible(*what)
        again = clear_window(*what, left_out=record.left_out)
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
    return Checked(signed, provider, customers)


def _outcome(participant: Participant) -> str:
    lines = [f"{quantity} in {tier} at {price}" for _, tier, quantity, price in participant.lines]
    return ", ".join(lines) or "nothing"
