"""Whatever bytes a peer sends as a module: it runs within its limits, or it is refused by name."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.compute.grammar import module_of
from tests.unit.compute.programs import FOLDER, SteadyClock, job_of
from xsc.base.errors import CallerError
from xsc.base.log import SilentLog
from xsc.compute.wasm.program import prepare, read
from xsc.compute.wasm.sandbox import is_trap
from xsc.compute.wasm.signature import Signature
from xsc.compute.worker.pool import PoolSandbox

CASES = int(os.environ.get("TEST_FUZZ_CASES", "500"))
"""How many modules each of the long tests runs; CONTRIBUTING.md says how many before a release."""
LONG = pytest.mark.timeout(0 if CASES > 500 else 300)
"""The bound of all tests, but for the long run."""
MODULES = [path.read_bytes() for path in sorted(FOLDER.glob("*.wasm"))]
SMALL = [module for module in MODULES if len(module) < 600]


def mutated(module, chance):
    raw = bytearray(module)
    for _ in range(chance.randint(1, 3)):
        # Most of what can go wrong when it runs is in the code, which comes last.
        place = chance.randrange(len(raw) // 2 if chance.random() < 0.7 else 0, len(raw))
        match chance.randrange(6):
            case 0 | 4 | 5:
                raw[place] = chance.randrange(256)
            case 1:
                raw[place] ^= 1 << chance.randrange(8)
            case 2:
                raw.insert(place, chance.randrange(256))
            case _:
                del raw[place]
    return bytes(raw)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(b"\0asm\1\0\0\0".__add__)))
def test_any_bytes_are_read_or_refused(raw):
    try:
        program = read(raw)
    except CallerError:
        return
    read(prepare(raw, program))


@given(st.sampled_from(MODULES), st.integers(0, 2**32))
def test_damaged_modules_are_read_or_refused(module, seed):
    raw = mutated(module, random.Random(seed))
    try:
        program = read(raw)
    except CallerError:
        return
    read(prepare(raw, program))


@LONG
async def test_damaged_modules_leave_the_worker_as_it_was():
    chance = random.Random(20)
    pool = PoolSandbox(1, SteadyClock(), SilentLog())
    await pool.start()
    (worker,) = pool._workers.alive
    ran = 0
    for _ in range(CASES):
        raw = mutated(chance.choice(SMALL), chance)
        try:
            functions = read(raw).functions
        except CallerError:
            functions = {"f": Signature((), ())}  # the worker must refuse it by itself
        for name, signature in list(functions.items())[:3]:
            bits = [(kind, chance.randbytes(4 if "32" in kind else 8)) for kind in signature.params]
            given = job_of(raw, name, *bits, fuel=100_000, memory_bytes=1 << 24, timeout_ms=5_000)
            try:
                result = await pool.run(given)
            except CallerError:
                continue
            ran += 1
            assert result.fuel_used <= 100_000
            assert result.memory_peak_bytes <= 1 << 24
    assert pool._workers.alive == {worker}
    assert ran > CASES // 10
    await pool.stop()


@LONG
async def test_valid_modules_by_chance_stay_in_their_limits_and_do_the_same_again():
    pool = PoolSandbox(1, SteadyClock(), SilentLog())
    await pool.start()
    (worker,) = pool._workers.alive
    ends = Counter()
    for seed in range(min(CASES, 150) if CASES <= 500 else CASES):  # each takes ten times as long
        text = module_of(seed)
        raw = bytes(wasmtime.wat2wasm(text))
        chance = random.Random(seed)
        for name, signature in read(raw).functions.items():
            bits = [(kind, chance.randbytes(4 if "32" in kind else 8)) for kind in signature.params]
            given = job_of(raw, name, *bits, fuel=50_000, memory_bytes=1 << 22, timeout_ms=60_000)
            one, other = await pool.run(given), await pool.run(given)
            assert replace(one, wall_ms=0) == replace(other, wall_ms=0), seed
            assert one.fuel_used <= 50_000
            assert one.memory_peak_bytes <= 1 << 22
            ends[(one.trap or "done").partition(":")[0]] += 1
    assert pool._workers.alive == {worker}
    await pool.stop()
    assert {"done", "fuel_exhausted", "module_trapped"} <= set(ends)
    assert all(end == "done" or is_trap(end) for end in ends)
