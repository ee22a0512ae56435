"""What a node signs for its needs stays within them, whatever providers offer and in any order."""

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from xsc.base.limits import EPOCH_MS, OFFER_MS, STORAGE_LEASE_MS
from xsc.market.choosing import to_lower, to_take
from xsc.market.lease import NO_NEED, LeaseEntry, advance, key_of, lowered, new_use
from xsc.terms.lease import LeaseRequest
from xsc.terms.pricing import WORTH, slot_amount
from xsc.terms.slot import STEP, Entitlement, NeedSlot

CUSTOMER = b"c" * 32
NEEDS = [bytes([number]) * 16 for number in range(2)]
UNIT = STEP["storage"]
ENDS_MS = 10**15

steps = st.one_of(
    st.tuples(st.just("offer"), st.integers(0, 3), st.integers(0, 1), st.integers(1, 60)),
    st.tuples(st.just("need"), st.integers(0, 1), st.integers(0, 40), st.integers(1, 30)),
    st.tuples(st.just("time"), st.just(0), st.just(0), st.integers(1, 3 * EPOCH_MS)),
)


def need_of(need_id, quantity, price_max, spread=1):
    part = ((bytes([1]) * 32, quantity // 2),) if spread > 1 and quantity > 1 else ()
    return NeedSlot(
        slot_id=need_id,
        kind="storage",
        quantity=quantity,
        parts=part,
        spread=spread,
        price_max=price_max * 1_000,
        valid_until_ms=ENDS_MS,
    )


def drawn_key(entry):
    return key_of(entry.terms, entry.terms.need or NO_NEED)


class Node:
    """A customer whose providers say what they like, and grant every lease that it signs."""

    def __init__(self):
        self.now_ms = 10**12
        self.needs = {}
        self.leases = []
        self.allowed = defaultdict(int)
        """By need, in micro-credits times milliseconds, what it allowed by time."""

    def taken(self):
        found = defaultdict(int)
        for entry in self.leases:
            if not entry.is_over(self.now_ms):
                found[drawn_key(entry)] += entry.use.level
        return found

    def offer(self, provider, need, quantity, price, opens_ms):
        return Entitlement(
            slot=bytes([provider]) * 16,
            window=(opens_ms, ENDS_MS),
            provider=bytes([provider]) * 32,
            customer=CUSTOMER,
            need=need,
            kind="storage",
            quantity=quantity,
            slot_quantity=quantity,
            tier="open",
            price=price * 1_000,
            granted_ms=self.now_ms,
            until_ms=self.now_ms + 60_000,
            clearing=bytes(32),
        )

    def look(self, offers):
        for entry, level in list(to_lower(self.leases, self.needs, drawn_key, self.now_ms)):
            entry.use = lowered(entry.terms, entry.use, level, self.now_ms)
        for each, level in to_take(offers, self.needs, self.taken(), self.now_ms):
            terms = LeaseRequest(
                lease_id=len(self.leases).to_bytes(32, "big"),
                provider=each.provider,
                customer=CUSTOMER,
                kind="storage",
                slot=each.slot,
                window=each.window,
                tier=each.tier,
                need=each.need,
                level=level,
                price=each.price,
                start_ms=self.now_ms,
                end_ms=self.now_ms + STORAGE_LEASE_MS,
            )
            use = new_use(terms, level)
            self.leases.append(LeaseEntry("customer", terms, use, b""))

    def pass_time(self, duration_ms):
        for need_id, need in self.needs.items():
            self.allowed[need_id] += need.quantity * need.price_max * duration_ms
        self.now_ms += duration_ms

    def check(self):
        levels, at_provider = defaultdict(int), defaultdict(int)
        for entry in self.leases:
            if not entry.is_over(self.now_ms):
                levels[entry.terms.need] += entry.use.level
                at_provider[entry.terms.need, entry.peer] += entry.use.level
                need = self.needs.get(entry.terms.need)
                assert need is not None
        for need_id, level in levels.items():
            assert level <= self.needs[need_id].quantity * UNIT
        for (need_id, provider), level in at_provider.items():
            assert level <= self.needs[need_id].most(provider) * UNIT


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=25), st.lists(st.integers(1, 40), min_size=25, max_size=25))
def test_no_offers_come_to_more_than_the_need_whatever_they_are(taken, prices):
    node = Node()
    offers = []
    for (what, one, other, amount), price in zip(taken, prices, strict=False):
        if what == "offer":
            offers.append(node.offer(one, NEEDS[other], amount, price, node.now_ms - amount))
        elif what == "need":
            # Nothing is given up of a lease's first minute.
            node.pass_time(OFFER_MS)
            if other:
                node.needs[NEEDS[one]] = need_of(NEEDS[one], other, amount, 1 + price % 3)
            else:
                node.needs.pop(NEEDS[one], None)
        else:
            node.pass_time(amount)
        node.look(offers)
        node.check()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(1, 30)), max_size=12),
    st.lists(st.integers(1, 3 * EPOCH_MS), min_size=12, max_size=12),
)
def test_nobody_owes_more_for_a_need_than_its_level_and_price_allow(said, pauses):
    node = Node()
    need = node.needs[NEEDS[0]] = need_of(NEEDS[0], 40, 20)
    for (provider, quantity, price), pause_ms in zip(said, pauses, strict=False):
        node.look([node.offer(provider, NEEDS[0], quantity, price, node.now_ms)])
        node.pass_time(pause_ms)
    uses = [advance(each.terms, each.use, node.now_ms) for each in node.leases]
    owed = sum(use.used for use in uses) // WORTH
    hour = slot_amount("storage", need.price_max, need.quantity)
    assert owed <= hour * (node.now_ms - 10**12) // EPOCH_MS
