"""The sandbox in worker processes that can be killed.

Each worker runs one job at a time. The pool enforces the wall deadline itself: a worker that
has not answered KILL_GRACE_MS after it is killed with its process group and replaced. What a
killed run had used is not known, nor what a run had used that ended its worker process itself;
`xsc.compute.jobs.receipts` bills its time. Workers never compile: `xsc.compute.worker.compiler`
does, in a jail, once it is a job's turn and while others have the worker. So no job waits for the
module of another, and nothing is compiled for a job that gets no worker.

At most JOBS_QUEUED_MAX jobs wait for spare time, and as many at cleared rates;
JOBS_QUEUED_A_PEER_MAX of one customer (`xsc.compute.worker.admission`). Jobs at cleared rates come
first, and customers take turns (`xsc.compute.worker.admission`). As many whole workers as the
cleared rates come to start nothing else. A worker that already has the module is preferred.

Quick calls are queued on a busy worker instead of waiting for a free one
(`xsc.compute.worker.queue`). When the call at the head of a queue runs long, the queue is closed
and the rest move to other workers. Calls behind a killed one run on another worker; a run has no
effect but its result.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from xsc.base.clock import Clock
from xsc.base.encoding import Value
from xsc.base.errors import RateLimited, SandboxFailed
from xsc.base.limits import COMPILE_MS_DEFAULT, JOBS_QUEUED_MAX, RETRY_AFTER_S_MAX
from xsc.base.log import Log
from xsc.compute.wasm.code_format import message_of
from xsc.compute.wasm.sandbox import Job, OutputWatch, SandboxResult, trap_error
from xsc.compute.worker import admission, code_cache, compiler, frames, mailbox, quick
from xsc.compute.worker.compiler import COMMAND as JAIL
from xsc.compute.worker.process import SandboxProcess, WorkerProcesses
from xsc.compute.worker.queue import QueuedCall, WorkerQueue

_NO_WORKER = "no sandbox worker is running"
_STOPPED = "the sandbox was stopped"
_UNCOUNTED = ("time_exceeded", "worker_lost")
"""How runs end whose fuel is not known."""
_LOOK_AGAIN_S = 1
"""A worker that was kept for a cleared rate may be free for others by then."""
COMMAND = (sys.executable, "-I", "-m", "xsc.compute.worker.main")


class PoolSandbox:
    """Runs jobs in a fixed number of warm worker processes."""

    def __init__(
        self,
        workers: int,
        clock: Clock,
        log: Log,
        cache: code_cache.CodeCache | None = None,
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
        self._workers = WorkerProcesses(
            command,
            clock,
            log,
            ready=self._ready,
            none_left=lambda: _refuse(self._waiting.clear(), _NO_WORKER),
        )
        self._waiting: admission.JobQueue[QueuedCall] = admission.JobQueue()
        self._kept: Callable[[int], int] = lambda _: 0
        self._look_again: asyncio.TimerHandle | None = None
        self._queues: dict[SandboxProcess, WorkerQueue] = {}
        self._answering: set[QueuedCall] = set()
        """Calls that somebody waits for, wherever they are."""
        self._quick = quick.QuickFunctions()
        self._admission = admission.Admission(own)
        self._compiler = compiler.Compiler(
            workers, clock, log, cache, limit_ms=compile_ms, own=own, command=jail
        )
        self._compiling = 0
        """Jobs that wait for their code before they wait for a worker."""
        self._job_ms = 0
        """The recent duration of a job, as a moving average."""

    async def start(self) -> None:
        """Start the workers.

        Raises:
            SandboxFailed: one does not start.
        """
        if self._workers.running:
            return
        self._workers.running = True
        try:
            await self._compiler.start()
            await self._workers.start(self._size)
        except SandboxFailed:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Kill every worker; whatever has no answer is refused."""
        self._workers.running = False
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        self._waiting.clear()
        for queue in self._queues.values():
            queue.clear()
        _refuse(self._answering, _STOPPED)
        await self._compiler.stop()
        await self._workers.stop()
        self._queues.clear()

    def keep_workers(self, count: Callable[[int], int]) -> None:
        """Keep workers for cleared rates, as `Sandbox.keep_workers` says."""
        self._kept = count

    async def prepare(self, job: Job) -> None:
        """Compile a module; errors as `Sandbox.prepare` names them."""
        if not self._workers.running:
            raise SandboxFailed("the sandbox is not running")
        try:
            await self._compiler.code(job, self._workers.config)
        except compiler.CompileBoundMet:
            raise trap_error("compile_limit") from None

    async def run(self, job: Job, watch: OutputWatch | None = None) -> SandboxResult:
        """Return what the job gave; errors as `Sandbox.run` names them."""
        if not self._workers.running:
            raise SandboxFailed("the sandbox is not running")
        function = (job.module_hash, job.function)
        alone = watch is not None or function not in self._quick or not frames.may_call(job)
        fuel: int | None = None
        self._admission.enter(job, self._clock.monotonic_ms(), self._wait_s)
        try:
            result = await self._result_of(QueuedCall(job, alone=alone, watch=watch))
            if result.trap not in _UNCOUNTED:
                fuel = result.fuel_used
        except compiler.CompileBoundMet as met:
            return self._workers.ended("compile_limit", met.took_ms)
        finally:
            self._admission.leave(job)
            self._waiting.ended(job, fuel, self._clock.monotonic_ms())
        self._job_ms = (3 * self._job_ms + min(result.wall_ms, job.limits.timeout_ms)) // 4
        if result.trap is None:
            self._quick.took(function, result.fuel_used, result.wall_ms)
        else:
            self._quick.failed(function)  # how long it would have run is not known
        return result

    def describe(self) -> dict[str, Value]:
        """Return workers, jobs, engine and what confines the workers."""
        return {
            "workers": len(self._workers.alive),
            "running": sum(map(bool, self._queues.values())),
            "queued": self._queued(),
            "queue_ms": self._wait_ms(),
            "engine": self._workers.engine,
            "engine_config": self._workers.config.hex(),
            "confined": self._workers.confined,
            **self._compiler.describe(),
        }

    # Workers

    def _ready(self, worker: SandboxProcess) -> None:
        self._queues[worker] = WorkerQueue(worker, self)
        self.dispatch()

    # Calls

    async def _result_of(self, call: QueuedCall) -> SandboxResult:
        """Return what a call gave.

        Raises:
            RateLimited: too many wait, or it had no worker in time.
        """
        job, watch = call.job, call.watch
        until_ms = self._clock.monotonic_ms() + job.wait_ms
        queue = None if self._waiting.next() else self._queue_for(call)
        if queue is None or queue:
            self._check_queue(job)
        if queue is None or queue.worker.pipes.ended:
            self._wait(call)
        else:
            self._give(queue, call)
        code, compiled = None, False
        while (result := await self._answer(call, until_ms)) is None:
            if code is None:
                # It is its turn, so it runs once it is compiled; others have the worker meanwhile.
                self._compiling += 1  # it counts as waiting
                try:
                    code, compiled = await self._compiler.code(job, self._workers.config, watch)
                finally:
                    self._compiling -= 1
            if not self._workers.running:
                raise SandboxFailed(_STOPPED, retry_after_s=1)
            call = QueuedCall(job, alone=True, watch=watch, code=code)
            self._wait(call, first=True)
        return replace(result, compiled=True) if compiled else result

    async def _answer(self, call: QueuedCall, until_ms: int) -> SandboxResult | None:
        """Return the result of a call that waits; None where its code must be compiled."""
        job = call.job
        self._answering.add(call)
        try:
            if call.queue is None:
                wait_ms = max(0, until_ms - self._clock.monotonic_ms())
                await asyncio.wait([call.done], timeout=wait_ms / 1000)
            if not call.done.done() and self._waiting.drop(job, call):
                raise RateLimited(
                    f"no worker was free for the job within {job.wait_ms} ms",
                    hint="let it wait longer with --wait, or run it on another node",
                    retry_after_s=self._wait_s(),
                )
            return await call.done
        except asyncio.CancelledError:
            call.done.cancel()
            waited, queue = self._waiting.drop(job, call), call.queue
            if not waited and queue and queue.first is call and queue.worker.pipes.hear:
                self.overdue(queue)  # one that was not sent yet is given back by `_bring`
            raise
        finally:
            self._answering.discard(call)

    def _wait(self, call: QueuedCall, *, first: bool = False) -> None:
        self._waiting.add(call.job, call, first=first)
        self.dispatch()

    def dispatch(self) -> None:
        """Give the calls that wait to workers, each in its turn."""
        while (waiting := self._waiting.next()) is not None:
            call = waiting.first()
            if call.done.done():
                waiting.take()  # its caller is gone
                continue
            queue = self._queue_for(call)
            if queue is None:
                break
            if queue.worker.pipes.ended:  # not because of this call
                self.broken(queue, "it ended while it was idle")
                continue
            waiting.take()
            self._give(queue, call)
        self._look_later()

    def _give(self, queue: WorkerQueue, call: QueuedCall) -> None:
        self._waiting.begun(call.job, self._clock.monotonic_ms())
        queue.give(call)
        if call.job.module_hash in queue.worker.seen:
            queue.send(call)
        else:
            call.alone = True
            self._workers.background(self._bring(queue, call))

    def _queue_for(self, call: QueuedCall) -> WorkerQueue | None:
        """Return the shortest queue that takes a call, with its code if possible; None for none."""
        free = self._may_start(call.job)
        queues = [
            queue for queue in self._queues.values() if (free or queue.spare) and queue.takes(call)
        ]
        module = call.job.module_hash
        return min(
            queues, key=lambda queue: (module not in queue.worker.seen, len(queue)), default=None
        )

    def _may_start(self, job: Job) -> bool:
        """Return whether a job may begin on a worker that is idle."""
        return job.cleared or (
            sum(queue.spare for queue in self._queues.values())
            < self._size - self._kept(self._size)
        )

    async def _bring(self, queue: WorkerQueue, call: QueuedCall) -> None:
        """Send a call with its code to its worker; without code it gives the worker back."""
        module = call.job.module_hash
        try:
            call.code = call.code or await self._compiler.kept(module, self._workers.config)
            if call.code is not None and not call.done.done():
                await queue.worker.bring(module, call.code.machine)
        except mailbox.MailboxClosed as fault:
            if queue.clear():  # else it was killed
                self._queues.pop(queue.worker)
                call.fail(await self._workers.lost(queue.worker, str(fault)))
            return
        if not queue:
            return  # it was killed
        if call.code is None or call.done.done():
            queue.give_back()
        else:
            call.brought = message_of(call.code)
            queue.send(call)

    def _look_later(self) -> None:
        """Look again for work for the workers that are idle while jobs wait: rates may end."""

        def look() -> None:
            self._look_again = None
            self.dispatch()

        if self._look_again is None and self._waiting and not all(self._queues.values()):
            self._look_again = asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, look)

    def _queued(self) -> int:
        in_queues = sum(len(queue) - 1 for queue in self._queues.values() if queue)
        return len(self._waiting) + in_queues + self._compiling

    def _check_queue(self, job: Job) -> None:
        """Return if a job may wait: those at cleared rates are counted by themselves."""
        waiting = self._waiting.count(cleared=True)
        if not job.cleared:
            waiting = self._queued() - waiting
        if waiting >= JOBS_QUEUED_MAX:
            raise RateLimited(f"{JOBS_QUEUED_MAX} jobs wait already", retry_after_s=self._wait_s())

    def _wait_ms(self) -> int:
        """Return how long what waits takes, as jobs took of late."""
        return self._queued() * self._job_ms // max(1, len(self._workers.alive))

    def _wait_s(self) -> int:
        return min(max(1, -(-self._wait_ms() // 1000)), RETRY_AFTER_S_MAX)

    # Queues of workers

    def stalled(self, queue: WorkerQueue) -> None:
        """Move the calls behind a long one to other workers."""
        if queue.first.done.done():
            self.overdue(queue)
        elif len(self._workers.alive) > 1:
            self._give_again(queue.shorten())

    def overdue(self, queue: WorkerQueue) -> None:
        """Kill a worker whose call exceeded its time limit, or was cancelled."""
        first, *others = queue.clear()
        self._admission.note_killed(first.job, self._clock.monotonic_ms())
        self._queues.pop(queue.worker, None)
        self._workers.kill(queue.worker)
        first.settle(self._workers.ended("time_exceeded", first.job.limits.timeout_ms))
        self._give_again(others)

    def broken(self, queue: WorkerQueue, reason: str) -> None:
        """Replace a worker that ended; only the call that it was running fails."""
        ran_ms = queue.ran_ms()
        calls = queue.clear()
        for call in calls[:1]:
            self._admission.note_lost(call.job, self._clock.monotonic_ms())
        self._workers.alive.discard(queue.worker)
        self._queues.pop(queue.worker, None)

        async def replace_worker() -> None:
            await self._workers.lost(queue.worker, reason)
            for call in calls[:1]:
                call.settle(self._workers.ended("worker_lost", ran_ms))

        self._workers.background(replace_worker())
        self._give_again(calls[1:])

    def _give_again(self, calls: Sequence[QueuedCall]) -> None:
        for call in reversed(calls):
            if not call.done.done():
                self._waiting.add(call.job, call, first=True)
        self.dispatch()


def _refuse(waiting: Iterable[QueuedCall], why: str) -> None:
    for call in waiting:
        call.fail(SandboxFailed(why, retry_after_s=1))
