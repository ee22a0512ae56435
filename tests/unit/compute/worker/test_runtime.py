from __future__ import annotations

import asyncio
import math

import pytest

from tests.unit.compute.programs import wasm
from xsc.base.errors import ExportUnknown, FuelExhausted, ModuleTrapped, SignatureMismatch
from xsc.base.limits import FUEL_MAX
from xsc.compute.wasm.limits import Limits
from xsc.compute.worker.runtime import ComputeRuntime


@pytest.fixture(scope="module")
def runtime():
    with ComputeRuntime(Limits(fuel=10_000_000)) as made:
        yield made


def test_numbers_go_in_and_come_out(runtime):
    assert runtime.execute(wasm("add"), "add", [1, 2]) == 3
    assert runtime.execute(wasm("add"), "add", ["0xffffffff", -1]) == -2
    assert runtime.execute(wasm("float"), "divide", [1.0, 3]) == 1 / 3
    assert runtime.execute(wasm("float"), "divide", [1.0, 0.0]) == math.inf
    assert math.isnan(runtime.execute(wasm("float"), "root", [-1.0]))
    assert runtime.execute(wasm("multi"), "divmod", [17, 5]) == [3, 2]
    assert runtime.execute(wasm("multi"), "nothing") is None


def test_a_command_gives_its_output(runtime):
    done = runtime.run(wasm("wordcount"), ["/in/a"], files={"a": b"x y\n"})
    assert (done.exit_code, done.stdout) == (0, b"1 2 4 /in/a\n")
    assert runtime.run(wasm("exit3")).exit_code == 3


def test_the_same_seed_gives_the_same_run(runtime):
    first = runtime.run(wasm("chance"), seed=b"s")
    assert runtime.run(wasm("chance"), seed=b"s").stdout == first.stdout
    assert runtime.run(wasm("chance"), seed=b"t").stdout != first.stdout


def test_failures_are_raised_by_name(runtime):
    with pytest.raises(SignatureMismatch):
        runtime.execute(wasm("add"), "add", [1])
    with pytest.raises(SignatureMismatch):
        runtime.execute(wasm("add"), "add", [1.5, 2])
    with pytest.raises(ExportUnknown):
        runtime.run(wasm("add"))
    with pytest.raises(ModuleTrapped, match="division by zero"):
        runtime.execute(wasm("trap"), "divide", [1, 0])
    with pytest.raises(FuelExhausted):
        runtime.execute(wasm("endless"), "spin", limits=Limits(fuel=1000))


async def test_it_works_inside_of_an_event_loop(runtime):
    assert runtime.execute(wasm("add"), "add", [1, 2]) == 3


async def test_without_blocking_it_is_the_same(runtime):
    calls = [runtime.execute_async(wasm("add"), "add", [n, 2]) for n in range(20)]
    assert await asyncio.gather(*calls) == [n + 2 for n in range(20)]
    done = await runtime.run_async(wasm("wordcount"), ["/in/a"], files={"a": b"x y\n"})
    again = runtime.run(wasm("wordcount"), ["/in/a"], files={"a": b"x y\n"})
    assert (done.stdout, done.fuel_used) == (again.stdout, again.fuel_used)
    with pytest.raises(SignatureMismatch):
        await runtime.execute_async(wasm("add"), "add", [1])
    with pytest.raises(ModuleTrapped, match="division by zero"):
        await runtime.execute_async(wasm("trap"), "divide", [1, 0])


async def test_the_loop_goes_on_and_who_cancels_ends_the_program(runtime):
    limits = Limits(fuel=FUEL_MAX, timeout_ms=600_000)
    running = asyncio.create_task(runtime.execute_async(wasm("endless"), "spin", limits=limits))
    while not runtime._sandbox.describe()["running"]:
        await asyncio.wait([running], timeout=0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    # There is one worker: this waits for another one, and not for the ten minutes.
    assert await runtime.execute_async(wasm("add"), "add", [1, 2]) == 3


def test_it_starts_again_after_it_was_closed():
    runtime = ComputeRuntime()
    runtime.close()
    for _ in range(2):
        assert runtime.execute(wasm("add"), "add", [1, 2]) == 3
        runtime.close()
