"""Computes without any node: a job in this process, and the order of a receipt again.

The sandbox is the node's own, in worker processes, and so are the limits. The receipt of a job is
signed by a key made for this one job: it proves the bits, and nobody's debt.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from xsc.base import errors, ids, log
from xsc.base.jobs import JobResult, JobSpec
from xsc.base.limits import COMPILE_MS_MAX
from xsc.compute.jobs.output_buffer import OutputBuffer
from xsc.compute.jobs.receipts import check_compiled
from xsc.compute.jobs.replay import Judgement, judge, replay_job, why_not
from xsc.compute.jobs.runner import JobRunner
from xsc.compute.wasm import program, rows
from xsc.compute.wasm.inputs import RunInput, check_input, input_hash
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.rows import read_lines
from xsc.compute.wasm.sandbox import Job, SandboxResult
from xsc.compute.worker.pool import PoolSandbox
from xsc.identity.context import Context
from xsc.identity.keys import NETWORK_DEFAULT, KeyPair, network_id
from xsc.node.offline.verify import open_runs
from xsc.node.system import SystemClock, SystemEntropy, ThreadExecutor
from xsc.terms.execution import Order, Outcome


@asynccontextmanager
async def sandbox() -> AsyncGenerator[PoolSandbox, None]:
    """Have a sandbox of one worker."""
    pool = PoolSandbox(1, SystemClock(), log.SilentLog(), compile_ms=COMPILE_MS_MAX)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()


async def _run(spec: JobSpec, output: OutputBuffer | None) -> JobResult:
    entropy = SystemEntropy()
    async with sandbox() as pool:
        with closing(ThreadExecutor(1)) as executor:
            key, network = KeyPair(entropy.token(32)), network_id(NETWORK_DEFAULT)
            nothing: Any = None  # There are neither peers nor a disk.
            ports = (SystemClock(), entropy, executor, nothing, log.SilentLog(), nothing, nothing)
            runner = JobRunner(Context(key, network, *ports), pool)
            task = await runner.read(spec, ())
            return await runner.result(task, await runner.run_here(task, output))


async def _show(spec: JobSpec, show: Callable[[int, bytes], None]) -> JobResult:
    output = OutputBuffer(SystemClock())
    running = asyncio.ensure_future(_run(spec, output))
    running.add_done_callback(lambda _: output.close())
    async for stream, piece in output.pieces():
        show(stream, piece)
    return replace(await running, stdout=b"", stderr=b"")


def run_here(spec: JobSpec, show: Callable[[int, bytes], None] | None = None) -> JobResult:
    """Run a job in this process; return its result.

    With `show`, that is given what the program writes, and to which stream; the result holds
    none of it then.

    Raises:
        XscError: it cannot run; a limit that ended it is the result's `trap`.
    """
    return asyncio.run(_run(spec, None) if show is None else _show(spec, show))


@dataclass(frozen=True, slots=True)
class Given:
    """What the run was given, as the command line says it."""

    arguments: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    """Of a batch: its lines."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    item_fuel: int | None = None


def input_of(order: Order, module: bytes, given: Given) -> RunInput:
    """Return the input that an order names.

    Raises:
        ArgumentInvalid: what was given is another one.
    """
    if order.mode == "batch":
        calls = read_lines(given.stdin)
        shape = rows.Shape(len(calls), given.item_fuel or order.fuel_max)
        signature = program.read(module).signature(order.function)
        found = RunInput(shape.texts(), stdin=rows.table_of(calls, order.function, signature))
    else:
        found = RunInput(
            tuple(given.arguments),
            tuple(sorted(given.env.items())),
            given.stdin,
            tuple(sorted(given.files.items())),
        )
        check_input(found)
    if input_hash(found, Limits().output_bytes) != order.input:
        what = {
            "invoke": "give no ARGS and no input: the receipt of an invocation holds its arguments",
            "run": "give the same arguments, --env, --stdin and files as the run had",
            "batch": "give the same lines with --batch, and --item-fuel if there was one",
        }
        raise errors.ArgumentInvalid(
            "what is given is not the input that the order names", hint=what[order.mode]
        )
    return found


async def _again(order: Order, job: Job, told: Sequence[Outcome]) -> SandboxResult | str:
    """Return what a second run gives, or why none could say anything."""
    async with sandbox() as pool:
        about = pool.describe()
        engine, config = str(about["engine"]), bytes.fromhex(str(about["engine_config"]))
        refusals = [why_not(order, each, engine, config) for each in told]
        return refusals[0] if refusals[0] is not None else await pool.run(job)


def _judge_all(
    order: Order, told: Sequence[Outcome], module: bytes, given: Given
) -> list[Judgement]:
    """Run an order again, once, and return what that says of each outcome."""
    try:
        results = program.read(module).signature(order.function).results
        found = input_of(order, module, given)
        job = replay_job(order, module, found, Limits().output_bytes)
        again = asyncio.run(_again(order, job, told))
    except (errors.ModuleInvalid, errors.ExportUnknown, errors.SignatureMismatch) as fault:
        return [Judgement("differs", (f"such a run cannot be: {fault.message}",))] * len(told)
    if isinstance(again, str):
        return [Judgement("cannot_tell", (again,))] * len(told)
    return [judge(order, each, again, found, results) for each in told]


def replay_file(raw: bytes, module: bytes, given: Given) -> dict[str, object]:
    """Run the order of a receipt, or of evidence, again; return the verdict as a document.

    Raises:
        ProofInvalid: it is neither, or does not hold by itself.
        ArgumentInvalid: module or input are not those of the order.
    """
    runs = open_runs(raw)
    order, receipts = runs[0][0].record, [receipt.record for _, receipt in runs]
    if hashlib.sha256(module).digest() != order.module:
        raise errors.ArgumentInvalid(
            "the receipt is for another module than the one given",
            hint=f"it is for the module with the SHA-256 {order.module.hex()}",
        )
    for receipt in receipts:
        fault = check_compiled(receipt, len(module))
        if fault is not None:
            raise errors.ProofInvalid(fault)
    verdicts = _judge_all(order, [receipt.outcome for receipt in receipts], module, given)
    if len(runs) == 2:
        told = any(verdict.verdict == "differs" for verdict in verdicts)
        return {
            "verdict": "convicts" if told else "cannot_tell",
            "providers": [
                {"provider": ids.to_text(receipt.author), **asdict(verdict)}
                for (_, receipt), verdict in zip(runs, verdicts, strict=True)
            ],
        }
    outcome, calls = receipts[0].outcome, receipts[0].observed.calls
    if outcome.mode == "batch" and calls != len(read_lines(given.stdin)):
        raise errors.ProofInvalid("it bills other calls than the batch has")
    return {
        **asdict(verdicts[0]),
        "fuel_used": outcome.fuel_used,
        "memory_peak_bytes": outcome.memory_peak_bytes,
        "output": outcome.output.hex(),
        "engine": outcome.engine,
    }
