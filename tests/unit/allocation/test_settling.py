"""The damping factor: every pattern of three, and what it is computed from."""

from itertools import product

import pytest

from tests.unit.allocation.test_acceptance import granted
from tests.unit.allocation.test_allocating import need_of
from xsc.allocation.program import (
    MODERATE_PPM,
    OSCILLATING_PPM,
    SMOOTH_PPM,
    factor_ppm,
    observe,
    over_allocated,
)


def history(*over):
    return tuple((units, 1_000 * number) for number, units in enumerate(over))


@pytest.mark.parametrize(
    ("over", "factor"),
    [
        ((10, 5, 8), OSCILLATING_PPM),
        ((5, 8, 4), OSCILLATING_PPM),
        ((9, 5, 1), SMOOTH_PPM),
        ((9, 9, 1), SMOOTH_PPM),
        ((0, 0, 0), SMOOTH_PPM),
        ((1, 5, 9), MODERATE_PPM),
        ((1, 1, 9), MODERATE_PPM),
        ((1, 9, 9), MODERATE_PPM),
        ((5, 8), SMOOTH_PPM),
        ((), SMOOTH_PPM),
    ],
)
def test_the_factor_follows_the_pattern(over, factor):
    assert factor_ppm(history(*over)) == factor


def test_the_factors_are_those_of_the_original():
    assert (OSCILLATING_PPM, MODERATE_PPM, SMOOTH_PPM) == (500_000, 800_000, 1_000_000)


def test_d8_steady_over_allocation_is_not_smooth():
    assert factor_ppm(history(5, 5, 5)) == OSCILLATING_PPM


def test_every_pattern_has_one_of_three_factors():
    for over in product(range(4), repeat=3):
        factor = factor_ppm(history(*over))
        assert factor in (SMOOTH_PPM, MODERATE_PPM, OSCILLATING_PPM)
        # Where nothing is over-allocated any more and was not more than before, nothing is damped.
        if over[2] == 0 and over[0] >= over[1]:
            assert factor == SMOOTH_PPM


def test_a_history_has_the_last_three_however_old():
    """Three of the last 30 s, or the last three where these are fewer: the same three."""
    kept = ()
    for number in range(6):
        kept = observe(kept, number, 60_000 * number)
    assert kept == ((3, 180_000), (4, 240_000), (5, 300_000))
    assert factor_ppm(kept) == MODERATE_PPM


def test_the_excess_of_one_need_serves_no_other():
    few, many = (
        need_of(quantity).model_copy(update={"slot_id": bytes([quantity]) * 16})
        for quantity in (10, 200)
    )
    needs = {each.slot_id: each for each in (few, many)}

    def over(*given):
        return over_allocated(needs, [granted(bytes(32), units, each) for units, each in given])

    assert over((6, few), (7, few), (20, many), (1, need_of(3))) == 300_000
    assert over((13, few), (250, many)) == 550_000, "parts, not steps"
