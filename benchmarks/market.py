"""What a recompute takes, a quote, and how soon what is granted is published.

The recompute is the rules of one node that knows 10 000 others, without any of them. From a need
to what is granted to it is of real nodes and the Python client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final, cast

from benchmarks.size import least
from xsc.allocation.clearing_record import Published
from xsc.allocation.deciding import Inputs, begin
from xsc.allocation.granting import Cleared, Seen
from xsc.allocation.queues import Key, Queues
from xsc.base.limits import LEASES_A_CUSTOMER_MAX, STORAGE_LEASE_BYTES, STORAGE_LEASE_MS
from xsc.base.log import SilentLog
from xsc.client.core import Core
from xsc.client.market import MarketCalls
from xsc.client.space import SpaceCalls, value_of
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.keys import KeyPair
from xsc.market.credit_limits import CreditLimits
from xsc.market.entitlements import SlotRoom
from xsc.market.granter import LeaseGranter
from xsc.market.headroom import Headroom
from xsc.market.lease import LeaseTerms, LeaseUse
from xsc.market.lease_entry import LeaseEntry
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts, MarketSettings
from xsc.market.pricing import PriceList
from xsc.node.system import SystemClock, SystemEntropy
from xsc.space.limits import VALUE_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import SpaceValue, TwoTierAllocationState
from xsc.terms.quote import Kind, Tier
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot, SlotKind, pack_windows

PARTICIPANTS: Final = least(10_000, 300)
SLOTS_EACH: Final = 10
SITES: Final = 20
KINDS: Final[tuple[SlotKind, ...]] = ("storage", "egress", "compute")
RECOGNISED: Final = 20
NOW_MS: Final = 1_700_000_000_000
HOUR_MS: Final = 3_600_000
OWN: Final = bytes(32)
LEASES: Final = least(10_000, 100)
NOBODY: Final[Any] = None
NO_RECORD: Final = SpaceValue(record=bytes(600), value=b"")


def _commitment(random: Random, start_ms: int | None = None) -> Commitment:
    """Return half of SLOTS_EACH offers and half of them needs, at one site.

    Their windows begin at one time, or each within a day before or after now.
    """
    site = f"site-{random.randrange(SITES)}"
    half = SLOTS_EACH // 2
    slots, needs = [], []
    for number in range(half):
        kind = KINDS[number % 3]
        start = NOW_MS + random.randrange(-24, 24) * HOUR_MS if start_ms is None else start_ms
        windows = pack_windows([(start, start + 8 * HOUR_MS)])
        slots.append(
            AvailabilitySlot(
                slot_id=bytes([0, number]) * 8,
                kind=kind,
                quantity=random.randint(1_000, 100_000),
                windows_packed=windows,
                location=site,
                valid_until_ms=NOW_MS + 80 * HOUR_MS,
                price_mutual=2,
                price_one_way=4,
                reserve=8,
            )
        )
        needs.append(
            NeedSlot(
                slot_id=bytes([1, number]) * 8,
                kind=kind,
                quantity=random.randint(100, 10_000),
                quantity_min=random.choice([1, 100]),
                windows_packed=windows,
                location=random.choice(["", site, site]),
                valid_until_ms=NOW_MS + 80 * HOUR_MS,
                price_max=random.randint(1, 20),
            )
        )
    return Commitment(slots=tuple(slots), needs=tuple(needs))


class Known:
    """What one node knows: itself, the others, who may take part, and what it cleared last."""

    def __init__(self, random: Random) -> None:
        nodes = [number.to_bytes(32, "big") for number in range(1, PARTICIPANTS)]
        friends = random.sample(nodes, RECOGNISED)
        own = _commitment(random, NOW_MS - HOUR_MS)
        self.own = Published(OWN, own, NO_RECORD, dict.fromkeys(friends, 30_000))
        self.others = {node: self._said(random, node) for node in nodes}
        self.queues = Queues(OWN)
        self.cleared: Mapping[Key, Cleared] = {}
        self.seen: Seen | None = None

    @staticmethod
    def _said(random: Random, node: bytes) -> Published:
        weights = {OWN: 30_000} if random.random() < 0.5 else {}
        return Published(node, _commitment(random), NO_RECORD, weights)

    def gather(self) -> None:
        """Take in what all others have published, from nothing."""
        self.queues, self.cleared, self.seen = Queues(OWN), {}, None
        self.queues.change_own(self.own, NOW_MS)
        for node, other in self.others.items():
            self.queues.change(node, other, NOW_MS)

    def allocate(self) -> None:
        """Play a round: clear what changed."""
        free: dict[Kind, int] = {"storage": 2**50, "compute": 2**50}
        inputs = Inputs(
            now_ms=NOW_MS,
            salt=bytes(32),
            own=self.own,
            others=self.queues.others(),
            theirs={},
            drawn={},
            credit=dict.fromkeys(self.queues.takers(), 10**12),
            free=free,
            before=self.cleared,
            is_pending=False,
            queues=self.queues,
            last=self.seen,
        )
        made = begin(inputs, SlotRoom(free, NOW_MS))
        for _ in made.run():
            pass
        self.cleared, self.seen = made.cleared, made.seen

    def publish(self, node: bytes, commitment: Commitment) -> None:
        """Take in a changed commitment of another node, and play a round."""
        before = self.others[node]
        self.others[node] = Published(node, commitment, NO_RECORD, before.weights)
        self.queues.change(node, self.others[node], NOW_MS)
        self.allocate()

    def offer(self, number: int) -> None:
        """Change an own slot, and play a round."""
        old = self.own.commitment
        slots = list(old.slots)
        slots[number] = slots[number].model_copy(update={"quantity": slots[number].quantity + 1})
        changed = Commitment(slots=tuple(slots), needs=old.needs)
        self.own = Published(OWN, changed, NO_RECORD, self.own.weights)
        self.queues.change_own(self.own, NOW_MS)
        self.allocate()


def _ms(work: Callable[[], object]) -> float:
    """Return the processor time of what is computation alone."""
    begun = time.process_time()
    work()
    return 1000 * (time.process_time() - begun)


def _changed(commitment: Commitment) -> Commitment:
    need = commitment.needs[0]
    more = need.model_copy(update={"quantity": need.quantity + 1, "number": need.number + 1})
    return Commitment(slots=commitment.slots, needs=(more, *commitment.needs[1:]))


def rules(quick: bool) -> None:
    print(f"  the rules of a node that knows {PARTICIPANTS * SLOTS_EACH} slots and needs")
    random = Random(13)
    known = Known(random)

    def full() -> None:
        known.gather()
        known.allocate()

    whole = [_ms(full) for _ in range(1 if quick else 3)]
    slots = known.own.commitment.slots
    matched = [len(known.queues.needs_of(slot.slot_id)) for slot in slots]
    taking = {
        participant.customer
        for each in known.cleared.values()
        for participant in each.record.participants
    }
    matching = sorted(known.queues.takers())

    def change(node: bytes) -> float:
        new = _changed(known.others[node].commitment)
        return _ms(lambda: known.publish(node, new))

    touching = [change(node) for node in random.sample(matching, least(50, 1))]
    admitted = [change(node) for node in random.sample(sorted(taking), least(50, 1))]
    own = [_ms(lambda n=n: known.offer(n)) for n in range(len(slots)) for _ in range(3)]  # type: ignore[misc]
    still = [_ms(known.allocate) for _ in range(5)]
    print(f"  needs that match an own slot                       {min(matched)} to {max(matched)}")
    print(f"  everything from nothing                            {median(whole):7.0f} ms")
    print(f"  a peer's need changed, and its round               {median(touching):7.2f} ms")
    print(f"  a need changed of a peer that takes part, likewise {median(admitted):7.2f} ms")
    print(f"  an own slot changed, likewise                      {median(own):7.2f} ms")
    print(f"  a round without a change                           {median(still):7.2f} ms")


class Capacity:
    """What a provider has."""

    def storage_capacity_bytes(self) -> int:
        return 2**50

    compute_capacity_steps = storage_free_bytes = compute_steps_free = storage_capacity_bytes

    def tier(self, customer: bytes) -> Tier:
        return "mutual" if customer[0] % 2 else "open"


async def quoted(count: int) -> float:
    """Return the processor time of a signed quote at a provider with LEASES open leases, in ms."""
    context = Context(
        KeyPair(b"k" * 32), bytes(32), SystemClock(), SystemEntropy(), NOBODY, NOBODY, SilentLog()
    )
    own, now_ms, capacity = context.key.node_id, context.clock.now_ms(), Capacity()
    customers = [bytes([number]) * 32 for number in range(LEASES // LEASES_A_CUSTOMER_MAX + 1)]
    store = LeaseStore(MemoryKeyValue(), context.network, NOBODY)
    store.add(
        [
            LeaseEntry(
                "provider",
                LeaseTerms(
                    lease_id=number.to_bytes(32, "big"),
                    kind="storage" if number % 2 else "compute",
                    provider=own,
                    customer=customers[number % len(customers)],
                    price=3,
                    quantity=STORAGE_LEASE_BYTES,
                    start_ms=now_ms,
                    end_ms=now_ms + STORAGE_LEASE_MS,
                ),
                LeaseUse(now_ms),
                b"",
                b"",
            )
            for number in range(LEASES)
        ]
    )
    ports = MarketPorts(
        peers=NOBODY,
        credit=NOBODY,
        quality=NOBODY,
        standing=cast(Any, capacity),
        capacity=cast(Any, capacity),
        leaving=NOBODY,
        granted=tuple,
        received=NOBODY,
        billed=NOBODY,
        needs=NOBODY,
        on_denied=NOBODY,
    )
    settings = MarketSettings(PriceList(1370, 278, 200_000, 100_000), 5480, 1112, 10_000, 3_600_000)
    limits = CreditLimits(context, ports, store)
    headroom = Headroom(context, ports, settings, store, limits)
    granter = LeaseGranter(context, ports, settings, store, limits=limits, headroom=headroom)
    took = []
    for number in range(count):
        lease = store.get("provider", number.to_bytes(32, "big"))
        assert lease is not None
        lease.reserved += 1
        begun = time.process_time_ns()
        await granter.on_quote(customers[0], {"kind": KINDS[number % 2 * 2]}, ())
        took.append((time.process_time_ns() - begun) / 1e6)
    return median(took)


def granted(homes: Sequence[Path], quick: bool) -> None:
    provider, customer = MarketCalls(Core(homes[0])), MarketCalls(Core(homes[-1]))
    slot_id = provider.declare("offer", "storage", {"quantity": 64, "price_micro": 1})["id"]
    need_id = customer.declare("need", "storage", {"quantity": 1, "price_micro": 9})["id"]
    owner = SpaceCalls(provider.core).put("bench/owner", b"")["owner"]
    took = []
    with SpaceCalls(customer.core).watch(f"{owner}:{UserSpacePaths.ALLOCATION_STATE}") as changes:
        for number in range(least(10 if quick else 40, 2)):
            quantity = 2 + number % 50
            begun = time.perf_counter()
            customer.edit(need_id, {"quantity": quantity})
            for change in changes:
                state = TwoTierAllocationState.from_bytes(
                    value_of(change["value"]), size_max=VALUE_BYTES_MAX
                )
                if [line.quantity for line in state.slot_allocations] == [quantity]:
                    break
            took.append(time.perf_counter() - begun)
    customer.withdraw(need_id)
    provider.withdraw(slot_id)
    print(f"  from a need to its grant, published, at its node, p50 {median(took) * 1e3:7.0f} ms")


def run(homes: Sequence[Path], quick: bool) -> None:
    """Measure, and print."""
    print("\nmarket: what is granted ahead of use")
    rules(quick)
    took = asyncio.run(quoted(least(100, 10)))
    print(f"  a signed quote at a provider of {LEASES} open leases    {took:7.2f} ms")
    granted(homes, quick)
