from __future__ import annotations

import pytest

from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import (
    FUEL_MAX,
    MEMORY_BYTES_MAX,
    MEMORY_STEP_BYTES,
    OUTPUT_BYTES_MAX,
    TIMEOUT_MS_MAX,
)
from xsc.compute.limits import Limits

MOST = {
    "fuel": FUEL_MAX,
    "memory_bytes": MEMORY_BYTES_MAX,
    "timeout_ms": TIMEOUT_MS_MAX,
    "output_bytes": OUTPUT_BYTES_MAX,
}


@pytest.mark.parametrize("name", MOST)
def test_each_limit_is_from_one_to_its_bound(name):
    small = {"memory_bytes": 1, name: MOST[name]}
    assert getattr(Limits(**small), name) == MOST[name]
    assert getattr(Limits(**{name: 1}), name) == 1
    for wrong in (0, -1, MOST[name] + 1):
        with pytest.raises(ArgumentInvalid, match=name):
            Limits(**{name: wrong})


def test_steps_are_fuel_times_begun_memory_steps():
    assert Limits(fuel=10, memory_bytes=1).steps == 10
    assert Limits(fuel=10, memory_bytes=MEMORY_STEP_BYTES + 1).steps == 20


def test_more_steps_than_a_lease_can_count_are_refused():
    with pytest.raises(ArgumentInvalid, match="fuel times memory"):
        Limits(fuel=FUEL_MAX, memory_bytes=MEMORY_STEP_BYTES * 2)
