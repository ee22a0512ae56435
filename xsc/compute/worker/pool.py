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
from xsc.base.limits import COMPILE_MS_DEFAULT, JOBS_QUEUED_MAX, KIB, RETRY_AFTER_S_MAX
from xsc.base.log import Log
from xsc.compute.wasm.code_format import MachineCode, message_of
from xsc.compute.wasm.sandbox import Job, OutputWatch, SandboxResult, trap_error
from xsc.compute.worker import admission, code_cache, compiler, frames, mailbox, quick
from xsc.compute.worker.compiler import COMMAND as JAIL
from xsc.compute.worker.process import SandboxProcess, WorkerProcesses
from xsc.compute.worker.queue import QueuedCall, WorkerQueue

_NO_WORKER = "no sandbox worker is running"
_UNCOUNTED = ("time_exceeded", "worker_lost")
"""How runs end whose fuel is not known."""
_LOOK_AGAIN_S = 1
"""A worker that was kept for a cleared rate may be free for others by then."""
_TRANSFER_BYTES_A_MS = 100 * KIB
"""The deadline is extended by the time that input and code take to reach the worker."""
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
        self._idle: list[SandboxProcess] = []
        self._waiting: admission.JobQueue[QueuedCall] = admission.JobQueue()
        self._kept: Callable[[int], int] = lambda _: 0
        self._in_spare_time: set[SandboxProcess] = set()
        """The workers that run jobs for now, or have them in their queues."""
        self._look_again: asyncio.TimerHandle | None = None
        self._queues: dict[SandboxProcess, WorkerQueue] = {}
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
        """Kill every worker; what waits is refused."""
        self._workers.running = False
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        _refuse(self._waiting.clear(), _NO_WORKER)
        for queue in self._queues.values():
            _refuse(queue.clear(), "the sandbox was stopped")
        await self._compiler.stop()
        await self._workers.stop()
        self._queues.clear()
        self._idle.clear()
        self._in_spare_time.clear()

    def keep_workers(self, count: Callable[[int], int]) -> None:
        """Keep workers for cleared rates, as `Sandbox.keep_workers` says."""
        self._kept = count

    async def prepare(self, job: Job) -> None:
        """Compile a module; errors as `Sandbox.prepare` names them."""
        if not self._workers.running:
            raise SandboxFailed("the sandbox is not running")
        try:
            await self._code(job)
        except compiler.CompileBoundMet:
            raise trap_error("compile_limit") from None

    async def run(self, job: Job, watch: OutputWatch | None = None) -> SandboxResult:
        """Return what the job gave; errors as `Sandbox.run` names them."""
        if not self._workers.running:
            raise SandboxFailed("the sandbox is not running")
        function = (job.module_hash, job.function)
        given: SandboxResult | SandboxProcess | None = None
        fuel: int | None = None
        self._admission.enter(job, self._clock.monotonic_ms(), self._wait_s)
        try:
            if watch is None and function in self._quick and frames.may_call(job):
                given = await self._queue_call(job)
            if not isinstance(given, SandboxResult):
                given = await self._alone(job, given, watch)
            if given.trap not in _UNCOUNTED:
                fuel = given.fuel_used
        except compiler.CompileBoundMet as met:
            return self._workers.ended("compile_limit", met.took_ms)
        finally:
            self._admission.leave(job)
            self._waiting.ended(job, fuel, self._clock.monotonic_ms())
        if given.trap is None:
            self._quick.took(function, given.fuel_used, given.wall_ms)
        else:
            self._quick.failed(function)  # how long it would have run is not known
        return given

    def describe(self) -> dict[str, Value]:
        """Return workers, jobs, engine and what confines the workers."""
        return {
            "workers": len(self._workers.alive),
            "running": len(self._workers.alive) - len(self._idle),
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
        self._release(worker)

    def _kill(self, worker: SandboxProcess, job: Job) -> None:
        """Kill a worker for its job; the caller need not wait until its memory is given back."""
        self._admission.note_killed(job, self._clock.monotonic_ms())
        self._forget(worker)
        self._workers.kill(worker)

    async def _lost(self, worker: SandboxProcess, reason: str) -> SandboxFailed:
        self._forget(worker)
        return await self._workers.lost(worker, reason)

    def _forget(self, worker: SandboxProcess) -> None:
        self._queues.pop(worker, None)
        self._in_spare_time.discard(worker)

    def _may_start(self, job: Job, worker: SandboxProcess | None = None) -> bool:
        """Return whether a job may begin on a worker, or on one that is idle."""
        return job.cleared or worker in self._in_spare_time or self._has_spare_time()

    def _has_spare_time(self) -> bool:
        kept = self._kept(self._size)
        return len(self._in_spare_time) < self._size - kept

    def _begin(self, worker: SandboxProcess, job: Job) -> None:
        """Note that a job is given to a worker."""
        if not job.cleared:
            self._in_spare_time.add(worker)
        self._waiting.begun(job, self._clock.monotonic_ms())

    async def _acquire(self, job: Job, until_ms: int, *, first: bool = False) -> SandboxProcess:
        if self._idle and self._may_start(job) and not self._is_before(job):
            known = [worker for worker in self._idle if job.module_hash in worker.seen]
            worker = known[-1] if known else self._idle[-1]
            self._idle.remove(worker)
            self._begin(worker, job)
            return worker
        call = QueuedCall(job, alone=True)
        self._waiting.add(job, call, first=first)
        self._release_idle()
        given = await self._turn_of(call, max(0, until_ms - self._clock.monotonic_ms()))
        assert isinstance(given, SandboxProcess)
        return given

    async def _turn_of(
        self, call: QueuedCall, wait_ms: int
    ) -> SandboxResult | SandboxProcess | None:
        """Return what a call that waits is given.

        Raises:
            RateLimited: it had no worker in time.
        """
        job = call.job
        try:
            if call.queue is None:
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
            self._abandon(call)
            raise

    def _release(self, worker: SandboxProcess) -> None:
        """Give a free worker to the first that waits: a job, or calls for its queue."""
        queue = self._queues[worker]
        if not queue:
            self._in_spare_time.discard(worker)
        while True:
            spare = worker in self._in_spare_time or self._has_spare_time()
            waiting = self._waiting.next(spare=spare)
            if waiting is None:
                break
            call = waiting.first()
            if call.done.done():
                waiting.take()
            elif not call.alone and queue.takes(call.job.module_hash):
                waiting.take()
                self._begin(worker, call.job)
                queue.give(call)
            elif queue:
                return
            else:
                waiting.take()
                self._begin(worker, call.job)
                call.done.set_result(worker)  # alone, or because it has not got the code
                return
        if not queue:
            self._idle.append(worker)
            self._look_later()

    def _release_idle(self) -> None:
        idle, self._idle = self._idle, []
        for worker in idle:
            self._release(worker)

    def _look_later(self) -> None:
        """Look again for work for the workers that are idle while jobs wait: rates may end."""

        def look() -> None:
            self._look_again = None
            self._release_idle()

        if self._idle and self._waiting and self._look_again is None:
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

    async def _queue_call(self, job: Job) -> SandboxResult | SandboxProcess | None:
        """Return the result of a quick call; or the worker to run it on alone, None for any."""
        call = QueuedCall(job)
        queue = None if self._is_before(job) else self._queue_for(job)
        if queue is None and (not self._queues or (self._idle and self._may_start(job))):
            return None
        self._check_queue(job)
        if queue is None:
            self._waiting.add(job, call)
            self._release_idle()
        else:
            self._begin(queue.worker, job)
            queue.give(call)
        given = await self._turn_of(call, job.wait_ms)
        if isinstance(given, SandboxResult):
            self._job_ms = (3 * self._job_ms + given.wall_ms) // 4
        return given

    def _is_before(self, job: Job) -> bool:
        """Return whether others wait that come before a job, or beside it."""
        return self._waiting.next(spare=not job.cleared) is not None

    def _queue_for(self, job: Job) -> WorkerQueue | None:
        """Return the queue of a free worker that has the code, else the shortest such queue."""
        for worker in reversed(self._idle):
            if (
                job.module_hash in worker.seen
                and not worker.pipes.ended
                and self._may_start(job, worker)
            ):
                self._idle.remove(worker)
                return self._queues[worker]
        queues = [
            queue
            for queue in self._queues.values()
            if queue and queue.takes(job.module_hash) and self._may_start(job, queue.worker)
        ]
        return min(queues, key=len, default=None)

    def _abandon(self, call: QueuedCall) -> None:
        """Cancel a call whose caller is gone."""
        if self._waiting.drop(call.job, call):
            return
        if call.queue is not None and call.queue and call.queue.first is call:
            self.overdue(call.queue)
        elif call.done.done() and not call.done.cancelled() and call.done.exception() is None:
            given = call.done.result()
            if isinstance(given, SandboxProcess):
                self._release(given)  # a worker was assigned in the same turn

    def emptied(self, queue: WorkerQueue) -> None:
        """Assign waiting work to the worker."""
        self._release(queue.worker)

    def stalled(self, queue: WorkerQueue) -> None:
        """Move the calls behind a long one to other workers."""
        if queue.first.done.done():
            self.overdue(queue)
        elif len(self._workers.alive) > 1:
            self._give_again(queue.shorten())

    def overdue(self, queue: WorkerQueue) -> None:
        """Kill a worker whose call exceeded its time limit, or was cancelled."""
        first, *others = queue.clear()
        self._kill(queue.worker, first.job)
        if not first.done.done():
            first.done.set_result(self._workers.ended("time_exceeded", first.job.limits.timeout_ms))
        self._give_again(others)

    def broken(self, queue: WorkerQueue, reason: str) -> None:
        """Replace a worker that ended; only the call that it was running fails."""
        ran_ms = queue.ran_ms()
        calls = queue.clear()
        for call in calls[:1]:
            self._admission.note_lost(call.job, self._clock.monotonic_ms())
        self._workers.alive.discard(queue.worker)

        async def replace_worker() -> None:
            fault = await self._lost(queue.worker, reason)
            for call in calls[:1]:
                if call.done.done():
                    continue
                if self._workers.running:
                    call.done.set_result(self._workers.ended("worker_lost", ran_ms))
                else:
                    call.done.set_exception(fault)

        self._workers.background(replace_worker())
        self._give_again(calls[1:])

    def _give_again(self, calls: Sequence[QueuedCall]) -> None:
        for call in reversed(calls):
            if not call.done.done():
                self._waiting.add(call.job, call, first=True)
        self._release_idle()

    # Jobs

    async def _code(self, job: Job, watch: OutputWatch | None = None) -> tuple[MachineCode, bool]:
        if watch is None:
            return await self._compiler.code(job, self._workers.config)
        return await self._compiler.code(job, self._workers.config, watch.compiling)

    async def _alone(
        self, job: Job, worker: SandboxProcess | None, watch: OutputWatch | None
    ) -> SandboxResult:
        """Run a job on a worker of its own: the given one, or any."""
        until_ms = self._clock.monotonic_ms() + job.wait_ms
        code, compiled, first = None, False, False
        if worker is None and not (self._idle and self._may_start(job)):
            self._check_queue(job)
        while True:
            if worker is None:
                worker = await self._acquire(job, until_ms, first=first)
            if worker.pipes.ended:  # it ended while idle: not because of this job
                await self._lost(worker, "it ended while it was idle")
                worker = None
                continue
            if job.module_hash in worker.seen or code is not None:
                brought = None if job.module_hash in worker.seen else code
                result = await self._run_on(worker, job, brought, watch)
                if result is not None:
                    return replace(result, compiled=True) if compiled else result
                worker, first = None, True
                continue
            try:
                code = await self._compiler.kept(job.module_hash, self._workers.config)
            except BaseException:
                self._release(worker)
                raise
            if code is None:
                # It is its turn, so it runs once it is compiled; others have the worker meanwhile.
                self._release(worker)
                worker, first = None, True
                self._compiling += 1  # it counts as waiting
                try:
                    code, compiled = await self._code(job, watch)
                finally:
                    self._compiling -= 1

    async def _run_on(
        self, worker: SandboxProcess, job: Job, code: MachineCode | None, watch: OutputWatch | None
    ) -> SandboxResult | None:
        """Return the result of a job on a free worker; None where that has lost the code."""
        call = QueuedCall(job, alone=True, watch=watch)
        size = len(job.stdin) + sum(len(data) for _, data in job.files)
        if code is not None:
            try:
                await worker.bring(job.module_hash, code.machine)
            except mailbox.MailboxClosed as fault:
                raise await self._lost(worker, str(fault)) from None
            except asyncio.CancelledError:
                self._kill(worker, job)
                raise
            call.code = message_of(code)
            size += len(code.machine)
        call.way_s = size / _TRANSFER_BYTES_A_MS / 1000
        if watch is not None:
            watch.began()
        self._queues[worker].give(call)
        began_ms = self._clock.monotonic_ms()
        try:
            given = await self._turn_of(call, 0)
        finally:
            took_ms = self._clock.monotonic_ms() - began_ms
            self._job_ms = (3 * self._job_ms + took_ms) // 4
        assert not isinstance(given, SandboxProcess)
        return given


def _refuse(waiting: Iterable[QueuedCall], why: str) -> None:
    for call in waiting:
        if not call.done.done():
            call.done.set_exception(SandboxFailed(why, retry_after_s=1))
