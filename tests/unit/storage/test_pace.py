"""What is expected of a host follows from what it did."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import HEDGE_FLOOR_MS, KIB, MIB, TRIAL_FIRST_MS, TRIAL_LAST_MS
from xsc.storage.pace import Pace, answered, is_due, late, on_trial, slow_from_ms, tried

SIZES = st.sampled_from([0, 1, 16 * KIB, 256 * KIB - 1, 256 * KIB, MIB, 4 * MIB])
TIMES = st.integers(0, 100_000)
PACES = st.builds(Pace, small_ms=TIMES, mib_ms=TIMES)


@given(PACES, SIZES, TIMES)
def test_an_answer_moves_the_expectation_towards_itself(pace, size, taken):
    before, after = pace.expected_ms(size), answered(pace, size, taken).expected_ms(size)
    low, high = min(before, taken), max(before, taken)
    # Whole milliseconds a MiB round by less than one a MiB.
    assert low - 5 <= after <= high + 5


@given(PACES, SIZES, TIMES)
def test_nobody_late_is_expected_sooner_than_twice_that(pace, size, elapsed):
    after = late(pace, size, elapsed, 7)
    assert after.expected_ms(size) >= 2 * elapsed - 5
    assert after.expected_ms(size) >= pace.expected_ms(size)


@given(PACES, SIZES, TIMES, SIZES)
def test_a_trial_is_believed_at_once(pace, size, taken, other):
    after = tried(on_trial(late(pace, size, 9_000, 5), 5), size, taken)
    assert not after.is_slow
    assert after.wait_ms == TRIAL_FIRST_MS
    if size >= 256 * KIB:
        assert abs(after.expected_ms(size) - taken) <= 5


@pytest.mark.parametrize("size", [16 * KIB, MIB])
def test_steady_answers_are_expected(size):
    pace = Pace(3)
    for _ in range(40):
        pace = answered(pace, size, 80)
    assert 70 <= pace.expected_ms(size) <= 80


def test_trials_come_ever_later_up_to_a_bound_and_never_end():
    pace, now, gaps = late(Pace(1), MIB, 500, 0), 0, []
    for _ in range(10):
        before = now
        while not is_due(pace, now):
            now += 1_000
        gaps.append(now - before)
        pace = on_trial(pace, now)
    assert gaps == sorted(gaps)
    assert gaps[0] == TRIAL_FIRST_MS
    assert gaps[-1] == TRIAL_LAST_MS


def test_who_is_slow_is_slower_than_twice_the_kth():
    assert slow_from_ms([10, 500, 40, 30, 20, 9_000], 4) == 2 * 40
    assert slow_from_ms([1, 1, 1, 1], 4) == HEDGE_FLOOR_MS
    assert slow_from_ms([700], 4) == 1400
