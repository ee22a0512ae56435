from xsc.base.limits import BUCKETS_KEPT, PPM
from xsc.health.score import quality_ppm, trust_ppm


def test_a_fresh_peer_is_worth_one_half():
    assert quality_ppm(0, 0) == 500_000
    assert quality_ppm(0, 1) < 500_000 < quality_ppm(1, 0)
    assert quality_ppm(200, 0) > 970_000
    assert quality_ppm(0, 200) < 20_000


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
