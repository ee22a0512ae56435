"""The laws of granting ahead of use, over any order of needs, draws, own use and time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gathering import inputs_of, lines_in
from xsc.allocation.granting import OFFER_PAUSE_MS, OFFER_PAUSE_MS_MAX, clear_all, entitlements
from xsc.allocation.published import Published
from xsc.base.limits import OFFER_MS, PRICE_BYTES, SLOT_STEP_BYTES
from xsc.terms.clearing import SpaceValue, TwoTierAllocationState
from xsc.terms.slot import (
    AvailabilitySlot,
    Commitment,
    EntitlementKey,
    NeedSlot,
)

NOTHING = SpaceValue(record=b"", value=b"")
PROVIDER = b"p" * 32
CUSTOMERS = [bytes([number]) * 32 for number in range(1, 4)]
DAY_MS = 24 * 3_600_000
CAPACITY = 30
A_STEP = PRICE_BYTES // SLOT_STEP_BYTES
"""The price a GiB and hour that is a micro-credit a step and hour."""


def slot_of(number, quantity, start, end):
    return AvailabilitySlot(
        slot_id=bytes([number]) * 16,
        kind="storage",
        quantity=quantity,
        windows=((start, end),),
        valid_until_ms=end,
        price_mutual=8 * A_STEP,
        price_one_way=9 * A_STEP,
        reserve=10 * A_STEP,
    )


SLOTS = (slot_of(1, 20, 0, 9 * DAY_MS), slot_of(2, 25, 2 * DAY_MS, 12 * DAY_MS))
WEIGHTS = {CUSTOMERS[0]: 300_000, CUSTOMERS[1]: 100_000}
OWN = Published(PROVIDER, Commitment(slots=SLOTS), NOTHING, WEIGHTS, None)
steps = st.one_of(
    st.tuples(st.just("need"), st.integers(0, 2), st.integers(0, 40)),
    st.tuples(st.just("draw"), st.integers(0, 9), st.integers(1, 20)),
    st.tuples(st.just("free"), st.integers(0, 9), st.integers(1, 20)),
    st.tuples(st.just("own"), st.integers(0, 0), st.integers(0, CAPACITY)),
    st.tuples(st.just("time"), st.integers(0, 0), st.integers(1, 3 * DAY_MS)),
)


class Model:
    """One provider: what is granted follows from passes, what is drawn is what leases took."""

    def __init__(self):
        self.now_ms = 1
        self.needs = {}
        self.numbers = dict.fromkeys(CUSTOMERS, 0)
        self.drawn = {}
        self.own = 0
        self.credit_micro = 10**9
        self.last = TwoTierAllocationState()
        self.granted = []
        self.pinned = None
        """What of the draws is not cleared again; all of it where None."""

    def published(self, node):
        needs = (self.needs[node],) if node in self.needs else ()
        theirs = {PROVIDER: 200_000} if node == CUSTOMERS[0] else {}
        return Published(node, Commitment(needs=needs), NOTHING, theirs, None)

    @property
    def free(self):
        return CAPACITY - self.own - sum(self.drawn.values())

    def clear(self):
        """Clear everything; return whether a window was cleared anew."""
        inputs = inputs_of(
            now_ms=self.now_ms,
            own=OWN,
            others={node: self.published(node) for node in self.needs},
            drawn=self.drawn,
            pinned=self.drawn if self.pinned is None else self.pinned,
            credit=dict.fromkeys(self.needs, self.credit_micro),
            free={"storage": self.free},
        )
        self.last, self.records = clear_all(inputs, self.last)
        needs = {(node, need.slot_id): need for node, need in self.needs.items()}
        slots = {slot.slot_id: slot for slot in SLOTS}
        self.granted = list(entitlements(PROVIDER, self.last, slots, needs, self.now_ms))
        return bool(self.records)

    def left(self, each):
        key = each.key
        present = each.window[0] <= self.now_ms < each.until_ms
        return max(0, each.quantity - self.drawn.get(key, 0)) if present else 0

    def step(self, what, index, amount):
        if what == "need":
            node = CUSTOMERS[index]
            self.needs.pop(node, None)
            self.numbers[node] += 1
            if amount:
                self.needs[node] = NeedSlot(
                    slot_id=b"n" * 16,
                    kind="storage",
                    quantity=amount,
                    valid_until_ms=2**60,
                    price_max=40 * A_STEP,
                    number=self.numbers[node],
                )
        elif what == "draw":
            usable = [each for each in self.granted if self.left(each)]
            if usable:
                each = usable[index % len(usable)]
                key = each.key
                taken = min(amount, self.left(each), self.free)
                self.drawn[key] = self.drawn.get(key, 0) + taken
        elif what == "free":
            if self.drawn:
                key = sorted(self.drawn)[index % len(self.drawn)]
                self.drawn[key] = max(0, self.drawn[key] - amount)
        elif what == "own":
            # Own use takes what nobody was granted.
            undrawn = sum(
                max(
                    0,
                    each.quantity - self.drawn.get(each.key, 0),
                )
                for each in self.granted
                if each.until_ms > self.now_ms
            )
            self.own = min(amount, max(self.own, CAPACITY - undrawn - sum(self.drawn.values())))
        else:
            self.now_ms += amount

    def check(self):
        kept = {}
        undrawn = 0
        for each in self.granted:
            key = each.key
            kept[key] = max(each.quantity, self.drawn.get(key, 0))
            if each.until_ms > self.now_ms:
                undrawn += max(0, each.quantity - self.drawn.get(key, 0))
        for slot in SLOTS:
            whole = {k: v for k, v in self.drawn.items() if k[0] == slot.slot_id}
            whole |= {k: v for k, v in kept.items() if k[0] == slot.slot_id}
            drawn = sum(v for k, v in self.drawn.items() if k[0] == slot.slot_id)
            assert sum(whole.values()) <= max(slot.quantity, drawn), "a slot is sold once"
        assert undrawn + sum(self.drawn.values()) + self.own <= CAPACITY, "what there is"
        for node, need in self.needs.items():
            mine = [each for each in self.granted if each.customer == node]
            drawn = sum(v for k, v in self.drawn.items() if k[2] == node)
            both = sum(each.quantity for each in mine)
            assert both <= max(need.quantity, drawn), "no need is filled twice"


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=14))
def test_no_interleaving_oversells_a_slot_or_fills_a_need_twice(taken):
    model = Model()
    for what, index, amount in taken:
        before = dict(model.drawn)
        model.step(what, index, amount)
        after = dict(model.drawn)
        model.clear()
        assert model.drawn == after, "a clearing recalls nothing"
        assert what in {"draw", "free"} or after == before
        model.check()
        assert not model.clear(), "the same inputs are not cleared again"


def test_who_takes_no_lease_is_offered_nothing_for_ever_longer():
    """Whatever its need's number: else it would keep a slot from others by stating needs anew."""

    def quantities(model):
        return [each.quantity for each in model.granted if each.slot == SLOTS[0].slot_id]

    model, pause_ms = Model(), OFFER_PAUSE_MS
    for number in range(12):
        model.needs[CUSTOMERS[2]] = need_of(10, 1 + number)
        model.clear()
        assert quantities(model) == [10]
        model.step("time", 0, OFFER_MS)
        for later in (0, pause_ms - 1):
            model.step("time", 0, later)
            model.needs[CUSTOMERS[2]] = need_of(10, 2 + number)
            model.clear()
            assert quantities(model) == []
        model.step("time", 0, 1)
        pause_ms = min(2 * pause_ms, OFFER_PAUSE_MS_MAX)
    model.clear()
    model.step("draw", 0, 10)
    model.clear()
    model.needs[CUSTOMERS[2]] = need_of(15, 100)
    model.clear()
    assert sum(each.quantity for each in model.granted) == 15, (
        "who takes one is offered more at once"
    )


def test_a_grant_of_room_that_others_still_hold_stands_until_it_falls_free():
    model = Model()
    stranger, friend = CUSTOMERS[2], CUSTOMERS[0]
    model.needs[stranger] = need_of(20)
    model.clear()
    model.step("draw", 0, 20)
    model.own = CAPACITY - 20
    model.pinned = {}  # it is in the second half of its term
    model.needs[friend] = need_of(20)
    for _ in range(4):
        model.clear()
        assert {each.customer: each.quantity for each in model.granted} == {friend: 20}
        model.step("time", 0, 10 * OFFER_MS)


def test_what_is_pinned_no_more_is_cleared_at_once_where_others_wait_for_it():
    """Nothing that the needs state has changed: it waited for the next day."""
    friend, stranger = CUSTOMERS[0], CUSTOMERS[2]

    def first_slot():
        return {e.customer: e.quantity for e in model.granted if e.slot == SLOTS[0].slot_id}

    for gives_up in (False, True):
        model = Model()
        model.needs[stranger] = need_of(20)
        model.clear()
        model.step("draw", 0, 20)
        model.needs[friend] = need_of(30)
        model.clear()
        assert first_slot() == {}, "a lease stays"
        model.pinned = {}  # it is in the second half of its term
        if gives_up:
            model.drawn = {}
        assert model.clear()
        assert first_slot() == {friend: 20}
        assert not model.clear()


def test_what_a_lease_keeps_counts_in_the_other_slots_of_its_provider():
    """Or a need is offered there what it cannot take, and is passed over for letting it lapse."""
    friend, other = CUSTOMERS[:2]
    model = Model()
    model.step("time", 0, 2 * DAY_MS)
    model.needs[other] = need_of(15)
    model.clear()
    model.step("draw", 0, 15)
    # Of 20 steps it would be left 12.
    model.needs[friend] = need_of(8)
    for number, more in ((2, 0), (3, 3)):
        model.needs[other] = need_of(15 + more, number)
        model.clear()
        mine = {each.slot: each.quantity for each in model.granted if each.customer == other}
        assert mine == ({SLOTS[1].slot_id: more} if more else {}), "beside its lease"


def test_a_need_whose_time_is_over_takes_nothing_from_others():
    model = Model()
    model.step("time", 0, 5 * DAY_MS)
    past = {"windows": ((2 * DAY_MS, 3 * DAY_MS),)}
    model.needs[CUSTOMERS[0]] = need_of(40).model_copy(update=past)
    model.needs[CUSTOMERS[2]] = need_of(30)
    model.clear()
    assert {each.customer for each in model.granted} == {CUSTOMERS[2]}
    assert sum(each.quantity for each in model.granted) == 30


@pytest.mark.parametrize("takes", [False, True])
def test_an_offer_of_room_that_is_in_part_free_is_taken_or_lapses(takes):
    """It stood for ever beside room that others hold: it held what is free, for nothing."""
    model = Model()
    stranger, friend = CUSTOMERS[2], CUSTOMERS[0]
    model.needs[stranger] = need_of(15)
    model.clear()
    model.step("draw", 0, 15)
    model.own = CAPACITY - 20
    model.pinned = {}
    model.needs[friend] = need_of(20)
    model.clear()
    assert {each.customer: each.quantity for each in model.granted} == {friend: 20}
    if takes:
        model.step("draw", 0, 5)
    model.step("time", 0, OFFER_MS)
    model.clear()
    found = {each.customer: each.quantity for each in model.granted}
    assert found == ({friend: 20} if takes else {stranger: 15})


def need_of(quantity, number=1, price_max=40 * A_STEP, slot_id=b"n" * 16):
    return NeedSlot(
        slot_id=slot_id,
        kind="storage",
        quantity=quantity,
        valid_until_ms=2**60,
        price_max=price_max,
        number=number,
    )


def test_where_too_many_take_part_nothing_is_cleared_again_either(monkeypatch):
    monkeypatch.setattr("xsc.base.limits.ALLOCATIONS_MAX", 60)
    model = Model()
    for number in range(100):
        model.needs[number.to_bytes(32, "big")] = need_of(1, price_max=1)
    assert model.clear()
    for record in model.records.values():
        taking = {customer for customer, _, _ in record.participants}
        assert len(taking) == 60
        assert set(record.left_out) == model.needs.keys() - taking, "they are named"
    assert not model.clear()


def test_a_need_that_changes_moves_no_tie_of_others():
    model = Model()
    equal = [bytes([number]) * 32 for number in (7, 8)]
    for node in equal:
        model.needs[node] = need_of(15)
    model.clear()
    before = [each for each in model.granted if each.customer in equal]
    assert len({each.quantity for each in before}) > 1, "a tie decides"
    for number in range(20):
        model.needs[CUSTOMERS[2]] = need_of(5, 1 + number, price_max=1 + number % 9)
        model.clear()
        assert [(e.customer, e.quantity) for e in model.granted if e.customer in equal] == [
            (e.customer, e.quantity) for e in before
        ]


@pytest.mark.parametrize("held", [0, 1])
def test_to_withdraw_an_offer_is_to_let_it_lapse_also_for_who_holds_something(held):
    model, kept_ms = Model(), 0
    if held:
        key = EntitlementKey(PROVIDER, SLOTS[0].slot_id, CUSTOMERS[2], bytes(16))
        model.drawn[key] = held
    for _ in range(60):
        model.step("need", 2, 19)
        model.clear()
        kept_ms += 55_000 * any(model.left(each) for each in model.granted)
        model.now_ms += 55_000
        model.step("need", 2, 0)
        model.clear()
        model.now_ms += 5_000
    assert kept_ms <= model.now_ms // 8


def test_of_needs_that_are_withdrawn_nothing_is_kept():
    model = Model()
    for number in range(10):
        model.needs[CUSTOMERS[0]] = need_of(10, slot_id=bytes([number]) * 16)
        model.clear()
        assert len(model.granted) == 1
    assert len(model.last.pauses) <= len(SLOTS)
    assert len(lines_in(model.last)) <= 1


def test_no_more_is_granted_than_one_state_says(monkeypatch):
    monkeypatch.setattr("xsc.base.limits.ALLOCATIONS_MAX", 4)
    model = Model()
    for number in range(9):
        model.needs[bytes([number]) * 32] = need_of(4)
    model.clear()
    first, *_ = model.records.values()
    assert len(first.left_out) == 5
    assert len(model.granted) == 4
    for node in list(model.needs)[:6]:
        del model.needs[node]
    model.clear()
    assert {each.customer for each in model.granted} == set(model.needs)


def test_what_begins_later_is_granted_to_nobody_before():
    for node in CUSTOMERS:
        model = Model()
        model.needs[node] = need_of(40)
        model.clear()
        assert [each.slot for each in model.granted] == [SLOTS[0].slot_id]
        model.step("time", 0, 2 * DAY_MS)
        model.clear()
        assert SLOTS[1].slot_id in {each.slot for each in model.granted}, "once it begins"


@pytest.mark.parametrize(("caps", "most"), [((), 10), (((PROVIDER, 3),), 3)])
def test_d2_two_slots_of_one_provider_do_not_fill_one_need_twice(caps, most):
    for kept in (0, 2):
        model = Model()
        model.step("time", 0, 2 * DAY_MS)
        model.needs[CUSTOMERS[0]] = need_of(10).model_copy(update={"caps": caps})
        if kept:
            key = EntitlementKey(PROVIDER, SLOTS[0].slot_id, CUSTOMERS[0], b"n" * 16)
            model.drawn[key] = kept
        model.clear()
        assert sum(each.quantity for each in model.granted) == most


@pytest.mark.parametrize(("customer", "prices"), [(0, (8, 9, 10, 40)), (1, (9, 10)), (2, (10, 11))])
def test_credit_bounds_a_need_whatever_price_it_states(customer, prices):
    """A mutual customer that said 8, its rung, was eligible for a quarter more than at 10."""
    for price_max in prices:
        model = Model()
        model.credit_micro = 105
        model.needs[CUSTOMERS[customer]] = need_of(20, price_max=price_max * A_STEP)
        model.clear()
        assert sum(each.quantity for each in model.granted if each.slot == SLOTS[0].slot_id) == 10


def test_a_need_that_is_leased_is_not_offered_again_where_its_slot_has_another_window():
    node, need = CUSTOMERS[0], need_of(10)
    state, said = (
        TwoTierAllocationState(),
        {node: Published(node, Commitment(needs=(need,)), NOTHING)},
    )
    drawn, until_ms = {}, 5 * DAY_MS
    for now_ms in (2, 3):
        slot = slot_of(1, 20, now_ms - 1, until_ms + now_ms)
        inputs = inputs_of(
            now_ms=now_ms,
            own=Published(PROVIDER, Commitment(slots=(slot,)), NOTHING, {}, None),
            others=said,
            drawn=drawn,
            pinned=drawn,
            credit={node: 10**9},
            free={"storage": 20 - sum(drawn.values())},
        )
        state = clear_all(inputs, state)[0]
        (each,) = entitlements(
            PROVIDER, state, {slot.slot_id: slot}, {(node, need.slot_id): need}, now_ms
        )
        assert each.window[1] == until_ms + now_ms
        assert bool(each.granted_ms) == (now_ms == 2), "all of it is leased"
        assert each.quantity == 10
        drawn[each.key] = 10


def test_ties_fall_anew_each_day():
    """By slot and day: nobody draws again by publishing again."""
    tied, winners = [bytes([number]) * 32 for number in (7, 8)], set()
    for day in range(8):
        model = Model()
        model.now_ms = 1 + day * DAY_MS
        model.needs = {node: need_of(15) for node in tied}
        model.clear()
        winners.add(max(model.granted, key=lambda each: each.quantity).customer)
    assert winners == set(tied)


@pytest.mark.parametrize(
    ("limit", "weights", "most"),
    [("ALLOCATIONS_A_STRANGER_MAX", {}, 3), ("ALLOCATIONS_A_CUSTOMER_MAX", WEIGHTS, 5)],
)
def test_one_customer_leaves_others_what_one_state_can_grant(limit, weights, most, monkeypatch):
    monkeypatch.setattr(f"xsc.allocation.granting.{limit}", most)
    node = CUSTOMERS[1]
    needs = tuple(need_of(2, slot_id=bytes([n]) * 16) for n in range(8))
    inputs = inputs_of(
        now_ms=0,
        own=Published(PROVIDER, OWN.commitment, NOTHING, weights, None),
        others={node: Published(node, Commitment(needs=needs), NOTHING)},
        credit={node: 10**9},
        free={"storage": CAPACITY},
    )
    made = clear_all(inputs, TwoTierAllocationState())[0]
    assert len(lines_in(made)) == most
    assert clear_all(inputs, made)[0] == made
