"""How much each caller may ask for."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.net.nodes import quota_of
from xsc.base.errors import RateLimited
from xsc.base.limits import (
    FRAME_HEADER_BYTES_MAX,
    KIB,
    MIB,
    PEER_BODY_BYTES_MAX,
    PEER_REQUESTS_A_SECOND_MAX,
    PEER_REQUESTS_IN_FLIGHT_MAX,
    REQUEST_UNITS,
    SMALL_BODY_BYTES_MAX,
    SYNCED_A_PEER_BYTES_MAX,
    SYNCED_MS,
)
from xsc.net.calls.costs import COSTS, OTHER, Spent
from xsc.net.calls.quota import (
    ANSWERS_A_PEER_BYTES_MAX,
    REQUEST_BODIES_A_PEER_BYTES_MAX,
    REQUESTS_IN_FLIGHT_MAX,
    SYNCED_BYTES_MAX,
    UNKNOWN_AN_ADDRESS_A_SECOND_MAX,
    UNKNOWN_AN_ADDRESS_IN_FLIGHT_MAX,
    UNKNOWN_REQUESTS_A_SECOND_MAX,
    Quota,
)

A, B = b"a" * 32, b"b" * 32


def refused(work, *arguments) -> bool:
    try:
        work(*arguments)
    except RateLimited:
        return True
    return False


def test_requests_at_once_are_bounded_for_each_caller():
    quota = quota_of(share=2)
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
    quota = quota_of(rate=4, share=100)
    assert [refused(quota.enter, A, 0) for _ in range(5)] == [False] * 4 + [True]
    assert refused(quota.enter, A, 249)
    assert not refused(quota.enter, A, 250)
    assert refused(quota.enter, A, 250)
    assert [refused(quota.enter, A, 99_000) for _ in range(5)] == [False] * 4 + [True]


def test_the_hint_says_how_long_to_wait():
    quota = quota_of(rate=4)
    for _ in range(4):
        quota.enter(A, 0)
    with pytest.raises(RateLimited) as error:
        quota.enter(A, 100)
    assert error.value.hint == "try again in 150 ms"


def test_unknown_callers_share_one_small_bucket_and_take_nothing_from_peers():
    quota = quota_of(rate=100, unknown=2)
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


def test_so_many_sources_are_remembered_as_all_have_requests_and_no_more():
    quota = Quota()
    for number in range(10_000):
        refused(quota.count, str(number), number)
        assert len(quota.sources._owed_until) <= 3 * UNKNOWN_REQUESTS_A_SECOND_MAX
    assert not refused(quota.enter, A, 10_000)


def test_bytes_of_bodies_have_a_share_for_each_caller_and_come_back():
    quota = Quota()
    tickets = [quota.enter(A, 0) for _ in range(2)]
    taken = 0
    while not refused(tickets[taken % 2].take_body, MIB, 0):
        taken += 1
    assert taken == REQUEST_BODIES_A_PEER_BYTES_MAX // MIB
    quota.enter(B, 0).take_body(34 * MIB, 0)
    tickets[0].drop_body()
    tickets[1].take_body(MIB, 0)
    tickets[1].close()
    quota.enter(A, 0).take_body(REQUEST_BODIES_A_PEER_BYTES_MAX, 0)


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
        tickets[4].set_answer(MIB, 0)
    # What was carried out is answered, where the answer is small.
    small = quota.enter(A, 0)
    small.set_answer(SMALL_BODY_BYTES_MAX, 0)
    small.close()
    quota.enter(B, 0).set_answer(34 * MIB, 0)
    # What is made is less than was waited for.
    tickets[0].set_answer(5, 0)
    assert quota.answers.held(A) == 3 * ANSWERS_A_PEER_BYTES_MAX // 4 + 5
    tickets[4].set_answer(MIB, 0)
    for ticket in tickets:
        ticket.close()
    assert quota.answers.held(A) == 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200), st.integers(1, 20))
def test_never_more_than_the_rate_in_any_second_beyond_one_full_bucket(gaps, rate):
    quota, now_ms, passed = quota_of(rate=rate, share=10**6, most=10**6), 0, 0
    for gap in gaps:
        now_ms += gap
        passed += not refused(quota.enter, A, now_ms)
        assert passed * 1000 <= rate * 1000 + rate * now_ms


CALLS = st.tuples(
    st.integers(0, 3_000),
    st.sampled_from([A, B]),
    st.sampled_from([*COSTS, "any.other"]),
    st.integers(0, 4 * KIB) | st.integers(0, FRAME_HEADER_BYTES_MAX),
    st.integers(0, KIB) | st.integers(0, PEER_BODY_BYTES_MAX),
)
"""Pause, caller, method, and bytes of head and body of a call."""


@given(st.lists(CALLS, max_size=60))
def test_whatever_one_peer_sends_what_it_spends_is_bounded_and_others_have_their_share(calls):
    quota, honest, now_ms = Quota(), b"h" * 32, 0
    second = PEER_REQUESTS_A_SECOND_MAX * REQUEST_UNITS
    spent: dict[bytes, list[tuple[int, int, int]]] = {A: [], B: []}
    for pause_ms, caller, method, head, body in calls:
        now_ms += pause_ms
        cost = COSTS.get(method, OTHER)
        content, synced_bytes = cost.content(head, body)
        before = quota.left(caller, now_ms)
        try:
            ticket = quota.enter(caller, now_ms, method)
        except RateLimited:
            assert before[0] < cost.base
            continue
        try:
            ticket.charge_content(head, body, now_ms)
            spent[caller].append((now_ms, cost.base + content, synced_bytes))
            ticket.set_answer(body // 2, now_ms)
        except RateLimited:
            assert quota.left(caller, now_ms) != (second, SYNCED_A_PEER_BYTES_MAX)
        finally:
            ticket.close()
        assert quota.places.held(caller) == 0
        # Whoever asks for what all ask for all the time is answered.
        quota.enter(honest, now_ms, "storage.head_put").close()
        assert quota.left(honest, now_ms)[0] > 0
    for mine in spent.values():
        for first, (start_ms, _, _) in enumerate(mine):
            for last in range(first, len(mine)):
                within_ms = mine[last][0] - start_ms
                some = mine[first : last + 1]
                units, synced = sum(each[1] for each in some), sum(each[2] for each in some)
                dearest, largest = max(each[1] for each in some), max(each[2] for each in some)
                assert units <= second + second * within_ms // 1000 + dearest
                share = SYNCED_A_PEER_BYTES_MAX
                assert synced <= share + share * within_ms // SYNCED_MS + largest


def test_what_all_have_synced_is_bounded_and_one_peer_takes_a_small_part_of_it():
    quota, total = Quota(), 0
    for number in range(64):
        peer, mine = bytes([number]) * 32, 0
        while not refused(quota.charge, peer, "storage.head_put", 0, 0, MIB):
            mine += MIB
        assert mine <= SYNCED_A_PEER_BYTES_MAX
        total += mine
    assert total == SYNCED_BYTES_MAX == 16 * SYNCED_A_PEER_BYTES_MAX
    assert not refused(quota.charge, A, "storage.head_put", SYNCED_MS, 0, MIB)


def test_what_was_spent_within_the_last_minute_is_told_by_method():
    spending = Quota().spending
    spending.add(A, "a.b", 0, units=5, processor_us=7)
    spending.add(A, "a.b", 30_000, units=1)
    spending.add(A, "a.c", 59_999, processor_us=2)
    spending.add(B, "a.b", 59_999, units=9)
    assert spending.of(A, 59_999) == Spent(Counter({"a.b": 6}), Counter({"a.b": 7, "a.c": 2}))
    assert spending.of(A, 60_000) == Spent(Counter({"a.b": 1}), Counter({"a.c": 2}))
    assert spending.of(A, 120_000) == Spent()
