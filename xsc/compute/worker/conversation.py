"""The conversation with a worker process about one job, under the job's deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid, XscError
from xsc.base.limits import KIB, KILL_GRACE_MS
from xsc.compute.wasm import code_format as codes
from xsc.compute.wasm.code_format import MachineCode
from xsc.compute.wasm.sandbox import Job, OutputWatch, SandboxResult
from xsc.compute.worker import frames
from xsc.compute.worker.compiler import CompileBoundMet
from xsc.compute.worker.mailbox import MailboxClosed
from xsc.compute.worker.process import ProcessLost, SandboxProcess

_MESSAGES_MAX = 3
"""Of one job: code wanted, running, and the result."""
_TRANSFER_BYTES_A_MS = 100 * KIB
"""The deadline is extended by the time that input and code take to reach the worker."""
Compile = Callable[[], Awaitable[tuple[MachineCode, bool]]]
"""Returns the code of the job's module, and whether it was compiled for it."""


class NotBegun(ProcessLost):
    """The process could not be given the job."""


async def converse(
    worker: SandboxProcess,
    job: Job,
    code: MachineCode | None,
    watch: OutputWatch | None,
    compiled_code: Compile,
) -> SandboxResult:
    """Run a job on a worker and return its result.

    Args:
        worker: a free one.
        job: the job.
        code: of its module, where the worker does not have it.
        watch: receives what the program writes.
        compiled_code: used where the worker has lost the code that it had.

    Raises:
        ProcessLost: the worker ended or broke the protocol.
        TimeoutError: it missed the job's deadline.
        XscError, CompileBoundMet: the job cannot run; the worker is free again.
    """
    loop = asyncio.get_running_loop()
    allowed_s = (job.limits.timeout_ms + KILL_GRACE_MS) / 1000
    announced = None if code is None else await _bring(worker, job, code)
    size = _given_bytes(job) + (0 if code is None else len(code.machine))
    way_s = size / _TRANSFER_BYTES_A_MS / 1000
    async with asyncio.timeout(allowed_s + way_s) as deadline:
        await worker.send(frames.job_message(job, stream=watch is not None, code=announced))
        told, left, compiled = 0, job.limits.output_bytes, False
        while told < _MESSAGES_MAX:
            message = await worker.receive()
            if watch is not None and message.get("kind") == "output":
                left -= _pass_on(message, watch, left)
                continue
            told += 1
            match message.get("kind"):
                case "code_wanted":
                    deadline.reschedule(None)
                    try:
                        code, compiled = await compiled_code()
                    except (XscError, CompileBoundMet):
                        # Else it would take the next job for the code that it waits for.
                        deadline.reschedule(loop.time() + allowed_s)
                        await worker.send({"kind": "no_code"})
                        await worker.receive()
                        raise
                    way_s = len(code.machine) / _TRANSFER_BYTES_A_MS / 1000
                    deadline.reschedule(loop.time() + allowed_s + way_s)
                    await worker.send(await _bring(worker, job, code))
                case "running":
                    _taken(worker)
                    deadline.reschedule(loop.time() + allowed_s)
                case "result":
                    result = _checked_result(message, job)
                    if watch is not None and not watch.finish(result.stdout, result.stderr):
                        raise ProcessLost("it broke the protocol: it takes back what it wrote")
                    return replace(result, compiled=True) if compiled else result
                case "error":
                    _taken(worker)  # it may be the code that it refuses
                    raise frames.error_of(message)
                case other:
                    raise ProcessLost(f"it broke the protocol: it said {other!r}")
        raise ProcessLost("it broke the protocol: it talks without end")


async def _bring(worker: SandboxProcess, job: Job, code: MachineCode) -> dict[str, Value]:
    """Lay code in a worker's mailbox, and return the message that announces it."""
    assert worker.mailbox is not None
    try:
        await worker.mailbox.put(code.machine)
    except MailboxClosed as fault:
        raise NotBegun(str(fault)) from None
    worker.seen.add(job.module_hash)
    return codes.message_of(code)


def _taken(worker: SandboxProcess) -> None:
    """Give back the memory of code that a worker has loaded."""
    assert worker.mailbox is not None
    worker.mailbox.empty()


def _given_bytes(job: Job) -> int:
    return len(job.stdin) + sum(len(data) for _, data in job.files)


def _pass_on(message: dict[str, Value], watch: OutputWatch, left: int) -> int:
    """Tell who watches what was written, and return how much, from 1 to what was left."""
    try:
        stream, data = frames.output_of(message)
    except RecordInvalid as fault:
        raise ProcessLost(f"it broke the protocol: {fault.message}") from None
    if not 0 < len(data) <= left:
        raise ProcessLost("it broke the protocol: it wrote nothing, or more than it may")
    watch.wrote(stream, data)
    return len(data)


def _checked_result(message: dict[str, Value], job: Job) -> SandboxResult:
    try:
        return frames.result_of(message, job)
    except RecordInvalid as fault:
        raise ProcessLost(f"it broke the protocol: {fault.message}") from None
