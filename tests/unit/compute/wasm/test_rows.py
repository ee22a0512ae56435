"""Batches: tables, limits of each call and of all, what is billed, and the receipt."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import replace

import pytest

from tests.strategies import vectors
from tests.unit.compute.programs import wasm
from tests.unit.compute.test_service import LIMITS, amount, forged, options
from xsc.base.encoding import encode
from xsc.base.errors import (
    ArgumentInvalid,
    FuelExhausted,
    ModuleTrapped,
    ProofInvalid,
    ReceiptInvalid,
    RecordInvalid,
    SignatureMismatch,
    TooLarge,
)
from xsc.base.jobs import JobSpec
from xsc.base.limits import (
    BATCH_CALL_FUEL,
    BATCH_ITEMS_MAX,
    COMPILE_BYTE_FUEL,
    FUEL_MAX,
    MILLISECOND_FUEL,
    OUTPUT_BYTES_MAX,
    PRICE_FUEL,
    RUN_FUEL,
)
from xsc.compute.jobs.receipts import bill
from xsc.compute.wasm import rows as batch
from xsc.compute.wasm.inputs import RunInput, input_hash
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.rows import (
    BATCH_TRAPS_BYTES_MAX,
    BATCH_TRAPS_MAX,
    ResultRow,
    Shape,
    read_rows,
    run_all,
)
from xsc.compute.wasm.sandbox import is_trap
from xsc.compute.wasm.signature import Signature
from xsc.identity.envelope import open_signed, sign
from xsc.node.offline.compute import Given, replay_file
from xsc.node.offline.verify import verify_file
from xsc.terms.execution import ExecutionReceipt, Order

ADD = Signature(("i32", "i32"), ("i32",))
GOLDEN = vectors("batch")


def bits(number):
    return number.to_bytes(4, "little")


def made(rows):
    written = batch.ResultTable(("i32",))
    for row in rows:
        written.add(row)
    return written.tables()


def good(number, fuel=4):
    return ResultRow((("i32", bits(number)),), None, fuel)


def read(rows_or_tables, *, count, fuel=100, each=100, timeout_ms=1):
    tables = rows_or_tables if isinstance(rows_or_tables, tuple) else made(rows_or_tables)
    return read_rows(
        Shape(count, each), ("i32",), *tables, fuel=fuel, timeout_ms=timeout_ms, is_trap=is_trap
    )


def test_golden_tables():
    """Made without this package."""
    case = GOLDEN["batch"]
    given = RunInput(args=tuple(case["args"]), stdin=bytes.fromhex(case["arguments"]))
    assert input_hash(given, case["output_bytes"]).hex() == case["input"]
    rows = [ResultRow((("i32", bytes.fromhex(r)),), None, f) for r, f in case["results"]]
    table, traps = made([*rows, ResultRow((), case["trap"], 7)])
    assert (table.hex(), traps.hex()) == (case["rows"], case["traps"])
    assert batch.batch_output(table, traps).hex() == case["output"]
    assert batch.seed_at(bytes(32), 1).hex() == case["seed_1"]


def test_what_is_written_is_read():
    rows = [
        good(1),
        ResultRow((), "module_trapped: unreachable", 3),
        good(2, 0),
        ResultRow((), "stack_exhausted", 1),
    ]
    assert read(rows, count=4) == (rows, 8)


@pytest.mark.parametrize(
    ("rows", "count", "why"),
    [
        ([good(1)], 2, "a row for each call"),
        ([good(1, 101)], 1, "more fuel"),
        ([good(1, 60), good(1, 60)], 2, "more fuel"),
        ([ResultRow((), "nonsense", 1)], 1, "does not exist"),
        ([ResultRow((), "time_exceeded", 99)], 1, "ended for its time"),
        ([ResultRow((), "time_exceeded", 100), good(1, 0)], 2, "ended for its time"),
        (
            [ResultRow((), "time_exceeded", 100), ResultRow((), "stack_exhausted", 0)],
            2,
            "ended for its time",
        ),
    ],
)
def test_each_rule_of_the_rows_is_named(rows, count, why):
    with pytest.raises(RecordInvalid, match=why):
        read(rows, count=count)


def test_traps_stand_once_in_order_and_are_met():
    table, traps = made([ResultRow((), "stack_exhausted", 1), ResultRow((), "fuel_exhausted", 1)])
    for other, why in (
        (encode(["stack_exhausted"]), "names a trap that the batch does not"),
        (encode(["stack_exhausted", "stack_exhausted"]), "twice"),
        (encode(["stack_exhausted", "fuel_exhausted", "output_too_large"]), "no call met"),
        (encode("stack_exhausted"), "is none"),
        (bytes(batch.BATCH_TRAPS_BYTES_MAX + 1), "over its bound"),
    ):
        with pytest.raises(RecordInvalid, match=why):
            read((table, other), count=2)
    swapped = table[14:] + table[:14]
    with pytest.raises(RecordInvalid, match="names a trap that the batch does not"):
        read((swapped, traps), count=2)
    with pytest.raises(RecordInvalid, match="results although"):
        read((table[:13] + b"\1" + table[14:], traps), count=2)


def test_more_kinds_of_traps_than_can_be_named_share_the_last_place():
    rows = [ResultRow((), f"module_trapped: {n}", 0) for n in range(BATCH_TRAPS_MAX + 9)]
    found, _ = read(rows, count=len(rows))
    assert found[: BATCH_TRAPS_MAX - 1] == rows[: BATCH_TRAPS_MAX - 1]
    assert {row.trap for row in found[BATCH_TRAPS_MAX - 1 :]} == {batch.OTHER_TRAP}
    long = [ResultRow((), f"module_trapped: {'x' * 900}{n}", 0) for n in range(BATCH_TRAPS_MAX)]
    assert read(long, count=len(long))[0][-1].trap == batch.OTHER_TRAP


@pytest.mark.parametrize(
    "texts", [(), ("1",), ("0", "1"), ("1", "0"), ("01", "1"), ("+1", "1"), ("1", "٣"), ("1",) * 3,
              (str(BATCH_ITEMS_MAX + 1), "1"), ("1", str(FUEL_MAX + 1)), ("1", "9" * 4000)],
    ids=lambda texts: " ".join(texts)[:20] or "none",
)  # fmt: skip
def test_a_shape_that_is_none(texts):
    with pytest.raises(ArgumentInvalid):
        batch.shape_of(texts)


def test_a_batch_has_bounds():
    batch.check_size(BATCH_ITEMS_MAX, ADD, OUTPUT_BYTES_MAX)
    with pytest.raises(ArgumentInvalid):
        batch.check_size(0, ADD, OUTPUT_BYTES_MAX)
    with pytest.raises(TooLarge, match="at most 65536"):
        batch.check_size(BATCH_ITEMS_MAX + 1, ADD, OUTPUT_BYTES_MAX)
    with pytest.raises(TooLarge, match="over their bound"):
        batch.check_size(BATCH_ITEMS_MAX, Signature(("i64",) * 33, ()), OUTPUT_BYTES_MAX)
    with pytest.raises(TooLarge, match="over their bound"):
        batch.check_size(BATCH_ITEMS_MAX, Signature((), ("i64",) * 32), OUTPUT_BYTES_MAX)
    most = 3 * batch.row_bytes(ADD.results) + BATCH_TRAPS_BYTES_MAX
    batch.check_size(3, ADD, most)
    with pytest.raises(TooLarge, match="over their bound"):
        batch.check_size(3, ADD, most - 1)
    with pytest.raises(SignatureMismatch):
        list(batch.split_arguments(bytes(7), 1, ADD.params))


@pytest.mark.parametrize("timeout_ms", range(6))
@pytest.mark.parametrize("fuel", range(1, 30))
def test_limits_of_all_end_the_rest_and_every_ending_is_believed(fuel, timeout_ms):
    """Five calls of up to 5 fuel and a millisecond each, under every limit."""
    made_calls, now = [], [0]

    def call(index, arguments, allowed, left_ms):
        made_calls.append(index)
        assert left_ms == timeout_ms - now[0] > 0
        now[0] += 1
        if allowed < 5:
            return ResultRow((), "fuel_exhausted", allowed), 1
        return good(index, 5), index

    table, traps, spent, peak = run_all(
        Shape(5, 6),
        ADD,
        bytes(40),
        fuel=fuel,
        timeout_ms=timeout_ms,
        elapsed_ms=lambda: now[0],
        call=call,
    )
    rows, summed = read((table, traps), count=5, fuel=fuel, each=6, timeout_ms=timeout_ms)
    assert summed == spent <= fuel
    assert len(rows) == 5
    assert made_calls == list(range(min(5, timeout_ms, -(-fuel // 5))))
    assert all(row.fuel_used == 0 for row in rows[len(made_calls) + 1 :])
    assert peak <= 4


def test_a_call_ended_for_its_time_is_billed_the_time_of_all():
    ended = ResultRow((), "time_exceeded", 0)
    table, traps, spent, _ = run_all(
        Shape(3, 10**12),
        ADD,
        bytes(24),
        fuel=10**12,
        timeout_ms=2,
        elapsed_ms=lambda: 0,
        call=lambda *_: (ended, 0),
    )
    assert spent == 2 * MILLISECOND_FUEL
    rows, _ = read((table, traps), count=3, fuel=10**12, each=10**12, timeout_ms=2)
    assert [row.fuel_used for row in rows] == [spent, 0, 0]


async def many(world, name, function, calls, **how):
    lines = "".join(f"{' '.join(call)}\n" for call in calls).encode()
    spec = JobSpec.batch(wasm(name), function, lines, **options(**how))
    return await world.customer.service.run(spec)


@pytest.mark.parametrize("local", [False, True])
async def test_a_batch_is_run_under_one_order_and_receipt(world, local):
    calls = [[str(n), "0x10"] for n in range(300)]
    done = await many(world, "add", "add", calls, local=local)
    assert [item.results for item in done.items] == [(str(n + 16),) for n in range(300)]
    assert done.fuel_used == sum(item.fuel_used for item in done.items) == 1200
    beside = RUN_FUEL + len(wasm("add")) * COMPILE_BYTE_FUEL + 300 * BATCH_CALL_FUEL
    assert amount(done) == (0 if local else 1200 + beside)
    if not local:
        assert world.customer.market.spending[-1][1] == 1200 + beside
        assert world.provider.market.used == [1200 + beside]
    assert len(world.wire.sent) == (0 if local else 2)  # asked, and again with the module
    assert "a batch of calls of add" in verify_file(done.receipt, wasm("add"))
    for place in range(0, len(done.receipt), 7):
        damaged = bytearray(done.receipt)
        damaged[place] ^= 1
        with pytest.raises(ProofInvalid):
            verify_file(bytes(damaged))


async def test_a_call_that_traps_stands_in_its_line_alone(world):
    done = await many(world, "trap", "divide", [["6", "3"], ["1", "0"], ["8", "2"]])
    assert [item.results for item in done.items] == [("2",), (), ("4",)]
    assert isinstance(done.items[1].trap, ModuleTrapped)
    assert done.trap is None


async def test_each_call_has_an_instance_and_a_limit_of_its_own(world):
    spun = await many(world, "endless", "spin", [[], [], []], item_fuel=1000)
    assert all(isinstance(item.trap, FuelExhausted) for item in spun.items)
    assert spun.fuel_used == 3000
    spun = await many(
        world, "endless", "spin", [[], [], []], limits=Limits(fuel=2500), item_fuel=1000
    )
    assert [item.fuel_used for item in spun.items] == [1000, 1000, 500]
    with pytest.raises(ArgumentInvalid):
        await many(world, "add", "add", [["1", "2"]], item_fuel=LIMITS.fuel + 1)


async def test_time_for_all_ends_the_batch(world):
    limits = Limits(fuel=10**12, timeout_ms=20)
    done = await many(world, "endless", "spin", [[], []], limits=limits)
    assert [item.trap.code for item in done.items] == ["time_exceeded"] * 2
    assert [item.fuel_used for item in done.items] == [20 * MILLISECOND_FUEL, 0]


async def test_wrong_arguments_name_their_call_and_nothing_is_run(world):
    for calls in ([["1", "2"], ["1"]], [["1", "2"], ["1", "x"]], [["1", "2"], ["1", "2", "3"]]):
        with pytest.raises(SignatureMismatch, match="call 2 of the batch"):
            await many(world, "add", "add", calls)
    with pytest.raises(SignatureMismatch):
        await many(world, "vector", "vector", [[]])
    assert world.wire.sent == []


async def test_results_that_do_not_hold_are_not_paid(world, network):
    """A provider signs what it likes: each change is refused, whatever the receipt says."""

    def with_tables(answer, change, fuel=0):
        receipt = open_signed(answer.header["receipt"], ExecutionReceipt, network=network).record
        tables = change(*(bytes(part) for part in answer.parts))
        outcome = receipt.outcome.model_copy(
            update={
                "output": batch.batch_output(*tables),
                "fuel_used": receipt.outcome.fuel_used + fuel,
            }
        )
        changed = receipt.model_copy(
            update={"outcome": outcome, "amount_micro": receipt.amount_micro + fuel}
        )
        raw = sign(changed, world.provider.key, network).raw
        header = {**answer.header, "receipt": raw}
        return replace(answer, header=header, parts=[memoryview(part) for part in tables])

    for change, fuel, why in (
        (lambda rows, traps: (rows[:-1], traps), 0, "row for each call"),
        (lambda rows, traps: (rows, encode(["stack_exhausted"])), 0, "no call met"),
        (lambda rows, traps: (rows, traps), 1, "sum of that of its calls"),
    ):
        world.wire.tap = lambda answer, c=change, f=fuel: with_tables(answer, c, f)
        with pytest.raises(ReceiptInvalid, match=why):
            await many(world, "add", "add", [["1", "2"]] * 2, on=world.provider.key.node_id)
    assert world.customer.market.spending == []


@pytest.mark.parametrize("calls", [0, 1, 4, BATCH_ITEMS_MAX])
async def test_calls_that_a_batch_has_not_are_not_paid(world, calls):
    def claim(receipt):
        observed = receipt.observed.model_copy(update={"calls": calls})
        order = open_signed(receipt.order, Order, network=None).record
        amount = bill(order, receipt.outcome, observed, PRICE_FUEL)
        return receipt.model_copy(update={"observed": observed, "amount_micro": amount})

    forged(world, claim)
    with pytest.raises(ReceiptInvalid, match="calls"):
        await many(world, "add", "add", [["1", "2"]] * 3, on=world.provider.key.node_id)
    with pytest.raises(ReceiptInvalid, match="calls") if calls else nullcontext():
        await world.invoke(on=world.provider.key.node_id)


@pytest.mark.parametrize("calls", [1, 3, BATCH_ITEMS_MAX])
async def test_a_second_run_holds_the_calls_that_are_billed_against_the_batch(world, calls):
    done = await many(world, "add", "add", [["1", "2"]] * 2, on=world.provider.key.node_id)
    given = Given(stdin=b"1 2\n1 2\n")
    again = await asyncio.to_thread(replay_file, done.receipt, wasm("add"), given)
    assert again["verdict"] == "agrees"
    receipt = open_signed(done.receipt, ExecutionReceipt, network=None).record
    order = open_signed(receipt.order, Order, network=None).record
    observed = receipt.observed.model_copy(update={"calls": calls})
    amount = bill(order, receipt.outcome, observed, PRICE_FUEL)
    lie = receipt.model_copy(update={"observed": observed, "amount_micro": amount})
    raw = sign(lie, world.provider.key, world.network).raw
    with pytest.raises(ProofInvalid, match="other calls than the batch has"):
        await asyncio.to_thread(replay_file, raw, wasm("add"), given)
