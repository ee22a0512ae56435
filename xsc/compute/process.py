"""A sandbox process as its parent sees it: started with nothing, killed as a group."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid, SandboxFailed
from xsc.base.fields import take_bytes, take_map, take_str
from xsc.compute import frames

START_MS_MAX = 30_000
END_MS_MAX = 250
"""A process that ended its output has that long to end by itself, so that its status is its own."""
ABORTS = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGTRAP)
"""How a process ends that can have no more address space."""


class ProcessLost(Exception):
    """The process ended or broke the protocol."""


@dataclass(eq=False, slots=True)
class SandboxProcess:
    """A process, and what is known of it."""

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
            raise ProcessLost("it ended") from None
        except RecordInvalid as fault:
            raise ProcessLost(f"it broke the protocol: {fault.message}") from None

    async def receive_bytes(self, size: int) -> bytes:
        """Return that many bytes that follow a message."""
        try:
            return await self.source.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise ProcessLost("it ended") from None

    async def send(self, message: dict[str, Value], after: bytes = b"") -> None:
        """Send it a message, and bytes as they are after it."""
        self.sink.write(frames.to_frame(message))
        if after:
            self.sink.write(after)
        try:
            await self.sink.drain()
        except ConnectionError:
            raise ProcessLost("it ended") from None

    def strike(self) -> None:
        """End it with its process group, at once: nothing of it runs any more."""
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.sink.close()

    async def kill(self) -> int:
        """End it with its process group, and return its exit status."""
        self.strike()
        return await self.process.wait()

    async def end(self) -> int:
        """Return the status that it ends with by itself, killing it where it does not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_MS_MAX / 1000):
                await self.process.wait()
        return await self.kill()


async def spawn(command: Sequence[str], what: str) -> SandboxProcess:
    """Start a process with an empty environment, and return it when it said what it is.

    Raises:
        SandboxFailed: it does not start.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    made = SandboxProcess(process, process.stdout, process.stdin)
    try:
        async with asyncio.timeout(START_MS_MAX / 1000):
            made.hello = await made.receive()
        take_str(made.hello, "engine")
        take_bytes(made.hello, "config", size=32)
        take_map(made.hello, "confined")
    except (ProcessLost, RecordInvalid, TimeoutError):
        status = await made.kill()
        raise SandboxFailed(f"a sandbox {what} does not start (status {status})") from None
    except asyncio.CancelledError:
        await made.kill()
        raise
    return made
