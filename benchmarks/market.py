"""What a clearing takes, a quote, a lease, and how soon what is granted is published.

The clearing is the rules of one node that knows 1,000 others, without any of them. From a need to
what is granted to it is of real nodes and the Python client.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import median
from types import SimpleNamespace
from typing import Any, Final, cast

from benchmarks import flight
from benchmarks.size import least
from xsc import api
from xsc.allocation.clearing import Bid, clear, salt_of
from xsc.allocation.clearing_record import wanted
from xsc.allocation.commitments import Commitments
from xsc.allocation.granting import Gathered
from xsc.allocation.program import state_of
from xsc.allocation.published import Published, standing
from xsc.allocation.recognition import value_of
from xsc.base.clock import ManualClock
from xsc.base.errors import NotFound
from xsc.base.grade import Grade
from xsc.base.limits import (
    LEASES_A_CUSTOMER_MAX,
    PPM,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_MS,
)
from xsc.base.log import SilentLog
from xsc.client.calls import value_of as value_in
from xsc.client.core import Core
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.market.granter import LeaseGranter
from xsc.market.headroom import Headroom
from xsc.market.lease import LeaseEntry, LeaseUse
from xsc.market.lease_store import LeaseStore, MarketNode
from xsc.market.ports import MarketPorts, MarketSettings
from xsc.market.pricing import PriceList
from xsc.node.system import SystemEntropy
from xsc.space.limits import VALUE_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import SpaceValue, TwoTierAllocationState
from xsc.terms.lease import LeaseRequest
from xsc.terms.quote import Kind
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot

PEERS: Final = least(1_000, 100)
SLOTS_EACH: Final = 10
NEEDS_EACH: Final = 4
RECOGNISED: Final = 90
NOW_MS: Final = 1_700_000_000_000
HOUR_MS: Final = 3_600_000
OWN: Final = bytes(32)
LEASES: Final = least(10_000, 100)
NOBODY: Final[Any] = None
NO_RECORD: Final = SpaceValue(record=bytes(600), value=b"")


def _slot(number: int, quantity: int) -> AvailabilitySlot:
    return AvailabilitySlot(
        slot_id=bytes([0, number]) * 8,
        kind="storage",
        quantity=quantity,
        windows=((NOW_MS - HOUR_MS, NOW_MS + 80 * HOUR_MS),),
        valid_until_ms=NOW_MS + 80 * HOUR_MS,
        price_mutual=2,
        price_one_way=4,
        reserve=8,
    )


def _commitment(random: Random) -> Commitment:
    """Return slots, and needs that all match any slot."""
    return Commitment(
        slots=tuple(_slot(number, random.randint(1_000, 100_000)) for number in range(SLOTS_EACH)),
        needs=tuple(
            NeedSlot(
                slot_id=bytes([1, number]) * 8,
                kind="storage",
                quantity=random.randint(100, 10_000),
                valid_until_ms=NOW_MS + 80 * HOUR_MS,
                price_max=random.randint(1, 20),
            )
            for number in range(NEEDS_EACH)
        ),
    )


def _said(value: bytes) -> SpaceValue:
    return SpaceValue(record=NO_RECORD.record, value=value)


def _ms(work: Callable[[], object]) -> float:
    """Return the processor time of what is computation alone."""
    begun = time.process_time()
    work()
    return 1000 * (time.process_time() - begun)


def rules(quick: bool) -> None:
    """Match and clear one scarce slot among the needs of all peers, in three stages."""
    print(f"  a node that knows {PEERS} peers of {SLOTS_EACH} slots and {NEEDS_EACH} needs")
    random = Random(13)
    nodes = [number.to_bytes(32, "big") for number in range(1, PEERS)]
    friends = random.sample(nodes, min(RECOGNISED, len(nodes)))
    slot = _slot(0, 3_000 * PEERS)
    back = value_of({OWN: PPM})
    others = [
        Published.read(node, _said(_commitment(random).to_bytes()), _said(back) if knows else None)
        for node, knows in ((node, random.random() < 0.5) for node in nodes)
    ]
    weights = value_of(dict.fromkeys(friends, PPM // len(friends)))
    own = Published.read(OWN, _said(Commitment(slots=(slot,)).to_bytes()), _said(weights))
    prices = {(e.node, need.slot_id): need.price_max for e in others for need in e.commitment.needs}
    served: Counter[str] = Counter()

    def all_at_once() -> None:
        served.clear()
        bids = [
            Bid(other.node, need_id, units, prices[other.node, need_id], *standing(own, other))
            for other in others
            for need_id, units in wanted(slot, NOW_MS, own, other).items()
        ]
        lines = clear(slot, slot.quantity, bids, salt_of(slot.slot_id, NOW_MS)).lines
        served.update(granted.tier for granted in lines.values())

    took = [_ms(all_at_once) for _ in range(1 if quick else 5)]
    stages = ", ".join(f"{tier} {count}" for tier, count in sorted(served.items()))
    print(f"  match and clear one scarce slot                    {median(took):7.0f} ms ({stages})")
    gathered = Gathered(
        now_ms=NOW_MS,
        own=own.said,
        others=tuple(other.said for other in others),
        theirs=tuple((other.node, PPM) for other in others if OWN in other.weights),
        drawn=(),
        pinned=(),
        credit=tuple((node, 10**15) for node in nodes),
        free={"storage": slot.quantity},
        is_pending=False,
    ).to_bytes()
    took = [_ms(lambda: state_of(gathered, b"")) for _ in range(1 if quick else 5)]
    print(f"  the program, from stored bytes to the state        {median(took):7.0f} ms")


class Node:
    """What a provider has, and whom it knows: all that the market asks of others here."""

    def level(self, _kind: Kind) -> int:
        return 2**50

    free = level

    def credit_left(self, _peer: bytes) -> int:
        return 10**12

    def shares_with(self, peer: bytes) -> Sequence[bytes]:
        return [peer]

    def grade(self, _peer: bytes) -> Grade:
        return "vetted"


class Spaces:
    """What nodes published: nothing but commitments."""

    def __init__(self, commitments: Mapping[bytes, Commitment]) -> None:
        self._values = {node: value.to_bytes() for node, value in commitments.items()}

    def get(self, path: str, owner: bytes) -> Any:
        if path != UserSpacePaths.COMMITMENT or owner not in self._values:
            raise NotFound("nothing is there")
        return SimpleNamespace(
            value=self._values[owner], signed=SimpleNamespace(raw=NO_RECORD.record)
        )

    def on_change(self, _told: object) -> None:
        pass

    def register_schema(self, _path: str, _check: object) -> None:
        pass


def _request(provider: bytes, customer: bytes, number: int, now_ms: int) -> LeaseRequest:
    slot = _slot(0, 1)
    return LeaseRequest(
        lease_id=number.to_bytes(32, "big"),
        provider=provider,
        customer=customer,
        kind="storage",
        slot=slot.slot_id,
        window=slot.windows[0],
        tier="open",
        need=None,
        level=0,
        price=slot.reserve,
        start_ms=now_ms,
        end_ms=now_ms + STORAGE_LEASE_MS,
    )


async def leased(count: int) -> tuple[float, float]:
    """Return the processor time, in ms, of a quote and of a lease for now that is granted.

    It is at a provider with LEASES open leases.
    """
    clock = ManualClock(NOW_MS)
    given = (clock, SystemEntropy(), NOBODY, NOBODY, SilentLog(), NOBODY, NOBODY)
    context = Context(KeyPair(b"k" * 32), bytes(32), *given)
    own = context.key.node_id
    many = [number.to_bytes(32, "little") for number in range(LEASES // LEASES_A_CUSTOMER_MAX + 1)]
    keys = [KeyPair(number.to_bytes(32, "big")) for number in range(1, count + 1)]
    slots = tuple(_slot(number, 1_000) for number in range(SLOTS_EACH))
    commitments = Commitments(
        context,
        cast(Any, Spaces({own: Commitment(slots=slots)})),
        NOBODY,
        posted=NOBODY,
        by_default=NOBODY,
        on_withdrawn=NOBODY,
        on_recognised=NOBODY,
        before_stand=NOBODY,
    )
    commitments.start()
    store = LeaseStore(MemoryKeyValue(), context.network, own, NOBODY, NOBODY)
    for number in range(LEASES):
        request = _request(own, many[number % len(many)], 2**64 + number, NOW_MS)
        use = LeaseUse(NOW_MS, held_bytes=SLOT_STEP_BYTES)
        store.add(LeaseEntry("provider", request, use, b"", b""))
    ports = MarketPorts(
        peers=NOBODY,
        credit=cast(Any, Node()),
        quality=cast(Any, Node()),
        standing=cast(Any, commitments),
        capacity=cast(Any, Node()),
        leaving=NOBODY,
        needs=NOBODY,
        need_of=NOBODY,
        on_need=NOBODY,
    )
    ports.granted = tuple
    settings = MarketSettings(
        PriceList(1370, 278, 200_000, 100_000),
        {"storage": 5480, "compute": 1112},
        10_000,
        3_600_000,
    )
    node = MarketNode(context, ports, settings, store)
    granter = LeaseGranter(node, Headroom(node))
    quotes, grants = [], []
    for number, key in enumerate(keys, 1):
        begun = time.process_time_ns()
        assert commitments.quote("storage", own, key.node_id)
        quotes.append((time.process_time_ns() - begun) / 1e6)
        asked = sign(_request(own, key.node_id, number, NOW_MS), key, context.network).raw
        begun = time.process_time_ns()
        await granter.on_lease(key.node_id, {"request": asked, "least": SLOT_STEP_BYTES}, ())
        grants.append((time.process_time_ns() - begun) / 1e6)
    return median(quotes), median(grants)


def granted(homes: Sequence[Path], quick: bool) -> None:
    provider, customer = Core(homes[0]), Core(homes[-1])
    slot_id = provider.ask(
        api.market.DECLARE,
        role="offer",
        kind="storage",
        quantity=64 * SLOT_STEP_BYTES,
        price_micro=1,
    )["id"]
    need_id = customer.ask(
        api.market.DECLARE,
        role="need",
        kind="storage",
        quantity=SLOT_STEP_BYTES,
        price_micro=9,
        spread=1,
    )["id"]
    owner = provider.ask(api.space.PUT, b"", at="bench/owner")["owner"]
    followed = f"{owner}:{UserSpacePaths.ALLOCATION_STATE}"
    took = []
    with customer.events(api.space.WATCH, under=followed) as changes:
        for number in range(least(10 if quick else 40, 2)):
            steps = 2 + number % 50
            begun = time.perf_counter()
            customer.ask(api.market.EDIT, id=need_id, quantity=steps * SLOT_STEP_BYTES)
            for change in changes:
                state = TwoTierAllocationState.from_bytes(
                    value_in(change["value"]), size_max=VALUE_BYTES_MAX
                )
                slots = state.slot_denominators
                if [line.quantity for slot in slots for line in slot.allocations] == [steps]:
                    break
            took.append(time.perf_counter() - begun)
    customer.ask(api.market.WITHDRAW, id=need_id)
    provider.ask(api.market.WITHDRAW, id=slot_id)
    print(f"  from a need to its grant, published, at its node, p50 {median(took) * 1e3:7.0f} ms")


def run(homes: Sequence[Path], quick: bool) -> None:
    """Measure, and print."""
    print("\nmarket: what is granted ahead of use")
    rules(quick)
    quote, grant = asyncio.run(leased(least(100, 10)))
    print(f"  a quote from the slots of a provider               {quote:7.2f} ms")
    print(f"  a lease for now at a provider of {LEASES} open leases  {grant:7.2f} ms")
    granted(homes, quick)
    flight.run(homes, quick)
