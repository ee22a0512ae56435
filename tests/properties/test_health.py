"""Laws of the score and of the availability."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import BUCKETS_KEPT, PPM
from xsc.health.detector import BUCKET_MS, MISSES_TO_DOWN, AvailabilityTester
from xsc.health.score import quality_ppm

NODE = b"n" * 32
COUNT = st.integers(0, 10**9)
Z_SQUARED = Fraction(1645, 1000) ** 2


def not_above_the_bound(ppm: int, good: Fraction, bad: Fraction) -> bool:
    """Whether ppm / PPM <= the Wilson lower bound, decided without any root.

    The bound is the lesser root x of (x - p)^2 = z^2 x (1 - x) / n: below the
    middle of both roots the difference is positive up to the bound.
    """
    n = good + bad
    x, p = Fraction(ppm, PPM), good / n
    middle = (p + Z_SQUARED / (2 * n)) / (1 + Z_SQUARED / n)
    return x <= middle and (x - p) ** 2 >= Z_SQUARED * x * (1 - x) / n


@given(answered=COUNT, missed=COUNT)
def test_the_score_is_the_exact_floor_of_the_bound(answered, missed):
    ppm = quality_ppm(answered, missed)
    good, bad = answered + Z_SQUARED, Fraction(missed)
    assert not_above_the_bound(ppm, good, bad)
    assert not not_above_the_bound(ppm + 1, good, bad)


@given(answered=COUNT, missed=COUNT)
def test_it_lies_between_nothing_and_the_whole(answered, missed):
    assert 0 <= quality_ppm(answered, missed) <= PPM


@given(answered=COUNT, missed=COUNT)
def test_an_answer_never_lowers_and_a_miss_never_raises(answered, missed):
    here = quality_ppm(answered, missed)
    assert quality_ppm(answered + 1, missed) >= here >= quality_ppm(answered, missed + 1)


def test_the_same_for_every_small_count():
    table = [[quality_ppm(a, m) for m in range(201)] for a in range(201)]
    for a, m in product(range(200), repeat=2):
        assert table[a + 1][m] >= table[a][m] >= table[a][m + 1]


STEPS = st.integers(0, 3 * BUCKET_MS)
RESULTS = st.lists(st.tuples(st.booleans(), STEPS), max_size=150)


def recorded(results):
    """Return a detector, when each result came, and which times it came up or went down."""
    tester, times, changes, now_ms = AvailabilityTester(), [], [], 0
    for available, step_ms in results:
        now_ms += step_ms
        times.append(now_ms)
        changed = tester.record_result(NODE, available, step_ms % 7, now_ms)
        if changed is not None:
            changes.append(changed)
        assert tester.is_up(NODE) == (bool(changes) and changes[-1])
    return tester, times, changes


@given(RESULTS)
def test_availability_is_the_share_of_the_kept_results(results):
    tester, times, changes = recorded(results)
    newest = times[-1] // BUCKET_MS if times else 0
    kept = [
        available
        for (available, _), at_ms in zip(results, times, strict=True)
        if newest - at_ms // BUCKET_MS < BUCKETS_KEPT
    ]
    stats = tester.get_stats(NODE)
    assert (stats.probes, stats.answered) == (len(kept), sum(kept))
    assert stats.availability == (sum(kept) * PPM // len(kept) if kept else 0)
    said = [available for available, _ in results]
    if said[-MISSES_TO_DOWN:] == [False] * MISSES_TO_DOWN:
        assert tester.state(NODE) == "down"
    if said[-1:] == [True]:
        assert tester.state(NODE) == "up"
    assert changes == [index % 2 == 0 for index in range(len(changes))]


@given(RESULTS, st.integers(1, 9))
def test_the_store_gives_back_what_it_was_given(results, written):
    """Whenever changes are written: what lies in the store says the same as the memory."""
    tester, disk, now_ms = AvailabilityTester(), {}, 0
    for index, (available, step_ms) in enumerate(results):
        now_ms += step_ms
        tester.record_result(NODE, available, 1, now_ms)
        if step_ms % 5 == 0:
            tester.record_wrong(NODE, now_ms)
        if index % written == 0 or index == len(results) - 1:
            disk.update(tester.changes(NODE))
    again = AvailabilityTester()
    for number, raw in sorted(disk.items()):
        if raw is not None:
            again.restore(NODE, number, raw)
    before = tester.get_stats(NODE)
    assert again.get_stats(NODE) == replace(before, avg_response_ms=0)


@given(RESULTS, st.booleans())
def test_a_further_result_keeps_the_law_too(results, more):
    tester, times, _ = recorded(results)
    before = tester.get_stats(NODE)
    tester.record_result(NODE, more, 0, times[-1] if times else 0)
    after = tester.get_stats(NODE)
    old = quality_ppm(before.answered, before.probes - before.answered)
    new = quality_ppm(after.answered, after.probes - after.answered)
    assert new >= old if more else new <= old
