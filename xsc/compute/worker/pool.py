"""The sandbox in worker processes that can be killed.

Each worker runs one job at a time. The pool keeps the wall deadline itself: a
worker that has not answered KILL_GRACE_MS after it is killed with its process
group, and another takes its place. What the killed one had used is not known, and
neither is what a run had used that ended its worker process itself:
`xsc.compute.jobs.receipts` bills its time. Workers never compile: `xsc.compute.worker.compiler`
does, in a jail, before a worker is taken, so that no job waits for another's module.

Jobs wait, at most JOBS_QUEUED_MAX, and JOBS_QUEUED_A_PEER_MAX for one customer;
customers take turns (`xsc.compute.worker.fair_queue`). A worker that has the module compiled
already is taken first. Who loses many workers is refused for a while: a run that is
cancelled or killed pays for its time, which may be a millisecond, and starting another
worker takes 200. A module that ended a worker process is not run again for that
customer for longer: it would do so again, and the customer pays for one such end.

Calls that are known to be quick need no worker to be free: they stand in a worker's
line (`xsc.compute.worker.queue`). A line whose first call turns out not to be quick takes no
more, and what waits in it is given to other workers, where there are any. What waited
behind a call that had to be killed is run by another worker; a run has no effect but
its result.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from xsc.base.clock import Clock
from xsc.base.encoding import Value
from xsc.base.errors import RateLimited, RecordInvalid, SandboxFailed, XscError
from xsc.base.limits import (
    COMPILE_MS_DEFAULT,
    JOBS_QUEUED_A_PEER_MAX,
    JOBS_QUEUED_MAX,
    KIB,
    KILL_GRACE_MS,
    MODULE_LOST_MS,
    RETRY_AFTER_S_MAX,
    WORKERS_LOST_A_PEER_MAX,
    WORKERS_LOST_MS,
)
from xsc.base.log import Log
from xsc.base.tally import Tally
from xsc.compute.wasm import code_format as codes
from xsc.compute.wasm.code_format import MachineCode
from xsc.compute.wasm.sandbox import Job, OutputWatch, SandboxResult, trap_error
from xsc.compute.worker import frames
from xsc.compute.worker.code_cache import CodeCache
from xsc.compute.worker.compiler import COMMAND as JAIL
from xsc.compute.worker.compiler import CompileBoundMet, Compiler
from xsc.compute.worker.fair_queue import FairQueue
from xsc.compute.worker.mailbox import Mailbox, MailboxClosed
from xsc.compute.worker.process import ProcessLost, SandboxProcess, spawn
from xsc.compute.worker.queue import QueuedCall, WorkerQueue
from xsc.compute.worker.quick import QuickFunctions

COMMAND = (sys.executable, "-I", "-m", "xsc.compute.worker.main")
_RESPAWN_PAUSE_MS = 1_000
_MESSAGES_MAX = 3
"""Of one job: code wanted, running, and the result."""
_TRANSFER_BYTES_A_MS = 100 * KIB
"""A job with much input is given time for the way to the worker."""


class _NotBegun(ProcessLost):
    """The process could not be given the job."""


class PoolSandbox:
    """Runs jobs in a fixed number of warm worker processes."""

    def __init__(
        self,
        workers: int,
        clock: Clock,
        log: Log,
        cache: CodeCache | None = None,
        *,
        compile_ms: int = COMPILE_MS_DEFAULT,
        own: bytes = b"",
        command: Sequence[str] = COMMAND,
        jail: Sequence[str] = JAIL,
    ) -> None:
        """Put it together.

        Args:
            workers, clock, log, cache: what it consists of.
            compile_ms: how long a module may be compiled.
            own: the customer that may lose any number of workers.
            command, jail: what is started as a worker, and to compile.
        """
        self._size = workers
        self._clock = clock
        self._log = log
        self._command = command
        self._started = False
        self._workers: set[SandboxProcess] = set()
        self._idle: list[SandboxProcess] = []
        self._waiting: FairQueue[asyncio.Future[SandboxProcess] | QueuedCall] = FairQueue()
        self._queues: dict[SandboxProcess, WorkerQueue] = {}
        self._quick = QuickFunctions()
        self._customers: Counter[bytes] = Counter()
        self._own = own
        self._losses = Tally(WORKERS_LOST_A_PEER_MAX, WORKERS_LOST_MS, own)
        self._lost_by = Tally(1, MODULE_LOST_MS)
        """Customers with the modules by which they lost a worker process."""
        self._respawns: set[asyncio.Task[Any]] = set()
        self._ending: set[asyncio.Task[int]] = set()
        self._compiler = Compiler(
            workers, clock, log, cache, limit_ms=compile_ms, own=own, command=jail
        )
        self._hello: dict[str, Value] = {}
        self._compiling = 0
        """Jobs that wait for their code before they wait for a worker."""
        self._job_ms = 0
        """How long a job took of late, the last ones counting most."""

    async def start(self) -> None:
        """Start the workers.

        Raises:
            SandboxFailed: one does not start.
        """
        if self._started:
            return
        self._started = True
        try:
            await self._compiler.start()
            # All of them, before any fault: none may be left that starts after the stop.
            started = await asyncio.gather(
                *(self._spawn() for _ in range(self._size)), return_exceptions=True
            )
            for worker in started:
                if isinstance(worker, BaseException):
                    raise worker
                self._release(worker)
        except SandboxFailed:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Kill every worker; what waits is refused."""
        self._started = False
        self._refuse_waiting()
        for line in self._queues.values():
            _refuse(line.clear(), "the sandbox was stopped")
        await self._compiler.stop()
        for task in self._respawns:
            task.cancel()
        await asyncio.gather(*self._respawns, return_exceptions=True)
        await asyncio.gather(*self._ending, *(worker.kill() for worker in self._workers))
        self._workers.clear()
        self._queues.clear()
        self._idle.clear()

    async def prepare(self, job: Job) -> None:
        """Compile a module; errors as `Sandbox.prepare` names them."""
        if not self._started:
            raise SandboxFailed("the sandbox is not running")
        try:
            await self._code(job)
        except CompileBoundMet:
            raise trap_error("compile_limit") from None

    async def run(self, job: Job, watch: OutputWatch | None = None) -> SandboxResult:
        """Return what the job gave; errors as `Sandbox.run` names them."""
        if not self._started:
            raise SandboxFailed("the sandbox is not running")
        if self._customers[job.customer] >= JOBS_QUEUED_A_PEER_MAX:
            raise RateLimited(
                f"{JOBS_QUEUED_A_PEER_MAX} jobs of this customer wait already",
                retry_after_s=self._wait_s(),
            )
        began_ms = self._clock.monotonic_ms()
        wait_ms = self._losses.wait_ms(job.customer, began_ms)
        if wait_ms:
            raise RateLimited(
                f"{WORKERS_LOST_A_PEER_MAX} runs of this customer ended with their worker "
                f"within {WORKERS_LOST_MS // 1000} s: they were cancelled, or had to be killed",
                retry_after_s=-(-wait_ms // 1000),
            )
        if not job.service and self._lost_by.wait_ms(job.customer + job.module_hash, began_ms):
            raise SandboxFailed(
                "the last run of this module ended with its worker process, a short while ago",
                hint="run it on another node, or mend it",
            )
        self._customers[job.customer] += 1
        try:
            return await self._run(job, watch)
        except CompileBoundMet as met:
            return self._ended("compile_limit", met.took_ms)
        finally:
            self._customers[job.customer] -= 1
            if not self._customers[job.customer]:
                del self._customers[job.customer]

    async def _run(self, job: Job, watch: OutputWatch | None) -> SandboxResult:
        given: SandboxResult | SandboxProcess | None = None
        function = (job.module_hash, job.function)
        if watch is None and function in self._quick and frames.may_call(job):
            given = await self._queue_call(job)
        if not isinstance(given, SandboxResult):
            given = await self._alone(job, given, watch)
        if given.trap is None:
            self._quick.took(function, given.fuel_used, given.wall_ms)
        else:
            self._quick.failed(function)  # how long it would have run is not known
        return given

    def describe(self) -> dict[str, Value]:
        """Return workers, jobs, engine and what confines the workers."""
        config = self._hello.get("config", b"")
        assert isinstance(config, bytes)
        return {
            "workers": len(self._workers),
            "running": len(self._workers) - len(self._idle),
            "queued": self._queued(),
            "engine": self._hello.get("engine", ""),
            "engine_config": config.hex(),
            "confined": self._hello.get("confined", {}),
            **self._compiler.describe(),
        }

    # Workers

    async def _spawn(self) -> SandboxProcess:
        try:
            mailbox = Mailbox()
        except OSError as fault:
            raise SandboxFailed(f"no memory for a sandbox worker: {fault.strerror}") from None
        worker = await spawn(self._command, "worker", mailbox)
        self._workers.add(worker)
        self._queues[worker] = WorkerQueue(worker, self)
        self._hello = worker.hello
        return worker

    async def _respawn(self) -> None:
        while True:
            try:
                worker = await self._spawn()
            except SandboxFailed as fault:
                self._log.error("compute.worker_not_started", reason=fault.message)
                if not self._workers:
                    self._refuse_waiting()
                await self._clock.sleep_ms(_RESPAWN_PAUSE_MS)
            else:
                self._release(worker)
                return

    def _replace(self, lost: SandboxProcess) -> None:
        del self._queues[lost]
        ending = asyncio.create_task(lost.kill())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        if self._started:
            task = asyncio.create_task(self._respawn())
            self._respawns.add(task)
            task.add_done_callback(self._respawns.discard)

    async def _acquire(self, job: Job) -> SandboxProcess:
        if self._idle:
            known = [worker for worker in self._idle if job.module_hash in worker.seen]
            worker = known[-1] if known else self._idle[-1]
            self._idle.remove(worker)
            return worker
        future: asyncio.Future[SandboxProcess] = asyncio.get_running_loop().create_future()
        self._waiting.add(job.customer, future)
        try:
            return await future
        except asyncio.CancelledError:
            waited = self._waiting.drop(job.customer, future)
            if not waited and not future.cancelled() and future.exception() is None:
                self._release(future.result())  # it was given a worker in the same moment
            raise

    def _release(self, worker: SandboxProcess) -> None:
        """Give a worker that is free to what waits first: to a job, or to a line of calls."""
        line = self._queues[worker]
        while self._waiting:
            turn = self._waiting.first()
            if not isinstance(turn, QueuedCall):
                if line:
                    return
                self._waiting.take()
                if not turn.done():
                    turn.set_result(worker)
                    return
            elif turn.done.done():
                self._waiting.take()
            elif line.takes(turn.job.module_hash):
                self._waiting.take()
                line.give(turn)
            elif line:
                return
            else:
                self._waiting.take()
                turn.done.set_result(worker)  # it has not got the code
                return
        if not line:
            self._idle.append(worker)

    def _queued(self) -> int:
        in_line = sum(len(line) - 1 for line in self._queues.values() if line)
        return len(self._waiting) + in_line + self._compiling

    def _check_queue(self) -> None:
        if self._queued() >= JOBS_QUEUED_MAX:
            raise RateLimited(f"{JOBS_QUEUED_MAX} jobs wait already", retry_after_s=self._wait_s())

    def _wait_s(self) -> int:
        """Return how long what waits takes, as jobs took of late."""
        wait_ms = self._queued() * self._job_ms // max(1, len(self._workers))
        return min(max(1, -(-wait_ms // 1000)), RETRY_AFTER_S_MAX)

    def _refuse_waiting(self) -> None:
        _refuse(self._waiting.clear(), "no sandbox worker is running")

    # Lines

    async def _queue_call(self, job: Job) -> SandboxResult | SandboxProcess | None:
        """Return what a quick call gave; or the worker to run it on alone, None for any."""
        call = QueuedCall(job, asyncio.get_running_loop().create_future())
        line = None if self._waiting else self._queue_for(job.module_hash)
        if line is None and (self._idle or not self._queues):
            return None
        self._check_queue()
        if line is None:
            self._waiting.add(job.customer, call)
        else:
            line.give(call)
        try:
            given = await call.done
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        if isinstance(given, SandboxResult):
            self._job_ms = (3 * self._job_ms + given.wall_ms) // 4
        return given

    def _queue_for(self, module_hash: bytes) -> WorkerQueue | None:
        """Return the line of a worker that is free, or the shortest, where the code is."""
        for worker in reversed(self._idle):
            if module_hash in worker.seen and not worker.pipes.ended:
                self._idle.remove(worker)
                return self._queues[worker]
        lines = [line for line in self._queues.values() if line and line.takes(module_hash)]
        return min(lines, key=len, default=None)

    def _abandon(self, call: QueuedCall) -> None:
        """Have a call not run for whose result nobody waits any more."""
        if self._waiting.drop(call.job.customer, call):
            return
        if call.line is not None and call.line and call.line.first is call:
            self.overdue(call.line)
        elif call.done.done() and not call.done.cancelled() and call.done.exception() is None:
            given = call.done.result()
            if isinstance(given, SandboxProcess):
                self._release(given)  # it was given a worker in the same moment

    def emptied(self, line: WorkerQueue) -> None:
        """Let the worker do what waits."""
        self._release(line.worker)

    def stalled(self, line: WorkerQueue) -> None:
        """Give what is behind a call that takes longer to other workers."""
        if line.first.done.done():
            self.overdue(line)
        elif len(self._workers) > 1:
            self._give_again(line.shorten())

    def overdue(self, line: WorkerQueue) -> None:
        """Kill a worker whose call has run for too long, or is not wanted any more."""
        first, *others = line.clear()
        self._losses.note(first.job.customer, self._clock.monotonic_ms())
        line.worker.strike()
        self._workers.discard(line.worker)
        self._replace(line.worker)
        if not first.done.done():
            first.done.set_result(self._ended("time_exceeded", first.job.limits.timeout_ms))
        self._give_again(others)

    def broken(self, line: WorkerQueue, reason: str) -> None:
        """Replace a worker that is gone; the call that it was at fails, and no other."""
        calls = line.clear()
        for call in calls[:1]:
            self._note_lost(call.job)
        self._workers.discard(line.worker)
        task = asyncio.create_task(self._bury(line.worker, calls[:1], reason))
        self._respawns.add(task)
        task.add_done_callback(self._respawns.discard)
        self._give_again(calls[1:])

    async def _bury(self, worker: SandboxProcess, at: Sequence[QueuedCall], reason: str) -> None:
        fault = await self._lost(worker, reason)
        for call in at:
            if call.done.done():
                continue
            if self._started:
                call.done.set_result(self._ended("worker_lost", 0))
            else:
                call.done.set_exception(fault)

    def _give_again(self, calls: Sequence[QueuedCall]) -> None:
        for call in reversed(calls):
            if not call.done.done():
                self._waiting.add_first(call.job.customer, call)
        while self._waiting and self._idle:
            self._release(self._idle.pop())

    # Jobs

    def _ended(self, trap: str, wall_ms: int) -> SandboxResult:
        """Return the result of a job that the pool ended: what it used is not known."""
        engine, config = self._hello["engine"], self._hello["config"]
        assert isinstance(engine, str)
        assert isinstance(config, bytes)
        return SandboxResult((), None, trap, 0, 0, b"", b"", (), engine, config, wall_ms)

    async def _code(self, job: Job, watch: OutputWatch | None = None) -> tuple[MachineCode, bool]:
        config = self._hello["config"]
        assert isinstance(config, bytes)
        if watch is None:
            return await self._compiler.code(job, config)
        return await self._compiler.code(job, config, watch.compiling)

    async def _alone(
        self, job: Job, worker: SandboxProcess | None, watch: OutputWatch | None
    ) -> SandboxResult:
        """Return what a job gave that has a worker for itself, the one that is given or any."""
        code, compiled = None, False
        if worker is None:
            if not self._idle:
                self._check_queue()  # before a module is compiled for a job that is refused
            if not any(job.module_hash in each.seen for each in self._workers):
                code, compiled = await self._compiled_first(job, watch)
            worker = await self._acquire(job)
        while worker.pipes.ended:  # while nobody used it: that is not this job's doing
            self._workers.discard(worker)
            await self._lost(worker, "it ended while it was idle")
            worker = await self._acquire(job)
        if job.module_hash in worker.seen:
            code = None
        elif code is None:
            try:
                code, compiled = await self._code(job, watch)
            except BaseException:
                self._release(worker)
                raise
        result = await self._run_on(worker, job, code, watch)
        return replace(result, compiled=True) if compiled else result

    async def _compiled_first(
        self, job: Job, watch: OutputWatch | None
    ) -> tuple[MachineCode, bool]:
        """Return the code for a job that then waits for a worker: its place is kept meanwhile."""
        self._compiling += 1
        try:
            return await self._code(job, watch)
        finally:
            self._compiling -= 1

    async def _lost(self, worker: SandboxProcess, reason: str) -> SandboxFailed:
        """Replace a worker that is gone, and return what to say of a job that it cannot take.

        It is replaced also where nobody waits for that any more.
        """
        task = asyncio.create_task(self._end(worker, reason))
        self._respawns.add(task)
        task.add_done_callback(self._respawns.discard)
        return await asyncio.shield(task)

    async def _end(self, worker: SandboxProcess, reason: str) -> SandboxFailed:
        try:
            # An abort needs no signal of ours; the status tells it from a kill.
            status = await worker.end()
        finally:
            self._replace(worker)
        self._log.warning("compute.worker_lost", reason=reason, status=status)
        return SandboxFailed(
            f"the sandbox worker ended before the job began (status {status})",
            hint="the job may be given again; nothing was billed",
        )

    def _note_lost(self, job: Job) -> None:
        """Take note that a run ended with its worker process."""
        now_ms = self._clock.monotonic_ms()
        self._losses.note(job.customer, now_ms)
        if not job.service and job.customer != self._own:
            self._lost_by.note(job.customer + job.module_hash, now_ms)

    async def _run_on(
        self, worker: SandboxProcess, job: Job, code: MachineCode | None, watch: OutputWatch | None
    ) -> SandboxResult:
        began_ms = self._clock.monotonic_ms()
        try:
            if watch is not None:
                watch.began()
            result = await self._converse(worker, job, code, watch)
        except (ProcessLost, TimeoutError, asyncio.CancelledError) as fault:
            self._workers.discard(worker)
            if not isinstance(fault, ProcessLost):
                self._losses.note(job.customer, self._clock.monotonic_ms())
                worker.strike()
                self._replace(worker)  # the caller need not wait until its memory is given back
                if isinstance(fault, asyncio.CancelledError):
                    raise
                return self._ended("time_exceeded", self._clock.monotonic_ms() - began_ms)
            ended_ms = self._clock.monotonic_ms()
            lost = await self._lost(worker, str(fault))
            if isinstance(fault, _NotBegun) or not self._started:
                raise lost from None
            self._note_lost(job)
            return self._ended("worker_lost", ended_ms - began_ms)
        except (XscError, CompileBoundMet):
            self._release(worker)
            raise
        finally:
            took_ms = self._clock.monotonic_ms() - began_ms
            self._job_ms = (3 * self._job_ms + took_ms) // 4
        self._release(worker)
        return result

    async def _converse(
        self, worker: SandboxProcess, job: Job, code: MachineCode | None, watch: OutputWatch | None
    ) -> SandboxResult:
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
                            code, compiled = await self._code(job, watch)
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


def _refuse(waiting: Sequence[asyncio.Future[SandboxProcess] | QueuedCall], why: str) -> None:
    for turn in waiting:
        done: asyncio.Future[Any] = turn.done if isinstance(turn, QueuedCall) else turn
        if not done.done():
            done.set_exception(SandboxFailed(why, retry_after_s=1))


async def _bring(worker: SandboxProcess, job: Job, code: MachineCode) -> dict[str, Value]:
    """Lay code in a worker's mailbox, and return the message that announces it."""
    assert worker.mailbox is not None
    try:
        await worker.mailbox.put(code.machine)
    except MailboxClosed as fault:
        raise _NotBegun(str(fault)) from None
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
