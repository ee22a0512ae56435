"""What a program writes is seen while it runs, here and elsewhere, and a run can be cancelled."""

from __future__ import annotations

import asyncio
import io
import threading
from itertools import pairwise

import pytest
import wasmtime

from tests.settle import settle
from tests.unit.compute.programs import SteadyClock, job_of
from tests.unit.compute.test_service import LIMITS, PRICE
from xsc.base.clock import ManualClock
from xsc.base.errors import ReceiptInvalid, SandboxFailed
from xsc.base.limits import FUEL_MAX, MILLISECOND_FUEL, RUN_FUEL, STREAM_PIECE_BYTES
from xsc.base.log import SilentLog
from xsc.compute.jobs.output_buffer import OutputBuffer, run_streamed
from xsc.compute.jobs.receipts import time_fuel
from xsc.compute.jobs.streams import CANCEL, OUTPUT
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.sandbox import SandboxResult
from xsc.compute.worker import frames
from xsc.compute.worker.main import OutputStream, Worker
from xsc.compute.worker.pool import PoolSandbox
from xsc.identity.envelope import open_signed, sign
from xsc.node.offline.verify import verify_file
from xsc.terms.execution import ExecutionReceipt, Order
from xsc.terms.pricing import compute_amount, run_steps

TALKER = bytes(
    wasmtime.wat2wasm("""(module
    (import "wasi_snapshot_preview1" "fd_write"
      (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 16) "outerr")
    (func $say (param $fd i32) (param $at i32)
      (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (i32.const 3))
      (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
    (func (export "_start")
      (call $say (i32.const 1) (i32.const 16)) (call $say (i32.const 2) (i32.const 19))
      (loop $for_ever (br $for_ever))))""")
)
"""Says something on both streams, and never ends."""


async def seen(output, stdout, stderr):
    """Return once that much is there; it need not come at once."""
    while len(output.written()[0]) < stdout or len(output.written()[1]) < stderr:
        await output.news.wait()
        assert not output.done


async def test_a_worker_shows_output_before_the_program_ends():
    pool = PoolSandbox(1, SteadyClock(), SilentLog())
    await pool.start()
    output = OutputBuffer(SteadyClock())
    job = job_of(TALKER, "_start", mode="run", fuel=FUEL_MAX, timeout_ms=60_000)
    running = asyncio.ensure_future(run_streamed(pool, job, output))
    await seen(output, 3, 3)
    assert not running.done()
    output.cancel()
    result = await running
    assert (result.trap, result.stdout, result.stderr) == ("cancelled", b"out", b"err")
    assert result.engine_config.hex() == pool.describe()["engine_config"]
    # The worker is gone with the program, and another one is there for the next.
    short = job_of(TALKER, "_start", mode="run", fuel=50_000)
    output = OutputBuffer(SteadyClock())
    again = await run_streamed(pool, short, output)
    assert (again.trap, again.stdout) == ("fuel_exhausted", b"out")
    assert output.written() == (b"out", b"err")
    # Killed by the clock, what was seen is still what it wrote.
    late = job_of(TALKER, "_start", mode="run", fuel=FUEL_MAX, timeout_ms=100)
    output = OutputBuffer(SteadyClock())
    ended = await run_streamed(pool, late, output)
    assert (ended.trap, ended.stdout, ended.stderr) == ("time_exceeded", *output.written())
    await pool.stop()


async def test_a_run_that_fails_ends_its_tape():
    class Broken:
        async def run(self, job, watch):
            watch.wrote(1, b"some")
            raise SandboxFailed("lost")

    output = OutputBuffer(ManualClock())
    with pytest.raises(SandboxFailed):
        await run_streamed(Broken(), None, output)
    assert output.done


async def test_pieces_are_all_that_was_written_in_order():
    output = OutputBuffer(ManualClock())
    long = bytes(range(256)) * (STREAM_PIECE_BYTES // 100)
    got = {1: b"", 2: b""}

    async def collect():
        async for stream, piece in output.pieces():
            assert 0 < len(piece) <= STREAM_PIECE_BYTES
            got[stream] += piece

    collecting = asyncio.ensure_future(collect())
    for start, stop in pairwise(range(0, len(long) + 1, len(long) // 7)):
        output.wrote(1, long[start:stop])
        output.wrote(2, b"x")
        await asyncio.sleep(0)
    whole, extra = output.written()[0] + b"end", output.written()[1]
    assert not output.finish(b"other" + whole, extra)
    assert not output.done
    assert output.finish(whole, extra)
    output.wrote(1, b"too late")
    await collecting
    assert got == {1: whole, 2: extra}


def test_what_comes_soon_after_is_told_together_and_nothing_waits_for_ever():
    told, came = [], threading.Event()

    def tell(stream, data):
        told.append((stream, data))
        came.set()

    stream = OutputStream(tell)
    stream.wrote(1, b"a")
    assert told == [(1, b"a")]
    for _ in range(1000):
        stream.wrote(1, b"b")
    stream.wrote(2, b"c")
    stream.wrote(2, b"")
    stream.wrote(1, b"d")
    came.clear()
    assert came.wait(30)  # by the thread: the program writes no more
    stream.flush()
    assert len(told) < 500
    assert b"".join(data for stream, data in told if stream == 1) == b"a" + b"b" * 1000 + b"d"
    assert b"".join(data for stream, data in told if stream == 2) == b"c"
    size = STREAM_PIECE_BYTES
    stream.wrote(1, bytes(size))
    assert told[-1] == (1, bytes(size))


class Broken:
    """An engine that fails after the program wrote."""

    def has(self, module_hash):
        return True

    def run(self, job, tell):
        tell(1, b"at once")
        tell(1, b"soon")
        raise SandboxFailed("the engine failed")


def test_what_was_written_before_a_failure_is_told_before_it():
    given = frames.jobs_message([job_of(TALKER, "_start", mode="run")], stream=True)
    sink = io.BytesIO()
    Worker(Broken(), None, io.BytesIO(frames.to_frame(given)), sink).serve()
    said, kinds = sink.getvalue(), []
    while said:
        end = frames.PREFIX_BYTES + frames.length_of(said[: frames.PREFIX_BYTES])
        kinds.append(frames.from_frame(said[frames.PREFIX_BYTES : end]))
        said = said[end:]
    assert b"".join(each["data"] for each in kinds[:-1]) == b"at oncesoon"
    assert kinds[-1]["kind"] == "error"


class Stuck:
    """A sandbox whose program writes, and goes on until it is cancelled."""

    def __init__(self, inner, clock):
        self.inner = inner
        self.clock = clock
        self.runs = asyncio.Event()

    async def start(self):
        await self.inner.start()

    async def stop(self):
        await self.inner.stop()

    def describe(self):
        return self.inner.describe()

    async def run(self, job, watch=None) -> SandboxResult:
        watch.began()
        watch.wrote(1, b"so far")
        self.runs.set()
        return await asyncio.get_running_loop().create_future()


def stuck(world, node):
    node.service.runner.sandbox = Stuck(node.sandbox, world.clock)
    return node.service.runner.sandbox


def watched(world, output, **how):
    return asyncio.ensure_future(
        world.run("wordcount", stdin=b"one two\n", output=output, **{"limits": LIMITS, **how})
    )


async def test_output_of_a_peer_is_on_the_tape_and_in_the_answer(world):
    output = OutputBuffer(world.clock)
    done = await watched(world, output)
    assert done.stdout == output.written()[0] == b"1 2 8\n"
    assert output.done
    assert world.customer.market.spending


async def until(world, condition):
    """Let time pass until it is so."""
    for _ in range(1000):
        if condition():
            return
        world.clock.advance_to(world.clock.now_ms() + 10)
        await asyncio.sleep(0)
    raise AssertionError("it never became true")


async def test_a_run_elsewhere_is_cancelled_and_its_time_is_billed(world):
    sandbox = stuck(world, world.provider)
    output = OutputBuffer(world.clock)
    running = watched(world, output, limits=Limits(fuel=10**12), on=world.provider.key.node_id)
    await until(world, lambda: output.written()[0] == b"so far")
    assert sandbox.runs.is_set()
    output.cancel()
    await until(world, running.done)
    done = await running
    assert (done.trap.code, done.stdout, done.exit_code) == ("cancelled", b"so far", None)
    receipt = open_signed(done.receipt, ExecutionReceipt, network=None).record
    order = open_signed(receipt.order, Order, network=None).record
    ran_ms = receipt.observed.wall_ms
    assert ran_ms > 0
    assert done.fuel_used == ran_ms * MILLISECOND_FUEL == time_fuel(order, "cancelled", ran_ms)
    assert world.customer.market.spending == [
        (world.customer.market.leases[0].lease_id, done.fuel_used + RUN_FUEL)
    ]
    assert "ended by cancelled" in verify_file(done.receipt)
    assert world.provider.market.reserved == 0


@pytest.mark.parametrize("wall_ms", [None, 9_000])
async def test_the_bill_of_a_cancelled_run_is_checked(world, wall_ms):
    """Another fuel than its time costs, or more time than has passed."""
    stuck(world, world.provider)

    def forge(answer):
        if "receipt" not in answer.header:
            return answer
        record = open_signed(answer.header["receipt"], ExecutionReceipt, network=None).record
        fuel = 1 if wall_ms is None else wall_ms * MILLISECOND_FUEL
        observed = {} if wall_ms is None else {"wall_ms": wall_ms}
        record = record.model_copy(
            update={
                "outcome": record.outcome.model_copy(update={"fuel_used": fuel}),
                "observed": record.observed.model_copy(update=observed),
                "amount_micro": compute_amount(PRICE, run_steps(fuel, 1)),
            }
        )
        answer.header["receipt"] = sign(record, world.provider.key, world.network).raw
        return answer

    world.wire.tap = forge
    output = OutputBuffer(world.clock)
    running = watched(world, output, limits=Limits(fuel=10**12), on=world.provider.key.node_id)
    await until(world, lambda: output.size_bytes)
    output.cancel()
    await until(world, running.done)
    why = "bills another fuel" if wall_ms is None else "more time than has passed"
    with pytest.raises(ReceiptInvalid, match=why):
        await running
    assert world.customer.market.spending == []


async def test_what_nobody_cancelled_is_not_paid_as_cancelled(world):
    """A provider that ends a run by itself and bills the time."""
    sandbox = stuck(world, world.provider)
    output = OutputBuffer(world.clock)
    running = watched(world, output, limits=Limits(fuel=10**12), on=world.provider.key.node_id)
    await until(world, sandbox.runs.is_set)
    (run,) = world.provider.service._job_executor._orders.runs()
    run.output.cancel()
    await until(world, running.done)
    with pytest.raises(ReceiptInvalid, match="nobody has cancelled it"):
        await running
    assert world.customer.market.spending == []


async def test_output_that_is_taken_back_is_refused(world):
    def lie(answer):
        if answer.header.get("known"):
            # As much as it may: the customer asks on without a pause while there is more.
            answer.parts[0] = memoryview(bytes(STREAM_PIECE_BYTES))
            answer.header["done"] = False
        return answer

    world.wire.tap = lie
    stuck_in = world.provider.service.runner.sandbox
    gate = asyncio.Event()

    class Slow:
        describe = stuck_in.describe
        start, stop = stuck_in.start, stuck_in.stop

        async def run(self, job, watch=None):
            watch.began()
            await gate.wait()
            return await stuck_in.run(job, watch)

    world.provider.service.runner.sandbox = Slow()
    output = OutputBuffer(world.clock)
    running = watched(world, output, on=world.provider.key.node_id)
    await until(world, lambda: output.size_bytes)
    gate.set()
    await until(world, running.done)
    with pytest.raises(ReceiptInvalid, match="does not begin with what it showed"):
        await running
    assert world.customer.market.spending == []


async def test_a_provider_that_shows_nothing_still_answers(world):
    """It refuses the methods by which output is watched."""
    handlers = world.provider.service.handlers()
    world.provider.service.handlers = lambda: {
        name: handler for name, handler in handlers.items() if name not in (OUTPUT, CANCEL)
    }
    output = OutputBuffer(world.clock)
    done = await watched(world, output, on=world.provider.key.node_id)
    assert done.stdout == output.written()[0] == b"1 2 8\n"


async def test_a_provider_that_waits_for_nothing_is_not_asked_without_end(world):
    sandbox = stuck(world, world.provider)
    handlers = world.provider.service.handlers()
    asked = 0

    async def hasty(*_):
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return {"known": True, "done": False}, (b"", b"")

    world.provider.service.handlers = lambda: {**handlers, OUTPUT: hasty}
    output = OutputBuffer(world.clock)
    running = watched(world, output, limits=Limits(fuel=10**12), on=world.provider.key.node_id)
    await until(world, sandbox.runs.is_set)
    before, now_ms = asked, world.clock.now_ms()
    await settle()
    assert asked <= before + 1
    assert world.clock.now_ms() == now_ms
    output.cancel()
    await until(world, running.done)


async def test_a_provider_that_shows_more_at_once_than_it_may_is_watched_no_more(world):
    sandbox = stuck(world, world.provider)
    handlers = world.provider.service.handlers()
    told = asyncio.Event()

    async def flood(*_):
        told.set()
        return {"known": True, "done": False}, (bytes(STREAM_PIECE_BYTES + 1), b"")

    world.provider.service.handlers = lambda: {**handlers, OUTPUT: flood}
    output = OutputBuffer(world.clock)
    running = watched(world, output, limits=Limits(fuel=10**12), on=world.provider.key.node_id)
    await until(world, sandbox.runs.is_set)
    await until(world, told.is_set)
    output.cancel()
    await until(world, running.done)
    assert output.written()[0] == (await running).stdout == b"so far"


async def test_nobody_sees_or_cancels_the_runs_of_others(world):
    sandbox = stuck(world, world.provider)
    output = OutputBuffer(world.clock)
    running = watched(world, output, limits=Limits(fuel=10**12), on=world.provider.key.node_id)
    await until(world, sandbox.runs.is_set)
    sent = next(header for _, header, _ in world.wire.sent if "order" in header)
    nonce = open_signed(sent["order"], Order, network=None).record.nonce
    stranger = world.other.key.node_id
    handlers = world.provider.service.handlers()
    asked = {"nonce": nonce, "stdout": 0, "stderr": 0, "wait_ms": 0}
    head, parts = await handlers[OUTPUT](stranger, asked, [])
    assert (head, list(parts)) == ({"known": False, "done": False}, [b"", b""])
    head, _ = await handlers[CANCEL](stranger, {"nonce": nonce}, [])
    assert head == {"known": False}
    output.cancel()
    await until(world, running.done)


async def test_no_other_provider_is_asked_once_something_was_shown(world):
    class Dying:
        start, stop = world.provider.sandbox.start, world.provider.sandbox.stop
        describe = world.provider.sandbox.describe
        gate = asyncio.Event()

        async def run(self, job, watch=None):
            watch.began()
            watch.wrote(1, b"partly")
            await self.gate.wait()
            raise SandboxFailed("the worker is gone")

    world.provider.service.runner.sandbox = Dying()
    output = OutputBuffer(world.clock)
    running = watched(world, output)
    await until(world, lambda: output.size_bytes)
    Dying.gate.set()
    await until(world, running.done)
    with pytest.raises(SandboxFailed):
        await running
    assert output.written()[0] == b"partly"
