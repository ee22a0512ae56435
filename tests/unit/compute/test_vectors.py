"""Hashes, amounts and fuel that may never change in silence.

The fuel was recorded with wasmtime-py 50.0.1 and this configuration. Where it
changes, the engine or its configuration did, and receipts of before cannot be
compared with those of after: that is for a new engine version, never a new vector.
"""

from __future__ import annotations

import pytest

from tests.strategies import vectors
from tests.unit.compute.programs import job, wasm
from xsc.base.encoding import tagged_sha256
from xsc.compute.wasm.engine import Machine
from xsc.compute.wasm.inputs import RunInput, input_hash, output_hash
from xsc.compute.wasm.program import read
from xsc.compute.wasm.values import parse_arguments
from xsc.terms.pricing import compute_amount, fuel_steps, run_steps

VECTORS = vectors("compute")


def pairs(items, *, encoded=True):
    return tuple((name, text.encode() if encoded else text) for name, text in items)


@pytest.mark.parametrize("case", VECTORS["inputs"])
def test_input_hashes(case):
    given = RunInput(
        tuple(case["args"]),
        pairs(case["environment"], encoded=False),
        case["stdin"].encode(),
        pairs(case["files"]),
    )
    assert input_hash(given, case["output_bytes"]).hex() == case["hash"]


@pytest.mark.parametrize("case", VECTORS["outputs"])
def test_output_hashes(case):
    stdout, stderr = case["stdout"].encode(), case["stderr"].encode()
    assert output_hash(stdout, stderr, pairs(case["files"])).hex() == case["hash"]


@pytest.mark.parametrize("case", VECTORS["seeds"])
def test_seeds(case):
    assert tagged_sha256("compute-seed", bytes.fromhex(case["nonce"])).hex() == case["seed"]


@pytest.mark.parametrize("case", VECTORS["amounts"])
def test_amounts(case):
    steps = fuel_steps(case["fuel"], case["memory_bytes"])
    assert compute_amount(case["price"], steps) == case["amount"]


@pytest.mark.parametrize("case", VECTORS["bills"])
def test_bills(case):
    """Made with exact fractions, without this package."""
    steps = run_steps(case["fuel"], case["memory_bytes"], case["compiled_bytes"], case["calls"])
    assert compute_amount(case["price"], steps) == case["amount"]


@pytest.fixture(scope="module")
def machine():
    made = Machine()
    yield made
    made.close()


@pytest.mark.parametrize("case", VECTORS["fuel"], ids=lambda case: case["program"])
def test_fuel(machine, case):
    signature = read(wasm(case["program"])).signature(case["function"])
    numbers = parse_arguments(case["arguments"], case["function"], signature)
    mode = "run" if case["function"] == "_start" else "invoke"
    result = machine.run(job(case["program"], case["function"], *numbers, mode=mode))
    assert result.fuel_used == case["fuel"]
    assert result.memory_peak_bytes == case["memory_peak_bytes"]
