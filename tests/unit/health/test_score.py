from fractions import Fraction

import pytest

from xsc.base.limits import BUCKETS_KEPT, PPM
from xsc.health.score import quality_ppm, trust_ppm


def test_a_fresh_peer_is_worth_one_half():
    assert quality_ppm(0, 0) == 500_000
    assert quality_ppm(0, 1) < 500_000 < quality_ppm(1, 0)
    assert quality_ppm(200, 0) > 970_000
    assert quality_ppm(0, 200) < 20_000


def is_below_bound(share, answered, missed):
    """Say whether a share is at most Wilson's lower bound, exactly: no root is taken."""
    z2 = Fraction(1645, 1000) ** 2
    a, b = answered + z2, Fraction(missed)
    n = a + b
    rest = 2 * a + z2 - share * 2 * (n + z2)
    return rest >= 0 and rest**2 >= (4 * z2 * a * b + z2**2 * n) / n


@pytest.mark.parametrize("missed", [0, 1, 2, 3, 10, 99, 1_000, 12_345])
def test_a_score_is_the_bound_rounded_down(missed):
    for answered in [*range(60), *range(60, 20_000, 77)]:
        score = quality_ppm(answered, missed)
        assert is_below_bound(Fraction(score, PPM), answered, missed)
        assert not is_below_bound(Fraction(score + 1, PPM), answered, missed)


def test_a_peer_that_never_answers_is_worth_nothing():
    assert quality_ppm(0, 10**9) == 0


def test_a_wrong_answer_halves_the_score_and_takes_ever_less_as_days_pass():
    assert trust_ppm({}) == trust_ppm({3: 0}) == PPM
    assert trust_ppm({0: 1}) == PPM // 2
    assert trust_ppm({0: 2}) == trust_ppm({0: 1, BUCKETS_KEPT // 2: 1}) - PPM // 8 == PPM // 4
    left = [trust_ppm({age: 1}) for age in range(BUCKETS_KEPT)]
    assert left == sorted(left)
    assert left[-1] > 990_000
    assert trust_ppm({0: 10**9}) == 0
    for wrong in ({0: 3, 5: 1}, {55: 40}, {1: 1, 2: 2, 3: 3}):
        for age in range(BUCKETS_KEPT):
            assert trust_ppm({**wrong, age: wrong.get(age, 0) + 1}) <= trust_ppm(wrong)
