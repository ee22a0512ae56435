"""How much each caller may ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import RateLimited
from xsc.net.quota import UNKNOWN, Quota

A, B = b"a" * 32, b"b" * 32


def refused(quota, caller, now_ms=0, size_bytes=0):
    try:
        quota.enter(caller, size_bytes, now_ms)
    except RateLimited:
        return True
    return False


def test_requests_at_once_are_bounded_for_each_caller():
    quota = Quota(in_flight_max=2)
    assert [refused(quota, A) for _ in range(3)] == [False, False, True]
    assert not refused(quota, B)
    quota.leave(A, 0)
    assert not refused(quota, A)


def test_requests_a_second_are_bounded_and_come_back():
    quota = Quota(rate=4, in_flight_max=100)
    assert [refused(quota, A) for _ in range(5)] == [False] * 4 + [True]
    assert refused(quota, A, 249)
    assert not refused(quota, A, 250)
    assert refused(quota, A, 250)
    assert [refused(quota, A, 99_000) for _ in range(5)] == [False] * 4 + [True]


def test_the_hint_says_how_long_to_wait():
    quota = Quota(rate=4)
    for _ in range(4):
        quota.count(A, 0)
    with pytest.raises(RateLimited) as error:
        quota.count(A, 100)
    assert error.value.hint == "try again in 150 ms"


def test_unknown_callers_share_one_small_bucket_and_take_nothing_from_peers():
    quota = Quota(rate=100, unknown_rate=2)
    quota.count(UNKNOWN, 0)
    quota.count(UNKNOWN, 0)
    with pytest.raises(RateLimited):
        quota.count(UNKNOWN, 0)
    assert not refused(quota, A)


def test_bytes_at_once_are_bounded_for_all_together():
    quota = Quota(bytes_max=100)
    assert not refused(quota, A, size_bytes=60)
    assert refused(quota, B, size_bytes=41)
    assert not refused(quota, B, size_bytes=40)
    quota.leave(A, 60)
    assert not refused(quota, B, size_bytes=60)


def test_a_removed_peer_is_forgotten_once_nothing_of_it_is_in_flight():
    quota = Quota(rate=1)
    quota.enter(A, 0, 0)
    quota.forget(A)
    quota.leave(A, 0)
    assert refused(quota, A)
    quota.forget(A)
    assert not refused(quota, A)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200), st.integers(1, 20))
def test_never_more_than_the_rate_in_any_second_beyond_one_full_bucket(gaps, rate):
    quota, now_ms, passed = Quota(rate=rate, in_flight_max=10**6), 0, 0
    for gap in gaps:
        now_ms += gap
        passed += not refused(quota, A, now_ms)
        assert passed * 1000 <= rate * 1000 + rate * now_ms
