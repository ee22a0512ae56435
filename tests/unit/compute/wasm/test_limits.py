from __future__ import annotations

import pytest

from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import (
    FUEL_MAX,
    MEMORY_BYTES_MAX,
    MEMORY_STEP_BYTES,
    OUTPUT_BYTES_MAX,
    RUN_FUEL,
    TIMEOUT_MS_MAX,
)
from xsc.compute.wasm.limits import Limits

MOST = {
    "fuel": FUEL_MAX,
    "memory_bytes": MEMORY_BYTES_MAX,
    "timeout_ms": TIMEOUT_MS_MAX,
    "output_bytes": OUTPUT_BYTES_MAX,
}


@pytest.mark.parametrize("name", MOST)
def test_each_limit_is_from_one_to_its_bound(name):
    assert getattr(Limits(**{name: MOST[name]}), name) == MOST[name]
    assert getattr(Limits(**{name: 1}), name) == 1
    for wrong in (0, -1, MOST[name] + 1):
        with pytest.raises(ArgumentInvalid, match=name):
            Limits(**{name: wrong})


def test_steps_are_fuel_times_begun_memory_steps():
    assert Limits(fuel=10, memory_bytes=1).steps == 10 + RUN_FUEL
    assert Limits(fuel=10, memory_bytes=MEMORY_STEP_BYTES + 1).steps == 20 + 2 * RUN_FUEL


def test_the_most_of_both_is_still_a_count():
    assert Limits(fuel=FUEL_MAX, memory_bytes=MEMORY_BYTES_MAX).steps < 2**63
