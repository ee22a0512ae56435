"""Modules that want more than they were given: each ends by name, and the worker goes on.

Each attack runs twice: once with little fuel, and once with all the fuel there is
and little time. What compiles for too long is in `test_jail.py`.
"""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.unit.compute import attacks
from tests.unit.compute.programs import SteadyClock, i32, job, job_of
from xsc.base.errors import ModuleInvalid
from xsc.base.limits import FUEL_MAX, MIB
from xsc.base.log import SilentLog
from xsc.compute.worker.pool import PoolSandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

LITTLE_TIME_MS = 40
"""The law is 50 ms at the 99th percentile (`python -m benchmarks hung`): CI machines stutter."""
ENDS_BY_ITSELF = {
    "recursion": "stack_exhausted",
    "mutual recursion": "stack_exhausted",
}
"""What another limit ends before fuel or time."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool():
    made = PoolSandbox(1, SteadyClock(), SilentLog())
    await made.start()
    yield made
    await made.stop()


async def _works(pool):
    result = await pool.run(job("add", "add", i32(1), i32(2)))
    return result.results == (i32(3),)


@pytest.mark.parametrize("name", attacks.RUNNING)
async def test_fuel_ends_it(pool, name):
    result = await pool.run(job_of(attacks.running(name), "go", fuel=200_000, timeout_ms=20_000))
    assert result.trap == ENDS_BY_ITSELF.get(name, "fuel_exhausted")
    assert result.fuel_used <= 200_000
    assert result.memory_peak_bytes <= 64 * MIB
    assert await _works(pool)


@pytest.mark.parametrize("name", [name for name in attacks.RUNNING if name not in ENDS_BY_ITSELF])
async def test_time_ends_it(pool, name):
    given = job_of(attacks.running(name), "go", fuel=FUEL_MAX, timeout_ms=LITTLE_TIME_MS)
    await pool.run(job_of(attacks.running(name), "go", fuel=200_000))  # compiled
    result = await pool.run(given)
    assert result.trap in ("time_exceeded", "output_too_large")
    assert result.memory_peak_bytes <= 64 * MIB
    assert await _works(pool)


@pytest.mark.parametrize("name", attacks.REFUSED)
async def test_it_is_refused_by_name(pool, name):
    with pytest.raises(ModuleInvalid):
        await pool.run(job_of(attacks.refused(name), "go"))
    assert await _works(pool)
