from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.compute.programs import i32
from xsc.base.errors import (
    ArgumentInvalid,
    CreditExceeded,
    FuelExhausted,
    ModuleTrapped,
    TooLarge,
    XscError,
)
from xsc.base.limits import (
    ARGUMENT_BYTES_MAX,
    FUEL_MAX,
    INPUT_BYTES_MAX,
    MFUEL,
    MILLISECOND_FUEL,
    PRICE_FUEL,
    RUN_FUEL,
    STDIN_BYTES_MAX,
)
from xsc.compute.jobs.receipts import check_price, check_receipt, job_of, make_receipt, seed_of
from xsc.compute.wasm.inputs import (
    FILES_MAX,
    RunInput,
    check_input,
    input_hash,
    is_output_path,
    output_hash,
)
from xsc.compute.wasm.sandbox import SandboxResult, is_trap, trap_error
from xsc.identity.envelope import open_signed, sign
from xsc.terms.execution import ExecutionReceipt, Number, Order

PRICE = 3_000
RESULT = SandboxResult((i32(5),), None, None, 4 * MFUEL, 65536, b"", b"", (), "e", bytes(32), 9)
OUTPUT = output_hash(b"", b"", ())


def an_order(alice, bob, **changed):
    fields = {
        "nonce": bytes(16),
        "lease_id": b"L" * 32,
        "customer": alice.node_id,
        "provider": bob.node_id,
        "module": b"M" * 32,
        "mode": "invoke",
        "function": "add",
        "arguments": (Number(type="i32", bits=b"\2\0\0\0"),),
        "input": input_hash(RunInput(), 100),
        "fuel_max": 10 * MFUEL,
        "memory_bytes_max": 1 << 27,
        "timeout_ms": 1000,
        "created_ms": 77,
        "grants": (),
        "given_bytes": 0,
    }
    return Order(**{**fields, **changed})


@pytest.fixture
def order(alice, bob, network):
    return sign(an_order(alice, bob), alice, network)


@pytest.fixture
def receipt(order):
    return make_receipt(order, RESULT, price=PRICE, started_ms=78, wall_ms=9)


@pytest.mark.parametrize(
    "given",
    [
        RunInput(args=("\udcff",)),
        RunInput(environment=(("K", "\udcff"),)),
        RunInput(environment=(("\ud800", "v"),)),
        RunInput(files=(("\udfff", b""),)),
        RunInput(files=(("..", b""),)),
        RunInput(files=(("a/b", b""),)),
        RunInput(files=(("a\0", b""),)),
        RunInput(files=(("", b""),)),
        RunInput(files=(("ä" * 128, b""),)),
    ],
)
def test_hostile_texts_and_names_are_refused(given):
    with pytest.raises(ArgumentInvalid):
        check_input(given)


def test_paths_that_a_program_can_leave_a_file_at():
    for path in ("a", "a/b", "..a", "ä", "x" * 255):
        assert is_output_path(path)
    for path in ("", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\0", "x" * 256):
        assert not is_output_path(path)


def test_a_receipt_that_was_made_is_accepted(order, receipt):
    # 128 MiB are two steps.
    assert receipt.amount_micro == PRICE * (4 * MFUEL + RUN_FUEL) * 2 // PRICE_FUEL == 54
    assert check_receipt(order, receipt, PRICE, results=["i32"], output=OUTPUT) is None


def altered(receipt, **changed):
    outcome = {name: changed.pop(name) for name in list(changed) if name != "amount_micro"}
    return receipt.model_copy(
        update={**changed, "outcome": receipt.outcome.model_copy(update=outcome)}
    )


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"module": b"N" * 32}, "another run"),
        ({"mode": "run"}, "another run"),
        ({"function": "sub"}, "another run"),
        ({"arguments": ()}, "another run"),
        ({"input": bytes(32)}, "another run"),
        ({"trap": "tired"}, "does not exist"),
        ({"trap": "fuel_exhausted"}, "although the run was trapped"),
        ({"exit_code": 0}, "no exit code"),
        ({"results": ()}, "not of the function's types"),
        ({"results": (Number(type="f32", bits=bytes(4)),)}, "not of the function's types"),
        ({"fuel_used": 10 * MFUEL + 1}, "more fuel"),
        ({"memory_peak_bytes": (1 << 27) + 1}, "more memory"),
        ({"amount_micro": 55}, "does not follow"),
        ({"amount_micro": 53}, "does not follow"),
        ({"fuel_used": 5 * MFUEL}, "does not follow"),
        ({"output": bytes(32)}, "what was delivered"),
    ],
)
def test_each_rule_is_named_when_it_is_broken(order, receipt, changed, rule):
    broken = check_receipt(
        order, altered(receipt, **changed), PRICE, results=["i32"], output=OUTPUT
    )
    assert broken is not None
    assert rule in broken


@pytest.mark.parametrize("given_bytes", [0, 1, 1000])
def test_more_saved_than_the_job_has_breaks_a_rule(alice, bob, network, given_bytes):
    said = {"given_bytes": given_bytes} if given_bytes else {}
    order = sign(an_order(alice, bob, **said), alice, network)
    for claimed in (0, 1, 999, 1000, 2**40):
        receipt = make_receipt(
            order, RESULT, price=PRICE, started_ms=78, wall_ms=9, saved_bytes=claimed
        )
        assert ExecutionReceipt.from_bytes(receipt.to_bytes()) == receipt
        broken = check_receipt(order, receipt, PRICE)
        rule = "it says that more bytes were saved than the job has"
        assert broken == (rule if claimed > given_bytes else None)


def test_a_receipt_for_another_order_is_refused(alice, bob, network, receipt):
    other = sign(an_order(alice, bob, nonce=b"n" * 16), alice, network)
    assert check_receipt(other, receipt, PRICE) == "it is for another order"


def test_a_run_has_an_exit_code_or_a_trap(alice, bob, network):
    asked = an_order(alice, bob, mode="run", function="_start", arguments=())
    order = sign(asked, alice, network)
    ended = replace(RESULT, results=(), exit_code=3)
    receipt = make_receipt(order, ended, price=PRICE, started_ms=0, wall_ms=0)
    assert check_receipt(order, receipt, PRICE, results=()) is None
    for changed in ({"exit_code": None}, {"results": (Number(type="i32", bits=bytes(4)),)}):
        assert "exit code and no results" in check_receipt(
            order, altered(receipt, **changed), PRICE
        )
    trapped = altered(receipt, exit_code=None, trap="output_too_large")
    assert check_receipt(order, trapped, PRICE) is None


def test_a_receipt_with_any_byte_changed_is_refused(bob, network, order, receipt):
    signed = sign(receipt, bob, network)
    for place in range(len(signed.raw)):
        raw = bytearray(signed.raw)
        raw[place] ^= 1
        with pytest.raises(XscError):
            open_signed(bytes(raw), ExecutionReceipt, network=network, author=bob.node_id)


def test_a_price_that_no_amount_can_hold_is_refused(alice, bob):
    check_price(an_order(alice, bob), 2**67)
    with pytest.raises(CreditExceeded):
        check_price(an_order(alice, bob), 2**70)


def test_the_job_of_an_order_follows_from_it_alone(alice, bob):
    order = an_order(alice, bob)
    given = RunInput(args=("a",), stdin=b"x")
    job = job_of(order, b"module", given, 100)
    assert (job.seed, job.clock_ms, job.customer) == (seed_of(order.nonce), 77, alice.node_id)
    assert (job.limits.fuel, job.limits.output_bytes) == (10 * MFUEL, 100)
    assert (job.args, job.stdin, job.arguments) == (("a",), b"x", (i32(2),))
    assert seed_of(order.nonce) != seed_of(b"n" * 16)


def test_traps_are_errors_that_a_caller_can_raise():
    assert isinstance(trap_error("fuel_exhausted"), FuelExhausted)
    failed = trap_error("module_trapped: unreachable")
    assert isinstance(failed, ModuleTrapped)
    assert failed.message == "the program failed by itself: unreachable"
    assert is_trap("module_trapped: x")
    assert not is_trap("sandbox_failed")


def test_every_part_of_the_input_is_in_its_hash():
    given = RunInput(("a",), (("N", "v"),), b"in", (("f", b"data"),))
    others = [
        replace(given, args=("a", "")),
        replace(given, environment=(("N", "w"),)),
        replace(given, environment=(("M", "v"),)),
        replace(given, stdin=b""),
        replace(given, files=(("g", b"data"),)),
        replace(given, files=(("f", b"date"),)),
        replace(given, files=()),
    ]
    hashes = {input_hash(each, 100) for each in [given, *others]} | {input_hash(given, 101)}
    assert len(hashes) == len(others) + 2


def test_every_part_of_the_output_is_in_its_hash():
    files = (("a", b"1"),)
    outputs = [
        (b"o", b"e", files),
        (b"", b"e", files),
        (b"o", b"", files),
        (b"o", b"e", ()),
        (b"o", b"e", (("b", b"1"),)),
        (b"o", b"e", (("a", b"2"),)),
    ]
    assert len({output_hash(*each) for each in outputs}) == len(outputs)


@pytest.mark.parametrize(
    "given",
    [
        RunInput(args=("a\0b",)),
        RunInput(environment=(("", "v"),)),
        RunInput(environment=(("A=B", "v"),)),
        RunInput(environment=(("B", ""), ("A", ""))),
        RunInput(environment=(("A", ""), ("A", "1"))),
        RunInput(files=(("..", b""),)),
        RunInput(files=(("a/b", b""),)),
        RunInput(files=(("", b""),)),
        RunInput(files=(("x" * 256, b""),)),
        RunInput(files=(("b", b""), ("a", b""))),
    ],
)
def test_malformed_input_is_refused(given):
    with pytest.raises(ArgumentInvalid):
        check_input(given)


@pytest.mark.parametrize(
    "given",
    [
        RunInput(args=("x",) * 65),
        RunInput(args=("x" * ARGUMENT_BYTES_MAX,)),
        RunInput(environment=tuple((f"{n:03}", "") for n in range(257))),
        RunInput(stdin=bytes(STDIN_BYTES_MAX + 1)),
        RunInput(files=tuple((f"{n:03}", b"") for n in range(FILES_MAX + 1))),
        RunInput(files=(("a", bytes(INPUT_BYTES_MAX)), ("b", b"x"))),
    ],
    ids=lambda given: type(given).__name__,
)
def test_input_over_a_bound_is_refused(given):
    with pytest.raises(TooLarge):
        check_input(given)


@pytest.mark.parametrize(
    ("trap", "allowed_ms"),
    [("time_exceeded", 25), ("compile_limit", 9), ("worker_lost", 25)],
)
@pytest.mark.parametrize("fuel_max", [1, 10**6, 10**8, FUEL_MAX])
@pytest.mark.parametrize("counted", [0, 7, 10 * MFUEL])
def test_a_run_ended_for_its_time_is_billed_for_that_time(
    order, alice, network, *, trap, allowed_ms, fuel_max, counted
):
    asked = order.record.model_copy(update={"timeout_ms": 25, "fuel_max": fuel_max})
    order = sign(asked, alice, network)
    ended = replace(RESULT, results=(), trap=trap, fuel_used=min(counted, fuel_max))
    made = make_receipt(order, ended, price=PRICE, started_ms=78, wall_ms=9)
    assert made.outcome.fuel_used == min(fuel_max, allowed_ms * MILLISECOND_FUEL) <= fuel_max
    assert check_receipt(order, made, PRICE) is None
    for other in {0, 1, counted, fuel_max, made.outcome.fuel_used - 1} - {made.outcome.fuel_used}:
        lie = altered(made, fuel_used=other)
        assert "for its time" in check_receipt(order, lie, PRICE)
