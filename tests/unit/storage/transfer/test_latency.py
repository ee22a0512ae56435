"""Whom to ask first follows from what hosts did; how long to wait is bounded whatever they did."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import KIB, MIB
from xsc.storage.transfer.latency import (
    BELIEVED_TIMES,
    HEDGE_BYTES_A_SECOND_MIN,
    HEDGE_CEILING_MS,
    HEDGE_FLOOR_MS,
    REPROBE_INTERVAL_MS,
    LatencyEstimate,
    answered,
    is_due,
    kth_ms,
    late,
    patience_ms,
    reprobed,
    slow_from_ms,
)

SIZES = st.sampled_from([0, 1, 16 * KIB, 256 * KIB - 1, 256 * KIB, MIB, 4 * MIB])
TIMES = st.integers(0, 100_000)
PACES = st.builds(LatencyEstimate, small_ms=TIMES, mib_ms=TIMES)


@given(PACES, SIZES, TIMES)
def test_an_answer_moves_the_expectation_towards_itself(estimate, size, taken):
    before, after = estimate.expected_ms(size), answered(estimate, size, taken, 7).expected_ms(size)
    low, high = min(before, taken), max(before, taken)
    # Whole milliseconds a MiB round by less than one a MiB.
    assert low - 5 <= after <= high + 5


@given(PACES, SIZES, TIMES)
def test_one_late_answer_says_little(estimate, size, taken):
    before = estimate.expected_ms(size)
    after = answered(estimate, size, taken, 7).expected_ms(size)
    assert after <= before + (BELIEVED_TIMES - 1) * max(before, HEDGE_FLOOR_MS) // 2


@given(PACES, SIZES, TIMES)
def test_who_is_late_is_expected_as_before_and_until_it_answers(estimate, size, taken):
    after = late(late(estimate, 5), 9)
    assert replace(after, late_ms=0, probed_ms=0) == estimate
    assert after.late_ms == 9
    assert answered(after, size, taken, 11).late_ms == 0


@given(PACES, st.integers(1, 4 * HEDGE_FLOOR_MS), SIZES)
def test_the_first_answer_of_who_was_late_is_believed(estimate, taken, size):
    after = answered(late(estimate, 5), size, taken, 11)
    assert after.expected_ms(size) >= min(taken, estimate.expected_ms(size)) - 5
    if size >= 256 * KIB:
        assert abs(after.expected_ms(size) - taken) <= 5


@given(PACES, TIMES)
def test_what_is_twice_as_quick_is_believed_at_once(estimate, taken):
    after = answered(estimate, MIB, taken, 7)
    if 2 * taken <= estimate.expected_ms(MIB):
        assert abs(after.expected_ms(MIB) - taken) <= 1


@pytest.mark.parametrize("size", [16 * KIB, MIB])
def test_steady_answers_are_expected(size):
    estimate = LatencyEstimate(3)
    for _ in range(40):
        estimate = answered(estimate, size, 80, 7)
    assert 70 <= estimate.expected_ms(size) <= 80


def test_trials_come_at_intervals():
    estimate = late(LatencyEstimate(1), 500)
    for begun in (500, 7_000, 90_000):
        estimate = reprobed(estimate, begun)
        assert not is_due(estimate, begun + REPROBE_INTERVAL_MS - 1)
        assert is_due(estimate, begun + REPROBE_INTERVAL_MS)


def test_who_is_slow_is_slower_than_twice_the_kth():
    assert slow_from_ms(kth_ms([10, 500, 40, 30, 20, 9_000], 4)) == 2 * 40
    assert slow_from_ms(kth_ms([1, 1, 1, 1], 4)) == HEDGE_FLOOR_MS
    assert slow_from_ms(kth_ms([700], 4)) == 1400


@given(TIMES, SIZES, st.lists(st.tuples(TIMES, TIMES)))
def test_patience_has_a_floor_and_a_ceiling_whatever_was_before(kth, size, answers):
    ceiling = HEDGE_CEILING_MS + size * 1000 // HEDGE_BYTES_A_SECOND_MIN
    assert HEDGE_FLOOR_MS <= patience_ms(kth, size, answers) <= ceiling


@given(TIMES, SIZES, st.lists(st.tuples(TIMES, TIMES)), TIMES, TIMES)
def test_no_answer_makes_anybody_wait_longer(kth, size, answers, taken, expected):
    more = [*answers, (taken, expected)]
    assert patience_ms(kth, size, more) <= patience_ms(kth, size, answers)


@given(st.integers(HEDGE_FLOOR_MS, 300), SIZES, st.lists(st.integers(1, 100)))
def test_answers_as_expected_shorten_nothing(kth, size, shares):
    answers = [(kth * share // 100, kth * share // 100) for share in shares]
    assert patience_ms(kth, size, answers) == patience_ms(kth, size)


@given(st.integers(0, HEDGE_FLOOR_MS), TIMES)
def test_who_answers_quickly_says_that_the_others_will(taken, expected):
    """Where all were expected to be slow, and one is not, nobody is waited for long."""
    patience = patience_ms(expected, MIB, [(taken, expected)])
    assert patience <= 2 * HEDGE_FLOOR_MS
