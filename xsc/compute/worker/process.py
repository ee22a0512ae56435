"""Sandbox processes as their parent sees them: started with nothing, killed as a group."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from xsc.base.clock import Clock
from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid, SandboxFailed
from xsc.base.fields import take_bytes, take_map, take_str
from xsc.base.log import Log
from xsc.compute.wasm.sandbox import SandboxResult
from xsc.compute.worker import frames
from xsc.compute.worker.mailbox import Mailbox

T = TypeVar("T")
_RESPAWN_PAUSE_MS = 1_000
HELD_BYTES = 64 * 1024
"""What a process may say before anybody wants it."""
START_MS_MAX = 30_000
END_MS_MAX = 250
"""A process that ended its output has that long to end by itself, so that its status is its own."""
ABORTS = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGTRAP)
"""How a process ends that can have no more address space."""


class ProcessLost(Exception):
    """The process ended or broke the protocol."""


class _Pipes(asyncio.SubprocessProtocol):
    """What a process says, and whether it still takes and says anything.

    Half of a small job is its way to the worker and back: asyncio's streams would take
    twice as long for it.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.said = bytearray()
        self.hear: Callable[[], None] | None = None
        """Called for whatever comes, and for the end, instead of waking who waits in `fill`."""
        self.ended = False
        self.exited: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.SubprocessTransport | None = None
        self._wanted = 0
        self._waiting: asyncio.Future[None] | None = None
        self._paused = False
        self._deaf = False
        self._takes = asyncio.Event()
        self._takes.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 (there is one)
        """Keep what it says, until that is more than somebody waits for."""
        self.said += data
        if self.hear is not None:
            self.hear()
        elif len(self.said) >= self._wanted:
            self._wake()
            if len(self.said) > self._wanted + HELD_BYTES and not self._paused:
                self._paused = True
                self._reading().pause_reading()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002
        """Note which of its ends it has closed."""
        if fd == _STDOUT:
            self.ended = True
            if self.hear is not None:
                self.hear()
            self._wake()
        else:
            self._deaf = True
            self._takes.set()

    def process_exited(self) -> None:
        """Note that it is gone, and end what it has left in its group."""
        assert self._transport is not None
        with suppress(ProcessLookupError, PermissionError):  # nothing, as a rule
            os.killpg(self._transport.get_pid(), signal.SIGKILL)
        if not self.exited.done():
            self.exited.set_result(None)

    def pause_writing(self) -> None:
        """Note that it does not read."""
        self._takes.clear()

    def resume_writing(self) -> None:
        """Note that it reads again."""
        self._takes.set()

    def _reading(self) -> asyncio.ReadTransport:
        assert self._transport is not None
        pipe = self._transport.get_pipe_transport(_STDOUT)
        assert isinstance(pipe, asyncio.ReadTransport)
        return pipe

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def fill(self, size: int) -> None:
        """Return once it has said that many bytes.

        Raises:
            ProcessLost: it ended before.
        """
        while len(self.said) < size:
            if self.ended:
                raise ProcessLost("it ended")
            self._wanted = size
            self._waiting = asyncio.get_running_loop().create_future()
            if self._paused:
                self._paused = False
                self._reading().resume_reading()
            try:
                await self._waiting
            finally:
                self._wanted, self._waiting = 0, None

    def _writing(self) -> asyncio.WriteTransport:
        assert self._transport is not None
        pipe = self._transport.get_pipe_transport(_STDIN)
        assert isinstance(pipe, asyncio.WriteTransport)
        return pipe

    def write(self, data: bytes) -> None:
        """Tell it a little, and do not wait until it takes it."""
        if not self._deaf:
            self._writing().write(data)

    async def tell(self, data: bytes) -> None:
        """Return once it has been told, but for a rest that the system holds.

        Raises:
            ProcessLost: it takes no more.
        """
        self.write(data)
        if not self._takes.is_set():
            await self._takes.wait()
        if self._deaf or self._writing().is_closing():
            raise ProcessLost("it ended")

    def close(self) -> None:
        """Close the pipes."""
        assert self._transport is not None
        self._transport.close()


@dataclass(eq=False, slots=True)
class SandboxProcess:
    """A process, and what is known of it."""

    pid: int
    pipes: _Pipes
    transport: asyncio.SubprocessTransport
    engine: str = ""
    """What it said that it is."""
    config: bytes = b""
    """The hash of its engine's configuration."""
    confined: dict[str, Value] = field(default_factory=dict)
    """What it gave up."""
    seen: set[bytes] = field(default_factory=set)
    """Modules that it was given; it may have forgotten some, and asks then."""
    mailbox: Mailbox | None = None
    """Where it finds code."""

    async def bring(self, module_hash: bytes, machine_code: bytes | memoryview) -> None:
        """Lay the code of a module in its mailbox.

        Raises:
            MailboxClosed: it cannot be.
        """
        assert self.mailbox is not None
        await self.mailbox.put(machine_code)
        self.seen.add(module_hash)

    def empty_mailbox(self) -> None:
        """Give back the memory of code that it has loaded."""
        assert self.mailbox is not None
        self.mailbox.empty()

    def heard(self) -> dict[str, Value] | None:
        """Return its next message if it has come whole.

        Raises:
            RecordInvalid: it is none.
        """
        said = self.pipes.said
        if len(said) < frames.PREFIX_BYTES:
            return None
        end = frames.PREFIX_BYTES + frames.length_of(bytes(said[: frames.PREFIX_BYTES]))
        if len(said) < end:
            return None
        message = frames.from_frame(bytes(said[frames.PREFIX_BYTES : end]))
        del said[:end]
        return message

    async def receive(self) -> dict[str, Value]:
        """Return its next message."""
        try:
            await self.pipes.fill(frames.PREFIX_BYTES)
            size = frames.length_of(bytes(self.pipes.said[: frames.PREFIX_BYTES]))
            raw = await self.receive_bytes(frames.PREFIX_BYTES + size)
            return frames.from_frame(raw[frames.PREFIX_BYTES :])
        except RecordInvalid as fault:
            raise ProcessLost(f"it broke the protocol: {fault.message}") from None

    async def receive_bytes(self, size: int) -> bytes:
        """Return that many bytes that follow a message."""
        await self.pipes.fill(size)
        said = self.pipes.said
        taken = bytes(memoryview(said)[:size])
        del said[:size]
        return taken

    async def send(self, message: dict[str, Value]) -> None:
        """Send it a message."""
        await self.pipes.tell(frames.to_frame(message))

    def strike(self) -> None:
        """End it with its process group, at once: nothing of it runs any more."""
        if self.pipes.exited.done():
            return  # its group as well; its number may be another process's by now
        with suppress(ProcessLookupError):  # it has ended, and was not waited for yet
            os.killpg(self.pid, signal.SIGKILL)

    async def kill(self) -> int:
        """End it with its process group, and return its exit status."""
        self.strike()
        await asyncio.shield(self.pipes.exited)
        self.pipes.close()
        if self.mailbox is not None:
            self.mailbox.close()
        status = self.transport.get_returncode()
        assert status is not None
        return status

    async def end(self) -> int:
        """Return the status that it ends with by itself, killing it where it does not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_MS_MAX / 1000):
                await asyncio.shield(self.pipes.exited)
        return await self.kill()


async def spawn(
    command: Sequence[str], what: str, mailbox: Mailbox | None = None
) -> SandboxProcess:
    """Start a process with an empty environment, and return it when it said what it is.

    Args:
        mailbox: for the process, and closed with it; the descriptor that it may read is
            put after the command.

    Raises:
        SandboxFailed: it does not start.
    """
    try:
        transport, pipes = await asyncio.get_running_loop().subprocess_exec(
            _Pipes,
            *command,
            *([] if mailbox is None else [str(mailbox.reader)]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
            pass_fds=() if mailbox is None else (mailbox.reader,),
        )
    except BaseException:
        if mailbox is not None:
            mailbox.close()
        raise
    if mailbox is not None:
        mailbox.close_reader()
    made = SandboxProcess(transport.get_pid(), pipes, transport, mailbox=mailbox)
    try:
        async with asyncio.timeout(START_MS_MAX / 1000):
            hello = await made.receive()
        made.engine = take_str(hello, "engine")
        made.config = take_bytes(hello, "config", size=32)
        made.confined = take_map(hello, "confined")
    except (ProcessLost, RecordInvalid, TimeoutError):
        status = await made.kill()
        raise SandboxFailed(f"a sandbox {what} does not start (status {status})") from None
    except asyncio.CancelledError:
        await made.kill()
        raise
    return made


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
        self.engine, self.config = "", b""
        self.confined: dict[str, Value] = {}
        """How the last worker introduced itself."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending: set[asyncio.Task[int]] = set()

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
        self.engine, self.config, self.confined = worker.engine, worker.config, worker.confined
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
        told = (self.engine, self.config, wall_ms)
        return SandboxResult((), None, trap, 0, 0, b"", b"", (), *told)


_STDIN, _STDOUT = 0, 1
