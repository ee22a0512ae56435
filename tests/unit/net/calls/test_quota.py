"""How much each caller may ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import RateLimited
from xsc.base.limits import (
    ANSWERS_A_PEER_BYTES_MAX,
    MIB,
    PEER_REQUESTS_IN_FLIGHT_MAX,
    REQUEST_BODIES_A_PEER_BYTES_MAX,
    REQUESTS_IN_FLIGHT_MAX,
    SMALL_BODY_BYTES_MAX,
    UNKNOWN_AN_ADDRESS_A_SECOND_MAX,
    UNKNOWN_AN_ADDRESS_IN_FLIGHT_MAX,
    UNKNOWN_REQUESTS_A_SECOND_MAX,
    UNKNOWN_SOURCES_MAX,
)
from xsc.net.calls.quota import Quota

A, B = b"a" * 32, b"b" * 32


def refused(work, *arguments) -> bool:
    try:
        work(*arguments)
    except RateLimited:
        return True
    return False


def test_requests_at_once_are_bounded_for_each_caller():
    quota = Quota(share=2)
    tickets = [quota.enter(A, 0) for _ in range(2)]
    assert refused(quota.enter, A, 0)
    assert not refused(quota.enter, B, 0)
    tickets[0].close()
    tickets[0].close()
    assert not refused(quota.enter, A, 0)
    assert refused(quota.enter, A, 0)


def test_requests_at_once_are_bounded_for_all_together():
    quota = Quota()
    callers = [bytes([number]) * 32 for number in range(64)]
    taken = 0
    for caller in callers:
        mine = 0
        while not refused(quota.enter, caller, 0):
            mine += 1
        taken += mine
        assert mine <= PEER_REQUESTS_IN_FLIGHT_MAX
    assert taken == REQUESTS_IN_FLIGHT_MAX


def test_requests_a_second_are_bounded_and_come_back():
    quota = Quota(rate=4, share=100)
    assert [refused(quota.enter, A, 0) for _ in range(5)] == [False] * 4 + [True]
    assert refused(quota.enter, A, 249)
    assert not refused(quota.enter, A, 250)
    assert refused(quota.enter, A, 250)
    assert [refused(quota.enter, A, 99_000) for _ in range(5)] == [False] * 4 + [True]


def test_the_hint_says_how_long_to_wait():
    quota = Quota(rate=4)
    for _ in range(4):
        quota.enter(A, 0)
    with pytest.raises(RateLimited) as error:
        quota.enter(A, 100)
    assert error.value.hint == "try again in 150 ms"


def test_unknown_callers_share_one_small_bucket_and_take_nothing_from_peers():
    quota = Quota(rate=100, unknown_rate=2)
    quota.count("192.0.2.1", 0)
    quota.count("192.0.2.2", 0)
    with pytest.raises(RateLimited):
        quota.count("192.0.2.3", 0)
    assert not refused(quota.enter, A, 0)


def test_one_source_leaves_half_to_other_unknown_callers():
    quota = Quota()
    served = sum(not refused(quota.count, "192.0.2.1", 0) for _ in range(1_000))
    assert served == UNKNOWN_AN_ADDRESS_A_SECOND_MAX <= UNKNOWN_REQUESTS_A_SECOND_MAX // 2
    assert not refused(quota.count, "192.0.2.2", 0)


def test_requests_at_once_of_one_unknown_source_are_bounded():
    quota = Quota()
    tickets = []
    while not refused(lambda: tickets.append(quota.enter("192.0.2.1", 0))):
        pass
    assert len(tickets) == UNKNOWN_AN_ADDRESS_IN_FLIGHT_MAX
    assert not refused(quota.enter, "192.0.2.2", 0)


def test_so_many_sources_are_remembered_and_no_more():
    quota = Quota()
    for number in range(3 * UNKNOWN_SOURCES_MAX):
        refused(quota.count, str(number), number)
    assert len(quota._sources) == UNKNOWN_SOURCES_MAX
    quota.enter(A, 0)
    for number in range(3 * UNKNOWN_SOURCES_MAX):
        refused(quota.count, str(number), number)
    assert A in quota._peers


def test_bytes_of_bodies_have_a_share_for_each_caller_and_come_back():
    quota = Quota()
    tickets = [quota.enter(A, 0) for _ in range(2)]
    taken = 0
    while not refused(tickets[taken % 2].take_body, MIB):
        taken += 1
    assert taken == REQUEST_BODIES_A_PEER_BYTES_MAX // MIB
    quota.enter(B, 0).take_body(34 * MIB)
    tickets[0].drop_body()
    tickets[1].take_body(MIB)
    tickets[1].close()
    quota.enter(A, 0).take_body(REQUEST_BODIES_A_PEER_BYTES_MAX)


def test_a_body_takes_nothing_before_it_comes():
    quota = Quota()
    for caller in range(16):
        for _ in range(PEER_REQUESTS_IN_FLIGHT_MAX):
            quota.enter(bytes([caller]) * 32, 0)
    assert [quota.bodies.held(bytes([caller]) * 32) for caller in range(16)] == [0] * 16


async def test_answers_have_a_share_for_each_caller_until_they_are_written():
    quota = Quota()
    tickets = [quota.enter(A, 0) for _ in range(5)]
    for ticket in tickets[:4]:
        await ticket.wait_for_answer(ANSWERS_A_PEER_BYTES_MAX // 4)
    with pytest.raises(RateLimited, match="not read yet"):
        tickets[4].set_answer(MIB)
    # What was carried out is answered, where the answer is small.
    small = quota.enter(A, 0)
    small.set_answer(SMALL_BODY_BYTES_MAX)
    small.close()
    quota.enter(B, 0).set_answer(34 * MIB)
    # What is made is less than was waited for.
    tickets[0].set_answer(5)
    assert quota.answers.held(A) == 3 * ANSWERS_A_PEER_BYTES_MAX // 4 + 5
    tickets[4].set_answer(MIB)
    for ticket in tickets:
        ticket.close()
    assert quota.answers.held(A) == 0


def test_a_removed_peer_is_forgotten_once_nothing_of_it_is_in_flight():
    quota = Quota(rate=1)
    ticket = quota.enter(A, 0)
    quota.forget(A)
    ticket.close()
    assert refused(quota.enter, A, 0)
    quota.forget(A)
    assert not refused(quota.enter, A, 0)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200), st.integers(1, 20))
def test_never_more_than_the_rate_in_any_second_beyond_one_full_bucket(gaps, rate):
    quota, now_ms, passed = Quota(rate=rate, share=10**6, in_flight_max=10**6), 0, 0
    for gap in gaps:
        now_ms += gap
        passed += not refused(quota.enter, A, now_ms)
        assert passed * 1000 <= rate * 1000 + rate * now_ms
