"""The sandbox in worker processes that can be killed.

Each worker runs one job at a time. The pool keeps the wall deadline itself: a
worker that has not answered KILL_GRACE_MS after it is killed with its process
group, and another takes its place. What the killed one had used is not known:
`xsc.compute.receipts` bills its time. Workers never compile: `xsc.compute.compiler`
does, in a jail, before a worker is taken, so that no job waits for another's module.

Jobs wait in order, at most JOBS_QUEUED_MAX, and JOBS_QUEUED_A_PEER_MAX for one
customer; a worker that has the module compiled already is taken first.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from collections.abc import Sequence

from xsc.base.clock import Clock
from xsc.base.encoding import Value
from xsc.base.errors import RateLimited, RecordInvalid, SandboxFailed, XscError
from xsc.base.limits import (
    JOBS_QUEUED_A_PEER_MAX,
    JOBS_QUEUED_MAX,
    KIB,
    KILL_GRACE_MS,
    RETRY_AFTER_S_MAX,
)
from xsc.base.log import Log
from xsc.compute import code as codes
from xsc.compute import frames
from xsc.compute.cache import CodeCache
from xsc.compute.code import Code
from xsc.compute.compiler import COMMAND as JAIL
from xsc.compute.compiler import CompileBoundMet, Compiler
from xsc.compute.process import ProcessLost, SandboxProcess, spawn
from xsc.compute.sandbox import Job, JobResult, Watch, trap_error

COMMAND = (sys.executable, "-I", "-m", "xsc.compute.worker")
_RESPAWN_PAUSE_MS = 1_000
_MESSAGES_MAX = 3
"""Of one job: code wanted, running, and the result."""
_TRANSFER_BYTES_A_MS = 100 * KIB
"""A job with much input is given time for the way to the worker."""


class PoolSandbox:
    """Runs jobs in a fixed number of warm worker processes."""

    def __init__(
        self,
        workers: int,
        clock: Clock,
        log: Log,
        cache: CodeCache | None = None,
        *,
        command: Sequence[str] = COMMAND,
        jail: Sequence[str] = JAIL,
    ) -> None:
        self._size = workers
        self._clock = clock
        self._log = log
        self._command = command
        self._started = False
        self._workers: set[SandboxProcess] = set()
        self._idle: list[SandboxProcess] = []
        self._waiting: deque[asyncio.Future[SandboxProcess]] = deque()
        self._customers: Counter[bytes] = Counter()
        self._respawns: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[int]] = set()
        self._compiler = Compiler(workers, clock, log, cache, command=jail)
        self._hello: dict[str, Value] = {}
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
            for worker in await asyncio.gather(*(self._spawn() for _ in range(self._size))):
                self._release(worker)
        except SandboxFailed:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Kill every worker; what waits is refused."""
        self._started = False
        self._refuse_waiting()
        await self._compiler.stop()
        for task in self._respawns:
            task.cancel()
        await asyncio.gather(*self._respawns, return_exceptions=True)
        await asyncio.gather(*self._ending, *(worker.kill() for worker in self._workers))
        self._workers.clear()
        self._idle.clear()

    async def prepare(self, job: Job) -> None:
        """Compile a module; errors as `Sandbox.prepare` names them."""
        if not self._started:
            raise SandboxFailed("the sandbox is not running")
        try:
            await self._code(job)
        except CompileBoundMet:
            raise trap_error("compile_limit") from None

    async def run(self, job: Job, watch: Watch | None = None) -> JobResult:
        """Return what the job gave; errors as `Sandbox.run` names them."""
        if not self._started:
            raise SandboxFailed("the sandbox is not running")
        if self._customers[job.customer] >= JOBS_QUEUED_A_PEER_MAX:
            raise RateLimited(
                f"{JOBS_QUEUED_A_PEER_MAX} jobs of this customer wait already",
                retry_after_s=self._wait_s(),
            )
        self._customers[job.customer] += 1
        began_ms = self._clock.monotonic_ms()
        try:
            code = None
            if not any(job.module_hash in worker.seen for worker in self._workers):
                code = await self._code(job)
            worker = await self._acquire(job.module_hash)
            return await self._run_on(worker, job, code, watch)
        except CompileBoundMet:
            return self._ended("compile_limit", self._clock.monotonic_ms() - began_ms)
        finally:
            self._customers[job.customer] -= 1
            if not self._customers[job.customer]:
                del self._customers[job.customer]

    def describe(self) -> dict[str, Value]:
        """Return workers, jobs, engine and what confines the workers."""
        config = self._hello.get("config", b"")
        assert isinstance(config, bytes)
        return {
            "workers": len(self._workers),
            "running": len(self._workers) - len(self._idle),
            "queued": len(self._waiting),
            "engine": self._hello.get("engine", ""),
            "engine_config": config.hex(),
            "confined": self._hello.get("confined", {}),
            **self._compiler.describe(),
        }

    # Workers

    async def _spawn(self) -> SandboxProcess:
        worker = await spawn(self._command, "worker")
        self._workers.add(worker)
        self._hello = worker.hello
        return worker

    async def _respawn(self) -> None:
        while True:
            try:
                worker = await self._spawn()
            except SandboxFailed as fault:
                self._log.error("sandbox worker does not start", reason=fault.message)
                if not self._workers:
                    self._refuse_waiting()
                await self._clock.sleep_ms(_RESPAWN_PAUSE_MS)
            else:
                self._release(worker)
                return

    def _replace(self, lost: SandboxProcess) -> None:
        ending = asyncio.create_task(lost.kill())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        if self._started:
            task = asyncio.create_task(self._respawn())
            self._respawns.add(task)
            task.add_done_callback(self._respawns.discard)

    async def _acquire(self, module_hash: bytes) -> SandboxProcess:
        if self._idle:
            known = [worker for worker in self._idle if module_hash in worker.seen]
            worker = known[-1] if known else self._idle[-1]
            self._idle.remove(worker)
            return worker
        if len(self._waiting) >= JOBS_QUEUED_MAX:
            raise RateLimited(f"{JOBS_QUEUED_MAX} jobs wait already", retry_after_s=self._wait_s())
        future: asyncio.Future[SandboxProcess] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future in self._waiting:
                self._waiting.remove(future)
            elif not future.cancelled() and future.exception() is None:
                self._release(future.result())  # it was given a worker in the same moment
            raise

    def _release(self, worker: SandboxProcess) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(worker)
                return
        self._idle.append(worker)

    def _wait_s(self) -> int:
        """Return how long what waits takes, as jobs took of late."""
        wait_ms = len(self._waiting) * self._job_ms // max(1, len(self._workers))
        return min(max(1, -(-wait_ms // 1000)), RETRY_AFTER_S_MAX)

    def _refuse_waiting(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(SandboxFailed("no sandbox worker is running", retry_after_s=1))

    # Jobs

    def _ended(self, trap: str, wall_ms: int) -> JobResult:
        """Return the result of a job that the pool ended: what it used is not known."""
        engine, config = self._hello["engine"], self._hello["config"]
        assert isinstance(engine, str)
        assert isinstance(config, bytes)
        return JobResult((), None, trap, 0, 0, b"", b"", (), engine, config, wall_ms)

    async def _code(self, job: Job) -> Code:
        config = self._hello["config"]
        assert isinstance(config, bytes)
        return await self._compiler.code(job, config)

    async def _run_on(
        self, worker: SandboxProcess, job: Job, code: Code | None, watch: Watch | None
    ) -> JobResult:
        began_ms = self._clock.monotonic_ms()
        try:
            if watch is not None:
                watch.began()
            result = await self._converse(worker, job, code, watch)
        except (ProcessLost, TimeoutError, asyncio.CancelledError) as fault:
            self._workers.discard(worker)
            if not isinstance(fault, ProcessLost):
                worker.strike()
                self._replace(worker)  # the caller need not wait until its memory is given back
                if isinstance(fault, asyncio.CancelledError):
                    raise
                return self._ended("time_exceeded", self._clock.monotonic_ms() - began_ms)
            # An abort needs no signal of ours; the status tells it from a kill.
            status = await worker.end()
            self._replace(worker)
            self._log.warning("sandbox worker lost", reason=str(fault), status=status)
            raise SandboxFailed(
                f"the sandbox worker ended in the middle of the job (status {status})",
                hint="the job may be given again; nothing was billed",
            ) from None
        except (XscError, CompileBoundMet):
            self._release(worker)
            raise
        finally:
            took_ms = self._clock.monotonic_ms() - began_ms
            self._job_ms = (3 * self._job_ms + took_ms) // 4
        self._release(worker)
        return result

    async def _converse(
        self, worker: SandboxProcess, job: Job, code: Code | None, watch: Watch | None
    ) -> JobResult:
        loop = asyncio.get_running_loop()
        allowed_s = (job.limits.timeout_ms + KILL_GRACE_MS) / 1000
        way_s = _given_bytes(job) / _TRANSFER_BYTES_A_MS / 1000
        async with asyncio.timeout(allowed_s + way_s) as deadline:
            await worker.send(frames.job_message(job, stream=watch is not None))
            told, left = 0, job.limits.output_bytes
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
                            brought = code if code is not None else await self._code(job)
                        except (XscError, CompileBoundMet):
                            # Else it would take the next job for the code that it waits for.
                            deadline.reschedule(loop.time() + allowed_s)
                            await worker.send({"kind": "no_code"})
                            await worker.receive()
                            raise
                        way_s = len(brought.machine) / _TRANSFER_BYTES_A_MS / 1000
                        deadline.reschedule(loop.time() + allowed_s + way_s)
                        await worker.send(codes.message_of(brought), brought.machine)
                        worker.seen.add(job.module_hash)
                    case "running":
                        deadline.reschedule(loop.time() + allowed_s)
                    case "result":
                        result = _checked_result(message, job)
                        if watch is not None and not watch.finish(result.stdout, result.stderr):
                            raise ProcessLost("it broke the protocol: it takes back what it wrote")
                        return result
                    case "error":
                        raise frames.error_of(message)
                    case other:
                        raise ProcessLost(f"it broke the protocol: it said {other!r}")
            raise ProcessLost("it broke the protocol: it talks without end")


def _given_bytes(job: Job) -> int:
    return len(job.stdin) + sum(len(data) for _, data in job.files)


def _pass_on(message: dict[str, Value], watch: Watch, left: int) -> int:
    """Tell who watches what was written, and return how much, from 1 to what was left."""
    try:
        stream, data = frames.output_of(message)
    except RecordInvalid as fault:
        raise ProcessLost(f"it broke the protocol: {fault.message}") from None
    if not 0 < len(data) <= left:
        raise ProcessLost("it broke the protocol: it wrote nothing, or more than it may")
    watch.wrote(stream, data)
    return len(data)


def _checked_result(message: dict[str, Value], job: Job) -> JobResult:
    try:
        return frames.result_of(message, job)
    except RecordInvalid as fault:
        raise ProcessLost(f"it broke the protocol: {fault.message}") from None
