"""The sandbox in worker processes that can be killed.

Each worker runs one job at a time. The pool keeps the wall deadline itself: a
worker that has not answered KILL_GRACE_MS after it is killed with its process
group, and another takes its place. What the killed one had used is not known:
`xsc.compute.receipts` bills its time. The same goes for compiling, which has
COMPILE_MS_MAX and COMPILE_ADDRESS_BYTES; a module that went over either is refused by name for a
while, so that it cannot hold a worker again and again.

Jobs wait in order, at most JOBS_QUEUED_MAX, and JOBS_QUEUED_A_PEER_MAX for one
customer; a worker that has the module compiled already is taken first.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from xsc.base.clock import Clock
from xsc.base.encoding import Value
from xsc.base.errors import RateLimited, RecordInvalid, SandboxFailed, XscError, from_code
from xsc.base.fields import take_bytes, take_map, take_str
from xsc.base.limits import (
    COMPILE_MS_MAX,
    JOBS_QUEUED_A_PEER_MAX,
    JOBS_QUEUED_MAX,
    KILL_GRACE_MS,
)
from xsc.base.log import Log
from xsc.compute import frames
from xsc.compute.sandbox import Job, JobResult

COMMAND = (sys.executable, "-I", "-m", "xsc.compute.worker")
_START_MS_MAX = 30_000
_RESPAWN_PAUSE_MS = 1_000
_END_MS_MAX = 250
"""A worker that ended its output has that long to end by itself, so that its status is its own."""
_MESSAGES_MAX = 4
"""Of one job: module wanted, compiling, running, and the result."""
_BOMB_MS = 600_000
_BOMBS_MAX = 256
_ABORTS = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGTRAP)
"""How a process ends that can have no more address space."""


class _WorkerLost(Exception):
    """The worker ended or broke the protocol."""


@dataclass(eq=False, slots=True)
class _Worker:
    """A worker process, and what is known of it."""

    process: asyncio.subprocess.Process
    source: asyncio.StreamReader
    sink: asyncio.StreamWriter
    hello: dict[str, Value] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)
    """Modules that it was given; it may have forgotten some, and asks then."""

    async def receive(self) -> dict[str, Value]:
        """Return its next message."""
        try:
            prefix = await self.source.readexactly(frames.PREFIX_BYTES)
            return frames.from_frame(await self.source.readexactly(frames.length_of(prefix)))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise _WorkerLost("it ended") from None
        except RecordInvalid as fault:
            raise _WorkerLost(f"it broke the protocol: {fault.message}") from None

    async def send(self, message: dict[str, Value]) -> None:
        """Send it a message."""
        self.sink.write(frames.to_frame(message))
        try:
            await self.sink.drain()
        except ConnectionError:
            raise _WorkerLost("it ended") from None

    async def kill(self) -> int:
        """End it with its process group, and return its exit status."""
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.sink.close()
        return await self.process.wait()


class PoolSandbox:
    """Runs jobs in a fixed number of warm worker processes."""

    def __init__(
        self, workers: int, clock: Clock, log: Log, *, command: Sequence[str] = COMMAND
    ) -> None:
        self._size = workers
        self._clock = clock
        self._log = log
        self._command = command
        self._started = False
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._waiting: deque[asyncio.Future[_Worker]] = deque()
        self._customers: Counter[bytes] = Counter()
        self._respawns: set[asyncio.Task[None]] = set()
        self._bombs: OrderedDict[bytes, int] = OrderedDict()
        self._hello: dict[str, Value] = {}

    async def start(self) -> None:
        """Start the workers.

        Raises:
            SandboxFailed: one does not start.
        """
        if self._started:
            return
        self._started = True
        try:
            for worker in await asyncio.gather(*(self._spawn() for _ in range(self._size))):
                self._release(worker)
        except SandboxFailed:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Kill every worker; what waits is refused."""
        self._started = False
        self._refuse_waiting()
        for task in self._respawns:
            task.cancel()
        await asyncio.gather(*self._respawns, return_exceptions=True)
        await asyncio.gather(*(worker.kill() for worker in self._workers))
        self._workers.clear()
        self._idle.clear()

    async def run(self, job: Job) -> JobResult:
        """Return what the job gave; errors as `Sandbox.run` names them."""
        if not self._started:
            raise SandboxFailed("the sandbox is not running")
        if self._is_bomb(job.module_hash):
            return self._ended(job, "compile_limit", 0)
        if self._customers[job.customer] >= JOBS_QUEUED_A_PEER_MAX:
            raise RateLimited(f"{JOBS_QUEUED_A_PEER_MAX} jobs of this customer wait already")
        self._customers[job.customer] += 1
        try:
            worker = await self._acquire(job.module_hash)
            return await self._run_on(worker, job)
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
        }

    # Workers

    async def _spawn(self) -> _Worker:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        worker = _Worker(process, process.stdout, process.stdin)
        self._workers.add(worker)
        try:
            async with asyncio.timeout(_START_MS_MAX / 1000):
                worker.hello = await worker.receive()
            take_str(worker.hello, "engine")
            take_bytes(worker.hello, "config", size=32)
            take_map(worker.hello, "confined")
        except (_WorkerLost, RecordInvalid, TimeoutError):
            self._workers.discard(worker)
            status = await worker.kill()
            raise SandboxFailed(f"a sandbox worker does not start (status {status})") from None
        except asyncio.CancelledError:
            self._workers.discard(worker)
            await worker.kill()
            raise
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

    def _replace(self) -> None:
        if self._started:
            task = asyncio.create_task(self._respawn())
            self._respawns.add(task)
            task.add_done_callback(self._respawns.discard)

    async def _acquire(self, module_hash: bytes) -> _Worker:
        if self._idle:
            known = [worker for worker in self._idle if module_hash in worker.seen]
            worker = known[-1] if known else self._idle[-1]
            self._idle.remove(worker)
            return worker
        if len(self._waiting) >= JOBS_QUEUED_MAX:
            raise RateLimited(f"{JOBS_QUEUED_MAX} jobs wait already")
        future: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future in self._waiting:
                self._waiting.remove(future)
            elif not future.cancelled() and future.exception() is None:
                self._release(future.result())  # it was given a worker in the same moment
            raise

    def _release(self, worker: _Worker) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(worker)
                return
        self._idle.append(worker)

    def _refuse_waiting(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(SandboxFailed("no sandbox worker is running"))

    # Jobs

    def _is_bomb(self, module_hash: bytes) -> bool:
        until_ms = self._bombs.get(module_hash)
        if until_ms is not None and until_ms <= self._clock.monotonic_ms():
            del self._bombs[module_hash]
            return False
        return until_ms is not None

    def _ended(self, job: Job, trap: str, wall_ms: int) -> JobResult:
        """Return the result of a job that the pool ended: what it used is not known."""
        if trap == "compile_limit":
            self._bombs[job.module_hash] = self._clock.monotonic_ms() + _BOMB_MS
            if len(self._bombs) > _BOMBS_MAX:
                self._bombs.popitem(last=False)
        engine, config = self._hello["engine"], self._hello["config"]
        assert isinstance(engine, str)
        assert isinstance(config, bytes)
        return JobResult((), None, trap, 0, 0, b"", b"", (), engine, config, wall_ms)

    async def _run_on(self, worker: _Worker, job: Job) -> JobResult:
        progress = _Progress(job, new=job.module_hash not in worker.seen)
        began_ms = self._clock.monotonic_ms()
        try:
            result = await self._converse(worker, job, progress)
        except (_WorkerLost, TimeoutError, asyncio.CancelledError) as fault:
            self._workers.discard(worker)
            late = isinstance(fault, TimeoutError)
            # An abort needs no signal of ours; the status tells it from a kill.
            status = await (worker.kill() if late else _end(worker, fault))
            self._replace()
            if isinstance(fault, asyncio.CancelledError):
                raise
            wall_ms = self._clock.monotonic_ms() - began_ms
            if progress.compiling and (late or status in _ABORTS):
                return self._ended(job, "compile_limit", wall_ms)
            if late:
                return self._ended(job, "time_exceeded", wall_ms)
            self._log.warning("sandbox worker lost", reason=str(fault), status=status)
            raise SandboxFailed(
                f"the sandbox worker ended in the middle of the job (status {status})",
                hint="the job may be given again; nothing was billed",
            ) from None
        except XscError:
            self._release(worker)
            raise
        self._release(worker)
        return result

    async def _converse(self, worker: _Worker, job: Job, progress: _Progress) -> JobResult:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(progress.allowed_ms / 1000) as deadline:
            await worker.send(frames.job_message(job, with_module=progress.compiling))
            worker.seen.add(job.module_hash)
            for _ in range(_MESSAGES_MAX):
                message = await worker.receive()
                match message.get("kind"):
                    case "phase":
                        progress.compiling = message.get("phase") == "compiling"
                        deadline.reschedule(loop.time() + progress.allowed_ms / 1000)
                    case "module_wanted":
                        progress.compiling = True
                        deadline.reschedule(loop.time() + progress.allowed_ms / 1000)
                        await worker.send({"module": job.module})
                    case "result":
                        return _checked_result(message, job)
                    case "error":
                        code, text = message.get("code"), message.get("message")
                        raise from_code(str(code), str(text), str(message.get("hint", "")))
                    case other:
                        raise _WorkerLost(f"it broke the protocol: it said {other!r}")
            raise _WorkerLost("it broke the protocol: it talks without end")


@dataclass(slots=True)
class _Progress:
    """Which part of a job a worker is at."""

    job: Job
    new: bool
    compiling: bool = False

    def __post_init__(self) -> None:
        self.compiling = self.new

    @property
    def allowed_ms(self) -> int:
        """How long this part may take before the worker is killed."""
        allowed = COMPILE_MS_MAX if self.compiling else self.job.limits.timeout_ms
        return allowed + KILL_GRACE_MS


def _checked_result(message: dict[str, Value], job: Job) -> JobResult:
    try:
        return frames.result_of(message, job)
    except RecordInvalid as fault:
        raise _WorkerLost(f"it broke the protocol: {fault.message}") from None


async def _end(worker: _Worker, fault: BaseException) -> int:
    """Return the status of a worker that is lost, killing it where it does not end by itself."""
    if isinstance(fault, _WorkerLost):
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_MS_MAX / 1000):
                await worker.process.wait()
    return await worker.kill()
