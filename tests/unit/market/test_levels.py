"""The law of the market: what all leases of a node come to never exceeds its capacity."""

import asyncio
from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.allocation.fakes import Memory
from tests.unit.market.fakes import RATE, TEN_MINUTES_MS, Ledger, World, ask
from tests.unit.market.test_signing import DAY_MS, entitle, give_up
from xsc.base.errors import XscError
from xsc.base.limits import (
    EPOCH_MS,
    OFFER_MS,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_MS,
)

CAPACITY = 30
UNIT = {"storage": SLOT_STEP_BYTES, "compute": RATE}
LENGTH_MS = {"storage": STORAGE_LEASE_MS, "compute": EPOCH_MS}
numbers = st.integers(0, 2)
kinds = st.sampled_from(["storage", "storage", "compute"])
sizes = st.integers(1, CAPACITY)
steps = st.one_of(
    st.tuples(st.just("offer"), numbers, kinds, sizes),
    st.tuples(st.just("offer later"), numbers, kinds, sizes),
    st.tuples(st.just("draw"), numbers, kinds, sizes),
    st.tuples(st.just("cleared"), numbers, kinds, sizes),
    st.tuples(st.just("cleared"), numbers, kinds, sizes),
    st.tuples(st.just("for now"), numbers, kinds, sizes),
    st.tuples(st.just("renew"), st.integers(0, 9), kinds, sizes),
    st.tuples(st.just("lower"), st.integers(0, 9), kinds, st.integers(0, CAPACITY)),
    st.tuples(st.just("store"), st.integers(0, 9), kinds, sizes),
    st.tuples(st.just("drop"), st.integers(0, 9), kinds, sizes),
    st.tuples(st.sampled_from(["debt", "paid", "kill"]), numbers, kinds, sizes),
    st.tuples(
        st.just("time"),
        numbers,
        kinds,
        st.sampled_from([OFFER_MS, EPOCH_MS, TEN_MINUTES_MS, DAY_MS, STORAGE_LEASE_MS // 2]),
    ),
)


RELEASED = [
    (what, index, "storage", 20) for what, index in (("cleared", 0), ("debt", 0), ("cleared", 1))
]
PAID = ("paid", 0, "storage", 1)
KILL = ("kill", 0, "storage", 1)
FOR_NOW = ("for now", 1, "storage", 1)


class Disk(Memory):
    """Loses at a power loss what was written since the last sync."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    def write(self, changes, *, sync):
        super().write(changes, sync=sync)
        if sync:
            self.kept = dict(self.table)

    def lose(self):
        self.table = dict(self.kept)


class Debts(Ledger):
    """Says that some peers may owe nothing more."""

    short = frozenset()

    def credit_left(self, peer):
        return 0 if peer in self.short else super().credit_left(peer)


class Law:
    """One provider and three customers that sign what they like, at its door."""

    def __init__(self):
        self.world = World()
        self.customers = [self.world.node(number) for number in (1, 2, 3)]
        self.provider = self.world.node(4)
        self.provider.standing.mutual[self.customers[0].id] = 20_000
        self.provider.room.storage = CAPACITY * UNIT["storage"]
        self.provider.room.steps = CAPACITY * UNIT["compute"]
        self.held = Counter()
        self.number = 0

    async def begin(self):
        self.provider.state, self.provider.ledger = Disk(), Debts(10**15)
        self.provider.ledger.short = set()
        await self.provider.restart()

    async def step(self, what, index, kind, amount):
        provider, now_ms = self.provider, self.world.clock.now_ms()
        if what == "time":
            self.world.later(amount)
            provider.market.tidy()
        elif what == "kill":
            await asyncio.sleep(0)  # what is noted is written: nobody writes after its end
            provider.state.lose()
            await provider.restart()
            provider.market.granter.reconcile(self.held)
        elif what in ("debt", "paid"):
            change = provider.ledger.short.add if what == "debt" else provider.ledger.short.discard
            change(self.customers[index].id)
            provider.market.tidy()
        elif what == "cleared":
            await self.step("offer", index, kind, amount)
            await self.step("draw", index, kind, amount)
        elif what.startswith("offer"):
            begins_ms = now_ms + DAY_MS * (what != "offer")
            entitle(
                self.world,
                self.customers[index],
                provider,
                amount,
                kind=kind,
                window=(begins_ms, begins_ms + 200 * DAY_MS),
                until_ms=begins_ms + OFFER_MS,
                need=bytes([index]) * 16,
                slot=kind[:1].encode() * 16,
                slot_quantity=CAPACITY,
            )
        elif what in ("draw", "for now"):
            await self.lease(self.customers[index], kind, amount, is_for_now=what == "for now")
        elif entries := [e for e in provider.market.store.all("provider") if e.terms.kind == kind]:
            entry = entries[index % len(entries)]
            lease_id, customer = entry.id, entry.peer
            size = amount * UNIT[kind]
            if what == "lower":
                await give_up(self.world, self.world.of(customer), provider, lease_id, size)
            elif what == "renew":
                await self.renew(entry, size)
            elif kind == "storage" and what == "store":
                provider.market.granter.admit(lease_id, customer, size)
                provider.market.granter.stored(lease_id, size, size)
                self.count(lease_id, size)
            elif kind == "storage":
                size = min(size, self.held[lease_id])
                provider.market.granter.settle_use(lease_id, -size)
                self.count(lease_id, -size)

    def count(self, lease_id, size):
        self.held[lease_id] += size
        self.provider.room.stored = sum(self.held.values())

    async def lease(self, customer, kind, steps, *, is_for_now):
        provider, change = self.provider, {"kind": kind}
        if not is_for_now:
            offers = [e for e in provider.granted if (e.customer, e.kind) == (customer.id, kind)]
            if not offers:
                return
            end_ms = self.world.clock.now_ms() + LENGTH_MS[kind]
            change = {"offer": offers[-1], "level": steps * UNIT[kind], "end_ms": end_ms}
        self.number += 1
        lease_id = self.number.to_bytes(32, "big")
        await ask(self.world, customer, provider, lease_id, **change)

    async def renew(self, entry, size):
        """Ask for the next term on what was granted last, or at what is posted."""
        terms, change = entry.terms, {"need": entry.terms.need}
        offers = [
            e for e in self.provider.granted if e.key == self.provider.market.store.key(entry)
        ]
        if terms.cleared:
            change |= {"offer": offers[-1]} if offers else {}
            change |= {"level": size}
        await ask(self.world, self.world.of(entry.peer), self.provider, entry.id, **change)

    def check(self):
        """Count what was signed at each lease's word, by no rule of the market."""
        now_ms, taken = self.world.clock.now_ms(), Counter()
        for entry in self.provider.market.store.all("provider"):
            terms, use = entry.terms, entry.use
            is_open = now_ms < terms.end_ms and not use.given_back
            taken[terms.kind] += max(self.held[entry.id], use.level * is_open)
        for kind, sum_ in taken.items():
            assert sum_ <= CAPACITY * UNIT[kind]


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=24))
@example([*RELEASED, PAID])
@example([*RELEASED, KILL])
@example([FOR_NOW, *RELEASED[:2], ("store", 0, "storage", 20), KILL])
@example(
    [
        FOR_NOW,
        RELEASED[0],
        KILL,
        ("time", 0, "storage", DAY_MS),
        ("store", 0, "storage", 25),
        KILL,
    ]
)
@example(
    [
        RELEASED[0],
        ("store", 0, "storage", 5),
        ("time", 0, "storage", STORAGE_LEASE_MS // 2),
        ("lower", 0, "storage", 0),
        ("cleared", 1, "storage", 25),
        ("renew", 0, "storage", 20),
    ]
)
@example([(what, index, "compute", size) for what, index, _, size in RELEASED] + [PAID])
def test_the_levels_of_all_leases_never_exceed_the_capacity(taken):
    async def play():
        law = Law()
        await law.begin()
        for each in taken:
            try:
                await law.step(*each)
            except XscError:
                continue
            finally:
                law.check()

    asyncio.run(play())
