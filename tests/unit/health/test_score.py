import pytest

from xsc.health.score import quality_ppm, wilson_ppm


@pytest.mark.parametrize(
    ("answered", "missed", "ppm"),
    [  # computed with 60 decimal digits from the textbook formula, z = 1.645
        (1, 0, 269_830),
        (5, 0, 648_842),
        (20, 0, 880_823),
        (100, 0, 973_652),
        (99, 1, 956_413),
        (2, 1, 253_509),
        (0, 1, 0),
        (0, 0, 0),
        (190, 10, 918_104),
    ],
)
def test_the_lower_bound_is_the_floor_of_the_textbook_formula(answered, missed, ppm):
    assert wilson_ppm(answered, missed) == ppm


def test_a_fresh_peer_is_worth_one_half():
    assert quality_ppm(0, 0) == 500_000
    assert quality_ppm(0, 1) < 500_000 < quality_ppm(1, 0)
    assert quality_ppm(200, 0) > 970_000
    assert quality_ppm(0, 200) < 20_000
