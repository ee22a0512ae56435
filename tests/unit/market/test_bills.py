"""The law of the bill: what both sides come to is equal to the micro-credit, whatever is lost."""

import asyncio
from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.settle import settle
from tests.unit.market.fakes import A_MIB, TEN_MINUTES_MS, World
from tests.unit.market.test_signing import (
    DAY_MS,
    PRICE,
    entitle,
    leased,
    need_of,
    needs,
    signed,
)
from xsc.base.errors import PeerSilent, XscError
from xsc.base.limits import EPOCH_MS, MIB, REQUEST_WINDOW_MS, SLOT_STEP_BYTES, STORAGE_LEASE_MS
from xsc.market.account import due_micro
from xsc.market.lease import LATE_MS
from xsc.market.pricing import PriceList

times = [1, 5_000, 61_000, TEN_MINUTES_MS, EPOCH_MS, DAY_MS, STORAGE_LEASE_MS * 5 // 8]
sizes = st.integers(1, 60)
steps = st.one_of(
    st.tuples(st.just("need"), st.integers(0, 60)),
    st.tuples(st.sampled_from(["offer", "store", "drop", "price"]), sizes),
    st.tuples(st.sampled_from(["look", "look", "clear", "leased", "restart", "kill"]), st.just(0)),
    st.tuples(
        st.just("lose"), st.sampled_from([(m, a) for m in ("lease", "account") for a in (0, 1)])
    ),
    st.tuples(st.just("time"), st.sampled_from(times)),
    st.tuples(st.just("time"), st.sampled_from(times)),
)
TERM = ("time", times[-1])
BEGIN = [("need", 50), ("offer", 50), ("look", 0)]


@dataclass
class Pair:
    """A customer and an honest provider, of which answers are lost."""

    ahead_ms: int

    async def begin(self):
        self.world = world = World()
        self.customer, self.provider, self.lost = world.node(1), world.node(3), {}
        self.customer.room.storage = self.customer.room.steps = 0
        self.provider.room.storage = 200 * SLOT_STEP_BYTES
        self.provider.ledger.limit = 10**15
        self.provider.ahead_ms = self.ahead_ms
        self.price = PRICE
        await self.restart()

    async def restart(self):
        await settle()
        await self.provider.restart()
        for method, handler in self.provider.market.handlers().items():
            self.world.wire.handlers[self.provider.id][method] = self.losing(method, handler)

    def losing(self, method, handler):
        async def answer(*given):
            how = self.lost.pop(method, None)
            if how == 0:
                raise PeerSilent("it was not heard")
            reply = await handler(*given)
            if how == 1:
                raise PeerSilent("the answer was lost")
            return reply

        return answer

    async def step(self, what, amount):
        world, customer, provider = self.world, self.customer, self.provider
        leases = customer.market.store.all("customer")
        if what == "need":
            needs(customer, *([need_of(amount)] if amount else []))
        elif what == "offer":
            await self.step("clear", 0)
            window = (1_600_000_000_000, 2**61)
            more = {"window": window, "until_ms": 2**60, "slot_quantity": 200}
            entitle(world, customer, provider, amount, price=self.price, **more)
        elif what == "clear":
            provider.granted.clear()
            customer.received.clear()
        elif what == "price":
            self.price, posted = PRICE * amount // 20, A_MIB * amount // 2
            provider.settings["prices"] = PriceList(posted, posted)
        elif what == "look":
            await signed(world, customer)
        elif what == "leased":
            await leased(world, customer, provider, MIB)
        elif what == "store" and leases:
            entry = leases[amount % len(leases)]
            provider.stores(entry.id, customer.id, amount * 8 * MIB)
            await customer.market.buyer.used(entry.id, amount * 8 * MIB)
        elif what == "drop" and leases:
            entry = leases[amount % len(leases)]
            size = min(amount * 8 * MIB, entry.use.held_bytes)
            provider.drops(entry.id, size)
            await customer.market.buyer.used(entry.id, -size)
        elif what == "lose":
            self.lost["market." + amount[0]] = amount[1]
        elif what == "restart":
            await self.restart()
        elif what == "kill":
            await settle()
            await customer.restart()
        elif what == "time":
            parts = [amount] if amount <= 61_000 else [62_000, 62_000, TEN_MINUTES_MS // 3, amount]
            for part_ms in parts:
                world.later(part_ms)
                await self.settle()

    async def settle(self):
        """Do what both nodes do every few seconds."""
        now_ms = self.world.clock.now_ms()
        for entry in self.provider.market.store.all("provider"):
            if now_ms > entry.terms.end_ms + LATE_MS:
                self.provider.drops(entry.id, entry.use.held_bytes)
        await self.world.drive(self.customer.market.signing.look())
        for node in (self.customer, self.provider):
            node.market.tidy()
        await self.world.drive(self.customer.market.settlement.settle_due())

    def check(self):
        account = self.customer.market.store.account("customer", self.provider.id)
        assert account.disputed is None
        assert self.customer.health.quality_ppm(self.provider.id) == 900_000, "it is honest"
        assert not any(entry.use.denial for entry in self.customer.market.store.all("customer"))

    async def end(self):
        self.lost.clear()
        for _ in range(3):
            self.world.later(REQUEST_WINDOW_MS + 1)
            await self.settle()
            await self.world.drive(self.customer.market.settlement.settle_all())
        self.check()
        customer, provider = self.customer.id, self.provider
        signed = self.customer.market.store.account("customer", provider.id).signed_micro
        now_ms = self.world.clock.now_ms() + self.ahead_ms
        entries = provider.market.store.of("provider", customer)
        due = due_micro(provider.market.store.account("provider", customer), entries, now_ms)
        assert signed == provider.ledger.owed(customer)
        assert due == signed
        held = [
            {e.id: e.use.held_bytes for e in node.market.store.all(role) if e.use.held_bytes}
            for node, role in ((self.customer, "customer"), (provider, "provider"))
        ]
        assert held[0] == held[1]


@settings(max_examples=25, deadline=None)
@given(st.lists(steps, max_size=24), st.sampled_from([0, 0, 20_000, -20_000, 59_000, -59_000]))
@example(
    [("store", 27), TERM, TERM, ("clear", 0), ("lose", ("lease", 1)), ("look", 0), ("drop", 3)], 0
)
@example([("time", DAY_MS), ("need", 6), ("look", 0), ("time", 5_000), TERM, TERM], -59_000)
@example([("need", 0), ("time", 61_000), ("need", 1), TERM, TERM], -20_000)
def test_both_sides_have_one_bill_whatever_is_lost(taken, ahead_ms):
    async def play():
        pair = Pair(ahead_ms)
        await pair.begin()
        for each in (*BEGIN, *taken):
            try:
                await pair.step(*each)
            except XscError:
                continue
            finally:
                pair.check()
        await pair.end()

    asyncio.run(play())
