"""What a provider remembers of orders: against a model, and at its real bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import RateLimited
from xsc.base.limits import MIB, PEER_REQUESTS_A_SECOND_MAX, REQUEST_WINDOW_MS
from xsc.compute.jobs.orders import (
    ANSWER_COST_BYTES,
    ANSWERS_KEPT_BYTES_MAX,
    ORDERS_REMEMBERED_A_PEER_MAX,
    ORDERS_REMEMBERED_MAX,
    AcceptedOrders,
)

NOW_MS = 1_700_000_000_000
ALICE, BOB, CAROL = b"a" * 32, b"b" * 32, b"c" * 32
ID = b"i" * 32


def slot(customer, number):
    return customer, number.to_bytes(16, "big")


def take(orders, where, *, at_ms=NOW_MS, created_ms=None):
    orders.check_room(where[0], at_ms)
    return orders.add(where, ID, at_ms if created_ms is None else created_ms, run="run")


def test_an_order_is_known_for_as_long_as_its_date_lets_it_in():
    for ahead_ms in (-REQUEST_WINDOW_MS, 0, REQUEST_WINDOW_MS):
        orders = AcceptedOrders()
        take(orders, slot(ALICE, 1), created_ms=NOW_MS + ahead_ms)
        orders.ended(slot(ALICE, 1), 10, NOW_MS)
        last_ms = max(NOW_MS, NOW_MS + ahead_ms) + REQUEST_WINDOW_MS
        orders.check_room(BOB, last_ms)
        assert orders.find(slot(ALICE, 1)) is not None
        orders.check_room(BOB, last_ms + 1)
        assert orders.find(slot(ALICE, 1)) is None
        assert len(orders) == 0


def test_an_answer_can_be_had_for_a_window_after_a_long_run():
    orders = AcceptedOrders()
    take(orders, slot(ALICE, 1))
    ended_ms = NOW_MS + 10 * REQUEST_WINDOW_MS
    orders.check_room(BOB, ended_ms)
    orders.ended(slot(ALICE, 1), 10, ended_ms)
    orders.check_room(BOB, ended_ms + REQUEST_WINDOW_MS)
    assert orders.find(slot(ALICE, 1)).run == "run"


def test_a_long_run_keeps_no_other_order_from_being_forgotten():
    orders = AcceptedOrders()
    take(orders, slot(ALICE, 0))
    for number in range(1, 100):
        take(orders, slot(BOB, number))
        orders.ended(slot(BOB, number), 10, NOW_MS)
    orders.check_room(BOB, NOW_MS + REQUEST_WINDOW_MS + 1)
    assert [orders.find(slot(ALICE, 0)) is not None, len(orders)] == [True, 1]


def test_a_customer_that_brings_all_it_may_takes_no_room_of_others():
    orders = AcceptedOrders()
    # As fast as the quota lets it, for two windows: nothing of it is refused.
    step = PEER_REQUESTS_A_SECOND_MAX // 20
    for tick in range(2 * REQUEST_WINDOW_MS // 50):
        now_ms = NOW_MS + 50 * tick
        for number in range(step):
            where = slot(ALICE, tick * step + number)
            take(orders, where, at_ms=now_ms)
            orders.ended(where, 0, now_ms)
    assert len(orders) <= ORDERS_REMEMBERED_A_PEER_MAX
    # Dated ahead they are remembered for longer, which nobody needs: that is what is refused.
    number = 10**7
    while len(orders) < ORDERS_REMEMBERED_A_PEER_MAX:
        take(orders, slot(ALICE, number), at_ms=now_ms, created_ms=now_ms + REQUEST_WINDOW_MS)
        number += 1
    with pytest.raises(RateLimited):
        take(orders, slot(ALICE, number), at_ms=now_ms, created_ms=now_ms + REQUEST_WINDOW_MS)
    take(orders, slot(BOB, 1), at_ms=now_ms)


def test_all_together_may_bring_so_many():
    orders = AcceptedOrders()
    for customer in (ALICE, BOB):
        for number in range(ORDERS_REMEMBERED_A_PEER_MAX):
            orders.add(slot(customer, number), ID, NOW_MS, run="run")
    assert len(orders) == ORDERS_REMEMBERED_MAX
    with pytest.raises(RateLimited):
        take(orders, slot(CAROL, 1))
    orders.drop(slot(ALICE, 1))
    take(orders, slot(CAROL, 1))


def test_the_oldest_answers_go_first_and_the_newest_is_kept_whatever_its_size():
    orders = AcceptedOrders()
    sizes = [ANSWERS_KEPT_BYTES_MAX // 4 - ANSWER_COST_BYTES] * 4
    for number, size in enumerate(sizes):
        take(orders, slot(ALICE, number))
        orders.ended(slot(ALICE, number), size, NOW_MS)
    assert all(orders.find(slot(ALICE, number)).run for number in range(4))
    take(orders, slot(ALICE, 4))
    orders.ended(slot(ALICE, 4), 0, NOW_MS)
    assert [orders.find(slot(ALICE, number)).run for number in range(5)] == [None, *["run"] * 4]
    take(orders, slot(BOB, 5))
    orders.ended(slot(BOB, 5), ANSWERS_KEPT_BYTES_MAX + MIB, NOW_MS)
    assert [orders.find(slot(ALICE, number)).run for number in range(5)] == [None] * 5
    assert orders.find(slot(BOB, 5)).run == "run"


def test_answers_of_one_customer_take_no_room_of_others():
    orders, size = AcceptedOrders(), ANSWERS_KEPT_BYTES_MAX // 4 - ANSWER_COST_BYTES
    for customer in (BOB, CAROL):
        take(orders, slot(customer, 0))
        orders.ended(slot(customer, 0), size, NOW_MS)
    for number in range(100):
        take(orders, slot(ALICE, number))
        orders.ended(slot(ALICE, number), size if number % 2 else 0, NOW_MS)
        assert orders.find(slot(ALICE, number)).run == "run"
        for customer in (BOB, CAROL):
            assert orders.find(slot(customer, 0)).run == "run"
        assert orders._answers.size <= ANSWERS_KEPT_BYTES_MAX


DEEDS = st.lists(
    st.tuples(
        st.sampled_from(["take", "end", "fail", "wait"]),
        st.sampled_from([ALICE, BOB]),
        st.integers(0, 4),
        st.integers(0, REQUEST_WINDOW_MS),
    ),
    max_size=40,
)


@given(DEEDS)
def test_in_any_order_of_events_no_order_is_run_twice_within_its_window(deeds):
    orders, now_ms = AcceptedOrders(), NOW_MS
    running, ended = set(), {}
    for deed, customer, number, ms in deeds:
        where = slot(customer, number)
        match deed:
            case "take" if orders.find(where) is None:
                take(orders, where, at_ms=now_ms)
                running.add(where)
            case "end" if where in running:
                orders.ended(where, ms, now_ms)
                running.remove(where)
                ended[where] = now_ms
            case "fail" if where in running:
                orders.drop(where)
                running.remove(where)
            case "wait":
                now_ms += ms
                orders.check_room(CAROL, now_ms)
        kept = {each for each, at_ms in ended.items() if now_ms <= at_ms + REQUEST_WINDOW_MS}
        ended = {each: ended[each] for each in kept if each not in running}
        everything = [slot(who, n) for who in (ALICE, BOB) for n in range(5)]
        assert {each for each in everything if orders.find(each)} == running | set(ended)
        assert len(orders) == len(running | set(ended))
