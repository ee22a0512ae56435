"""The laws of what is held undrawn: both sides agree, and nothing is owed twice."""

from dataclasses import replace
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from xsc.base.limits import EPOCH_MS, GIB
from xsc.market import hold as holding
from xsc.market.entitlements import LEASE_UNIT
from xsc.market.lease import next_voucher, with_voucher
from xsc.market.lease_entry import LeaseEntry
from xsc.terms.pricing import PRICE_UNIT, SLOT_UNIT
from xsc.terms.slot import Entitlement, NeedSlot, pack_windows

WINDOW = (10_000, 10_000 + 6 * EPOCH_MS)
PRICE_MAX, QUANTITY_MAX = 50, 400
WORTH = {kind: Fraction(SLOT_UNIT[kind], PRICE_UNIT[kind]) for kind in PRICE_UNIT}
"""What an epoch of a step comes to at a price of one."""

steps = st.one_of(
    st.tuples(st.just("time"), st.integers(1, EPOCH_MS)),
    st.tuples(st.just("grant"), st.integers(1, QUANTITY_MAX)),
    st.tuples(st.just("price"), st.integers(1, PRICE_MAX)),
    st.tuples(st.just("recall"), st.just(0)),
    st.tuples(st.just("number"), st.just(0)),
    st.tuples(st.just("use"), st.integers(0, QUANTITY_MAX)),
    st.tuples(st.just("settle"), st.just(0)),
    st.tuples(st.just("kill"), st.just(0)),
)


class Side:
    """One side's account, as `Holds` keeps it; a kill leaves what was written last."""

    def __init__(self, role, kind):
        self.role, self.kind, self.entry, self.kept = role, kind, None, None

    def look(self, each, left, now_ms):
        if self.entry is None:
            if each is None:
                return
            terms = holding.account_terms(each.key, each.opens_ms, each.closes_ms)
            hold = holding.begun(each, self.kind)
            self.entry = LeaseEntry(
                self.role, terms, holding.opened(0, now_ms), b"", b"", hold=hold
            )
        before = self.entry.use.billed_micro
        self.entry.hold, self.entry.use = holding.changed(
            self.entry.use, self.entry.hold, each, left, now_ms
        )
        assert self.entry.use.billed_micro >= before, "what is owed never falls"
        self.kept = self.entry.hold, self.entry.use

    def kill(self):
        if self.entry is not None:
            self.entry.hold, self.entry.use = self.kept

    @property
    def due(self):
        return 0 if self.entry is None else self.entry.use.billed_micro


class Market:
    """A provider, a customer and the exact amount, which is counted as a sum over time."""

    def __init__(self, kind):
        self.kind, self.now_ms = kind, 0
        self.each, self.used = None, 0
        self.number = 1
        self.sides = Side("customer", kind), Side("provider", kind)
        self.exact = 0
        """In micro-credits times an epoch."""

    @property
    def left(self):
        if self.each is None:
            return 0
        return max(0, self.each.quantity - self.used)

    def look(self):
        unit = LEASE_UNIT[self.kind]
        present = self.each is not None and WINDOW[0] <= self.now_ms < self.each.until_ms
        each = self.each if present else None
        for side in self.sides:
            side.look(each, self.left * unit if present else 0, self.now_ms)

    def step(self, what, amount):
        if what == "time":
            if self.each is not None:
                start = max(self.now_ms, WINDOW[0])
                end = min(self.now_ms + amount, self.each.until_ms)
                self.exact += max(0, end - start) * self.left * self.each.price * WORTH[self.kind]
            self.now_ms += amount
        elif what == "grant":
            first = self.now_ms if self.each is None else self.each.granted_ms
            self.each = Entitlement(
                slot=b"s" * 16,
                opens_ms=WINDOW[0],
                closes_ms=WINDOW[1],
                window=WINDOW,
                provider=b"p" * 32,
                customer=b"c" * 32,
                need=b"n" * 16,
                kind=self.kind,
                quantity=amount,
                tier="open",
                price=7,
                granted_ms=first,
                until_ms=min(WINDOW[1], max(first, WINDOW[0]) + 2 * EPOCH_MS),
                clearing=b"c" * 32,
            )
        elif what == "price" and self.each is not None:
            self.each = replace(self.each, price=amount)
        elif what == "recall":
            self.each = None
        elif what == "number" and self.each is not None:
            until_ms = min(WINDOW[1], max(self.now_ms, WINDOW[0]) + 2 * EPOCH_MS)
            self.each = replace(self.each, granted_ms=self.now_ms, until_ms=until_ms)
        elif what == "use":
            self.used = amount
        elif what == "settle":
            entry = self.sides[0].entry
            if entry is not None and (voucher := next_voucher(entry.terms, entry.use, 0)):
                assert voucher.number > entry.use.voucher_number
                assert voucher.amount_micro > entry.use.voucher_micro
                entry.use = with_voucher(entry.use, voucher)
        elif what == "kill":
            for side in self.sides:
                side.kill()


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["storage", "compute"]), st.lists(steps, max_size=40))
def test_both_sides_bill_what_was_held_and_no_time_twice(kind, taken):
    market = Market(kind)
    for what, amount in taken:
        market.step(what, amount)
        market.look()
        customer, provider = (side.due for side in market.sides)
        assert customer == provider, "they agree"
        assert customer <= market.exact // EPOCH_MS, "nothing is owed twice, or for nothing"
    looks = len(taken) + 1
    assert market.sides[0].due >= market.exact // EPOCH_MS - looks


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 2**40),
    st.integers(1, 2**20),
    st.lists(st.integers(0, 3 * EPOCH_MS), min_size=1, max_size=12),
)
def test_in_pieces_it_costs_the_same(quantity, price, moments):
    hold = holding.Hold(
        b"p" * 32,
        b"s" * 16,
        0,
        b"c" * 32,
        b"n" * 16,
        "storage",
        b"",
        price,
        quantity,
        2**60,
        0,
    )
    pieces, use = hold, holding.opened(0, 0)
    for moment in sorted(moments):
        pieces, use = holding.counted(use, pieces, moment)
    _, once = holding.counted(holding.opened(0, 0), hold, max(moments))
    assert (
        use.billed_micro == once.billed_micro == quantity * price * max(moments) // (GIB * EPOCH_MS)
    )


looks = st.lists(
    st.tuples(
        st.integers(0, EPOCH_MS),
        st.one_of(st.none(), st.tuples(st.integers(1, 9), st.integers(0, 9))),
    ),
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["storage", "compute"]), st.booleans(), looks)
def test_a_need_allows_its_quantity_and_price_for_the_time_that_passed(kind, windowed, taken):
    """Whatever it is edited to, whenever its windows are, and however often it is looked at."""
    need = NeedSlot(
        slot_id=b"n" * 16,
        kind=kind,
        quantity=9,
        price_max=9,
        windows_packed=pack_windows([WINDOW]) if windowed else b"",
        valid_until_ms=2**60,
    )
    allowance, stated, now_ms, exact = holding.new_allowance(need, 0), need, 0, 0
    for passed_ms, edit in taken:
        now_ms += passed_ms
        exact += stated.quantity * stated.price_max * passed_ms * WORTH[kind]
        if edit is not None:
            quantity, price = edit
            stated = need.model_copy(update={"quantity": quantity, "price_max": price})
        before, allowance = allowance, holding.allowed(allowance, stated, now_ms)
        assert allowance.allowed_micro >= before.allowed_micro
    assert allowance.allowed_micro == exact // EPOCH_MS
    gone = holding.allowed(allowance, None, now_ms)
    later = holding.allowed(gone, None, now_ms + EPOCH_MS)
    assert later.allowed_micro == gone.allowed_micro == exact // EPOCH_MS


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_account_counts_no_more_than_it_may_sign_and_no_less_than_it_has(billed, more, left):
    use = replace(holding.opened(billed, 0), used=billed + more, billed_micro=billed + more)
    bounded = holding.bounded(use, left)
    assert bounded.billed_micro == billed + min(more, left)
