"""A second run agrees with a true receipt, and names what is wrong with any other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.compute.jobs.test_receipts import an_order
from tests.unit.compute.programs import command, f64, i32, i64, job, wasm
from xsc.base.limits import TIMEOUT_MS_MAX
from xsc.compute.jobs.receipts import make_receipt
from xsc.compute.jobs.replay import judge, replay_job, why_not
from xsc.compute.wasm import rows as batch
from xsc.compute.wasm.engine import ENGINE, ENGINE_CONFIG, Machine
from xsc.compute.wasm.inputs import RunInput
from xsc.compute.wasm.rows import ResultRow, ResultTable, Shape
from xsc.identity.envelope import sign
from xsc.terms.execution import Number

RUNS = {
    "add": job("add", "add", i32(2), i32(3)),
    "NaN": job("float", "divide", f64(0), f64(0)),
    "signalling NaN": job("float", "same32", ("f32", bytes.fromhex("0100a07f"))),
    "several results": job("multi", "divmod", i32(17), i32(5)),
    "clock and sleep": job("sleep", "nap", i64(3600)),
    "random bytes": job("sleep", "draw", i32(64)),
    "fuel": job("endless", "spin"),
    "memory": job("memory_hog", "hog"),
    "memory from the start": job("memory_min", "one"),
    "stack": job("recursion", "deeper", i32(0)),
    "trap": job("trap", "divide", i32(1), i32(0)),
    "chance": command("chance"),
    "files": command("wordcount", "/in/text", files=(("text", b"one two\n"),)),
    "exit code": command("exit3"),
    "output": command("flood", output_bytes=1 << 20),
}


@pytest.fixture(scope="module")
def machine():
    made = Machine()
    yield made
    made.close()


def ordered(made, alice, bob, network):
    """Return the signed order of a job, and what it is given."""
    given = RunInput(made.args, made.environment, made.stdin, made.files)
    order = an_order(
        alice,
        bob,
        module=made.module_hash,
        mode=made.mode,
        function=made.function,
        arguments=tuple(Number(type=kind, bits=bits) for kind, bits in made.arguments),
        fuel_max=made.limits.fuel,
        memory_bytes_max=made.limits.memory_bytes,
        nonce=b"n" * 16,
    )
    return sign(order, alice, network), given


def run_again(machine, order, made, given):
    return machine.run(replay_job(order.record, made.module, given, made.limits.output_bytes))


@pytest.mark.parametrize("name", RUNS)
def test_a_second_run_agrees(machine, alice, bob, network, name):
    order, given = ordered(RUNS[name], alice, bob, network)
    first, second = (run_again(machine, order, RUNS[name], given) for _ in range(2))
    told = make_receipt(order, first, price=1, started_ms=0, wall_ms=9).outcome
    assert judge(order.record, told, second, given).verdict == "agrees"
    assert replace(first, wall_ms=0) == replace(second, wall_ms=0)


CHANGES = {
    "results": (Number(type="i32", bits=b"\6\0\0\0"),),
    "output": bytes(32),
    "trap": "stack_exhausted",
    "exit code": 0,
    "fuel": 5,
    "memory": 65536,
}
FIELDS = {"exit code": "exit_code", "fuel": "fuel_used", "memory": "memory_peak_bytes"}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_differs_is_named(machine, alice, bob, network, what):
    made = RUNS["add"]
    order, given = ordered(made, alice, bob, network)
    again = run_again(machine, order, made, given)
    told = make_receipt(order, again, price=1, started_ms=0, wall_ms=9).outcome
    told = told.model_copy(update={FIELDS.get(what, what): CHANGES[what]})
    found = judge(order.record, told, again, given)
    assert found.verdict == "differs"
    (reason,) = found.reasons
    assert reason.startswith(f"{what}: the receipt says ")


def test_raw_bits_are_compared(machine, alice, bob, network):
    """0.0 and -0.0 are equal numbers, and NaNs are equal to nothing."""
    made = job("float", "same32", ("f32", bytes(4)))
    order, given = ordered(made, alice, bob, network)
    again = run_again(machine, order, made, given)
    told = make_receipt(order, again, price=1, started_ms=0, wall_ms=9).outcome
    for bits in ("00000080", "0000c07f", "0100c07f"):
        other = (Number(type="f32", bits=bytes.fromhex(bits)),)
        wrong = told.model_copy(update={"results": other})
        assert judge(order.record, wrong, again, given).verdict == "differs"


def test_where_nothing_can_be_told_nothing_is(machine, alice, bob, network):
    made = RUNS["add"]
    order, given = ordered(made, alice, bob, network)
    again = run_again(machine, order, made, given)
    told = make_receipt(order, again, price=1, started_ms=0, wall_ms=9).outcome
    assert why_not(order.record, told, ENGINE, ENGINE_CONFIG) is None
    assert "wasmtime-py/1" in str(why_not(order.record, told, "wasmtime-py/1", ENGINE_CONFIG))
    assert "configured" in str(why_not(order.record, told, ENGINE, bytes(32)))
    for trap in ("time_exceeded", "compile_limit", "worker_lost"):
        late = told.model_copy(update={"trap": trap, "results": ()})
        assert trap in str(why_not(order.record, late, ENGINE, ENGINE_CONFIG))
        found = judge(order.record, told, replace(again, results=(), trap=trap), given)
        assert (found.verdict, trap in found.reasons[0]) == ("cannot_tell", True)


def test_the_second_run_has_time(alice, bob, network):
    order, given = ordered(RUNS["add"], alice, bob, network)
    again = replay_job(order.record, wasm("add"), given, 100)
    assert again.limits.timeout_ms == TIMEOUT_MS_MAX
    assert again.limits.fuel == order.record.fuel_max


def a_batch(alice, bob, network, *, fuel=10**6, item_fuel=10**5):
    calls = [[str(n), "7"] for n in range(9)]
    table = batch.table_of(calls, "divide", batch.Signature(("i32", "i32"), ("i32",)))
    given = RunInput(Shape(9, item_fuel).texts(), stdin=table)
    made = replace(
        job("trap", "divide", fuel=fuel), mode="batch", args=given.args, stdin=given.stdin
    )
    order, _ = ordered(made, alice, bob, network)
    return order, made, given


@pytest.mark.parametrize("item_fuel", [10**5, 10**6])
def test_a_batch_that_its_time_ended_is_not_accused(machine, alice, bob, network, item_fuel):
    """Wherever time ended it; and a wrong row before that is found all the same."""
    order, made, given = a_batch(alice, bob, network, item_fuel=item_fuel)
    again = run_again(machine, order, made, given)
    rows, _ = batch.read_rows(
        batch.shape_of(given.args),
        ("i32",),
        again.stdout,
        again.stderr,
        fuel=made.limits.fuel,
        timeout_ms=1000,
        is_trap=lambda _: True,
    )
    for cut in range(9):
        for wrong in (False, True):
            made_rows, before = ResultTable(("i32",)), 0
            for row in rows[:cut]:
                made_rows.add(replace(row, results=(i32(99),)) if wrong else row)
                before += row.fuel_used
            late = batch.late_fuel(min(item_fuel, made.limits.fuel - before), 1000)
            made_rows.add(ResultRow((), "time_exceeded", late))
            made_rows.add(ResultRow((), "time_exceeded", 0), times=8 - cut)
            table, traps = made_rows.tables()
            first = replace(again, stdout=table, stderr=traps, fuel_used=before + late)
            told = make_receipt(order, first, price=1, started_ms=0, wall_ms=9).outcome
            found = judge(order.record, told, again, given, ("i32",))
            assert found.verdict == ("differs" if wrong and cut else "cannot_tell")
            assert found.verdict == "differs" or f"at call {cut + 1}," in found.reasons[0]


def test_a_batch_agrees_or_differs(machine, alice, bob, network):
    order, made, given = a_batch(alice, bob, network)
    again = run_again(machine, order, made, given)
    told = make_receipt(order, again, price=1, started_ms=0, wall_ms=9).outcome
    assert judge(order.record, told, again, given, ("i32",)).verdict == "agrees"
    for place in range(0, len(again.stdout), 5):
        table = bytearray(again.stdout)
        table[place] ^= 1
        first = replace(again, stdout=bytes(table))
        told = make_receipt(order, first, price=1, started_ms=0, wall_ms=9).outcome
        assert judge(order.record, told, again, given, ("i32",)).verdict == "differs"
