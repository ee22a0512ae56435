"""The worker processes of a pool: starts them, and replaces those that are lost or killed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from xsc.base.clock import Clock
from xsc.base.encoding import Value
from xsc.base.errors import SandboxFailed
from xsc.base.log import Log
from xsc.compute.wasm.sandbox import SandboxResult
from xsc.compute.worker.mailbox import Mailbox
from xsc.compute.worker.process import SandboxProcess, spawn

T = TypeVar("T")
_RESPAWN_PAUSE_MS = 1_000


class WorkerProcesses:
    """A fixed number of worker processes.

    Args:
        command: starts a worker.
        clock, log: of the node.
        ready: is called with each new worker.
        none_left: is called when no worker is left and none starts.
    """

    def __init__(
        self,
        command: Sequence[str],
        clock: Clock,
        log: Log,
        *,
        ready: Callable[[SandboxProcess], None],
        none_left: Callable[[], None],
    ) -> None:
        self._command = command
        self._clock = clock
        self._log = log
        self._ready = ready
        self._none_left = none_left
        self.running = False
        self.alive: set[SandboxProcess] = set()
        self.hello: dict[str, Value] = {}
        """How the last worker introduced itself: engine, configuration, confinement."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending: set[asyncio.Task[int]] = set()

    @property
    def config(self) -> bytes:
        """The hash of the engine's configuration, empty before a worker started."""
        config = self.hello.get("config", b"")
        assert isinstance(config, bytes)
        return config

    async def start(self, count: int) -> None:
        """Start that many.

        Raises:
            SandboxFailed: one does not start.
        """
        self.running = True
        # Wait for all before any error is raised: none may start after the stop.
        started = await asyncio.gather(
            *(self._spawn() for _ in range(count)), return_exceptions=True
        )
        for worker in started:
            if isinstance(worker, BaseException):
                raise worker
            self._ready(worker)

    async def stop(self) -> None:
        """Kill all."""
        self.running = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self._ending, *(worker.kill() for worker in self.alive))
        self.alive.clear()

    async def _spawn(self) -> SandboxProcess:
        try:
            mailbox = Mailbox()
        except OSError as fault:
            raise SandboxFailed(f"no memory for a sandbox worker: {fault.strerror}") from None
        worker = await spawn(self._command, "worker", mailbox)
        self.alive.add(worker)
        self.hello = worker.hello
        return worker

    async def _respawn(self) -> None:
        while True:
            try:
                worker = await self._spawn()
            except SandboxFailed as fault:
                self._log.error("compute.worker_not_started", reason=fault.message)
                if not self.alive:
                    self._none_left()
                await self._clock.sleep_ms(_RESPAWN_PAUSE_MS)
            else:
                self._ready(worker)
                return

    def background(self, work: Awaitable[T]) -> asyncio.Task[T]:
        """Start work that `stop` cancels."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def kill(self, worker: SandboxProcess) -> None:
        """Kill a worker and replace it; nobody waits until its memory is given back."""
        worker.strike()
        self.alive.discard(worker)
        self._replace(worker)

    async def lost(self, worker: SandboxProcess, reason: str) -> SandboxFailed:
        """Replace a worker that ended; return the error for a job that had not begun on it.

        It is replaced even if the caller is cancelled.
        """
        self.alive.discard(worker)
        return await asyncio.shield(self.background(self._end(worker, reason)))

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

    def _replace(self, lost: SandboxProcess) -> None:
        ending = asyncio.create_task(lost.kill())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        if self.running:
            self.background(self._respawn())

    def ended(self, trap: str, wall_ms: int) -> SandboxResult:
        """Return the result of a job that the pool ended: what it used is not known."""
        engine = self.hello["engine"]
        assert isinstance(engine, str)
        return SandboxResult((), None, trap, 0, 0, b"", b"", (), engine, self.config, wall_ms)
