"""Makes signed clearings of random worlds, with real keys and records of spaces."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from xsc.allocation.clearing_record import Clearing, admitted, read_published
from xsc.allocation.published import Published
from xsc.allocation.recognition import value_of
from xsc.base.limits import ALLOCATIONS_MAX, CLEARINGS_BYTES_MAX
from xsc.identity.envelope import Signed, sign
from xsc.identity.keys import KeyPair
from xsc.space.itc import event_bytes
from xsc.space.paths import UserSpacePaths
from xsc.space.record import SpaceRecord, value_digest
from xsc.terms.clearing import (
    ClearingProof,
    ClearingRecord,
    SlotAllocationRecord,
    SlotDenominators,
    SpaceValue,
    TwoTierAllocationState,
)
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot

NOW_MS = 1_700_000_000_000
HOUR = 3_600_000
DAY = ((NOW_MS - HOUR, NOW_MS + 24 * HOUR),)
UNTIL_MS = NOW_MS + 48 * HOUR


def key(number: int) -> KeyPair:
    return KeyPair(number.to_bytes(32, "big"))


def slot(**changes) -> AvailabilitySlot:
    fields = {
        "slot_id": bytes(16),
        "kind": "compute",
        "quantity": 100,
        "windows": DAY,
        "valid_until_ms": UNTIL_MS,
        "price_mutual": 2,
        "price_one_way": 4,
        "reserve": 8,
    }
    return AvailabilitySlot(**{**fields, **changes})


def need(number: int = 1, **changes) -> NeedSlot:
    fields = {
        "slot_id": bytes([number]) * 16,
        "kind": "compute",
        "quantity": 40,
        "price_max": 10,
        "valid_until_ms": UNTIL_MS,
    }
    return NeedSlot(**{**fields, **changes})


def space_value(owner: KeyPair, network: bytes, path: str, value: bytes) -> SpaceValue:
    """Return a value and the record of the owner's space that signs it."""
    record = SpaceRecord(
        path=path,
        sequence=1,
        written_ms=NOW_MS,
        domain=bytes(32),
        stamp=event_bytes(3),
        digest=value_digest(value),
        size_bytes=len(value),
    )
    return SpaceValue(record=sign(record, owner, network).raw, value=value)


def published(
    owner: KeyPair, network: bytes, commitment: Commitment, weights: dict[bytes, int]
) -> Published:
    """Publish, and read it back as anybody does."""
    given = None
    if weights:
        given = space_value(owner, network, UserSpacePaths.RECOGNITION, value_of(weights))
    said = space_value(owner, network, UserSpacePaths.COMMITMENT, commitment.to_bytes())
    return read_published((owner.node_id, said, given), network=network, at_ms=NOW_MS)


def steps_of(work: Callable[[], object]) -> int:
    """Return how many instructions of Python some work takes: the same on every machine."""
    steps = 0

    def trace(frame, event, _arg):
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    # What other tests have left would be finalized meanwhile, and counted.
    gc.collect()
    gc.disable()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        gc.enable()
    return steps


def taking(
    own: Published,
    others: Iterable[Published],
    offered: AvailabilitySlot,
    bytes_max: int = CLEARINGS_BYTES_MAX,
) -> dict[bytes, dict[bytes, int]]:
    """Return what the needs of those that take part want, by customer in order of admission."""
    found, _ = admitted(
        offered, NOW_MS, own, others, bytes_max=bytes_max, needs_max=ALLOCATIONS_MAX
    )
    return {customer.node: dict(units) for customer, units in found}


def cleared(
    provider: KeyPair,
    own: Published,
    others: list[Published],
    network: bytes,
    capacity: int = 100,
) -> Signed[ClearingRecord]:
    """Clear the one slot as a provider does; everything that is wanted is eligible."""
    (offered,) = own.commitment.slots
    eligible = taking(own, others, offered)
    record = ClearingRecord(
        provider=own.named,
        slot=offered,
        at_ms=NOW_MS,
        capacity=capacity,
        participants=tuple(sorted(each.named for each in others if each.node in eligible)),
        eligible=tuple(
            sorted((node, *each) for node, units in eligible.items() for each in units.items())
        ),
        left_out=tuple(sorted({other.node for other in others} - eligible.keys())),
    )
    return sign(record, provider, network)


def state_of(
    made: Signed[ClearingRecord],
    own: Published,
    others: Iterable[Published],
    change: Callable[[SlotAllocationRecord], SlotAllocationRecord] = lambda line: line,
    **changes: Any,
) -> TwoTierAllocationState:
    """Return what the provider publishes of a clearing, with other lines where they change."""
    record = made.record
    outcome = Clearing(record, own, {each.node: each for each in others}).clear()
    window = record.slot.window_at(record.at_ms)
    assert window is not None
    lines = (
        SlotAllocationRecord(
            customer=customer, need=need_id, granted_ms=NOW_MS, **granted._asdict()
        )
        for (customer, need_id), granted in sorted(outcome.lines.items())
    )
    said = {
        "slot": record.slot.slot_id,
        "window": window,
        "kind": record.slot.kind,
        "rule": record.slot.rule,
        "clearing": made.id,
        "tiers": outcome.tiers,
        "allocations": tuple(change(line) for line in lines),
    }
    return TwoTierAllocationState(slot_denominators=(SlotDenominators(**(said | changes)),))


def said_of(state: TwoTierAllocationState, owner: KeyPair, network: bytes) -> SpaceValue:
    """Return a state as its owner's space has it."""
    return space_value(owner, network, UserSpacePaths.ALLOCATION_STATE, state.to_bytes())


def named(*published: Published) -> list[SpaceValue]:
    """Return what records name of what was published."""
    return [value for each in published for value in each.values]


def proof(signed: Signed[ClearingRecord], values: Iterable[SpaceValue], packer: KeyPair) -> bytes:
    """Pack a record with what it names."""
    packed = ClearingProof(clearing=signed.raw, named=tuple(values))
    return sign(packed, packer, signed.network).raw


def random_clearing(
    random: Random, network: bytes
) -> tuple[Signed[ClearingRecord], list[SpaceValue]]:
    """Return the signed clearing of a random world of one provider and up to eight customers.

    With it comes what it names.
    """
    provider = key(1)
    customers = [key(2 + number) for number in range(random.randint(0, 8))]
    offered = slot(
        quantity=random.choice([10, 100, 10**6]),
        rule=random.choice(["weighted-uniform", "weighted-uniform", "proportional"]),
        location=random.choice(["", "Berlin"]),
        filters=random.choice([(), (("tier", "one_way"),)]),
    )
    weights = {
        customer.node_id: random.choice([9_999, 10_000, 50_000, 100_000])
        for customer in customers
        if random.random() < 0.7
    }
    own = published(provider, network, Commitment(slots=(offered,)), weights)
    others = []
    for customer in customers:
        needs = tuple(
            need(
                number,
                quantity=(most := random.randint(1, offered.quantity)),
                price_max=random.randint(1, 20),
                location=random.choice(["", "", "berlin", "Paris"]),
                filters=random.choice([(), (), (("location", "berlin"),), (("sort", "x"),)]),
                windows=random.choice([(), ((NOW_MS, NOW_MS + random.choice([1, 30]) * HOUR),)]),
                caps=((provider.node_id, most // 2),) if random.random() < 0.3 else (),
            )
            for number in range(1, random.randint(2, 4))
        )
        gives = {provider.node_id: 60_000} if random.random() < 0.6 else {}
        said = Commitment(needs=needs, damping_ppm=random.choice([1_000_000, 500_000]))
        others.append(published(customer, network, said, gives))
    signed = cleared(provider, own, others, network, random.randint(0, offered.quantity))
    return signed, named(own, *others)


def present(allocator) -> list[Signed[ClearingRecord]]:
    """Return the clearings that a node's state names."""
    named = [each.clearing for each in allocator.state.slot_denominators]
    return [allocator.records.opened(record_id) for record_id in named]
