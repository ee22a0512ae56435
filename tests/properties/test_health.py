"""Laws of the score and of the availability."""

from fractions import Fraction
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import MISSES_TO_DOWN, PPM, PROBES_KEPT
from xsc.health.detector import AvailabilityTester
from xsc.health.score import quality_ppm, wilson_ppm

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
    if answered + missed:
        plain = wilson_ppm(answered, missed)
        assert not_above_the_bound(plain, Fraction(answered), Fraction(missed))
        assert not not_above_the_bound(plain + 1, Fraction(answered), Fraction(missed))


@given(answered=COUNT, missed=COUNT)
def test_it_lies_between_nothing_and_the_whole(answered, missed):
    assert 0 <= wilson_ppm(answered, missed) <= quality_ppm(answered, missed) <= PPM


@given(answered=COUNT, missed=COUNT)
def test_an_answer_never_lowers_and_a_miss_never_raises(answered, missed):
    here = quality_ppm(answered, missed)
    assert quality_ppm(answered + 1, missed) >= here >= quality_ppm(answered, missed + 1)


def test_the_same_for_every_count_that_can_be_kept():
    table = [[quality_ppm(a, m) for m in range(PROBES_KEPT + 1)] for a in range(PROBES_KEPT + 1)]
    for a, m in product(range(PROBES_KEPT), repeat=2):
        assert table[a + 1][m] >= table[a][m] >= table[a][m + 1]


@given(results=st.lists(st.booleans(), max_size=2 * PROBES_KEPT))
def test_availability_is_the_share_of_the_kept_results(results):
    tester = AvailabilityTester()
    up, changes = False, []
    for at_ms, available in enumerate(results):
        changed = tester.record_result(NODE, available, at_ms % 7, at_ms)
        if changed is not None:
            assert changed != up
            up = changed
            changes.append(changed)
        assert tester.is_up(NODE) == up
    kept = results[-PROBES_KEPT:]
    stats = tester.get_stats(NODE)
    assert (stats.probes, stats.answered) == (len(kept), sum(kept))
    assert stats.availability == (sum(kept) * PPM // len(kept) if kept else 0)
    if results[-MISSES_TO_DOWN:] == [False] * MISSES_TO_DOWN:
        assert tester.state(NODE) == "down"
    if results[-1:] == [True]:
        assert tester.state(NODE) == "up"
    assert changes == [index % 2 == 0 for index in range(len(changes))]


@given(results=st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), min_size=1, max_size=250))
def test_the_store_gives_back_what_it_was_given(results):
    tester, again = AvailabilityTester(), AvailabilityTester()
    for at_ms, (available, response_ms) in enumerate(results):
        tester.record_result(NODE, available, response_ms, at_ms)
    again.restore(NODE, tester.to_bytes(NODE))
    assert again.get_stats(NODE) == tester.get_stats(NODE)
    assert again.to_bytes(NODE) == tester.to_bytes(NODE)


@given(results=st.lists(st.booleans(), max_size=3 * PROBES_KEPT), more=st.booleans())
def test_the_window_keeps_the_law_too(results, more):
    tester = AvailabilityTester()
    for at_ms, available in enumerate(results):
        tester.record_result(NODE, available, 0, at_ms)
    before = tester.get_stats(NODE)
    tester.record_result(NODE, more, 0, len(results))
    after = tester.get_stats(NODE)
    old = quality_ppm(before.answered, before.probes - before.answered)
    new = quality_ppm(after.answered, after.probes - after.answered)
    assert new >= old if more else new <= old
