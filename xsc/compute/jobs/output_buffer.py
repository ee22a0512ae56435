"""Buffers what a running program writes, for readers that follow the run.

The buffer holds both output streams whole, up to the job's output limit. A slow reader
therefore neither blocks the program nor misses anything. Readers cancel the run through it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from xsc.base.clock import Clock
from xsc.base.limits import STREAM_PIECE_BYTES
from xsc.compute.wasm.sandbox import Job, Sandbox, SandboxResult


class OutputBuffer:
    """The output of one run so far, and the request to cancel it. For one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.news = asyncio.Event()
        """Set when there is more; then another event takes its place."""
        self._began_ms: int | None = None
        self._streams: list[bytearray | bytes] = [bytearray(), bytearray()]
        self.done = False
        """Nothing more will be written."""
        self.compiled = False
        """The module had to be compiled for this run."""
        self.cancelled = asyncio.Event()
        """Set to cancel the run."""

    @property
    def size_bytes(self) -> int:
        """Bytes on both streams."""
        return sum(map(len, self._streams))

    def compiling(self) -> None:
        """Note that the module is compiled for this run, whether or not that succeeds."""
        self.compiled = True

    def began(self) -> None:
        """Note that the run begins now; the time it waited before is not billed."""
        self._began_ms = self._clock.monotonic_ms()

    def ran_ms(self) -> int:
        """Return how long it has run; 0 before it began."""
        return 0 if self._began_ms is None else self._clock.monotonic_ms() - self._began_ms

    def wrote(self, stream: int, data: bytes | memoryview) -> None:
        """Add what the program wrote to standard output (1) or standard error (2)."""
        kept = self._streams[stream - 1]
        if not self.done and isinstance(kept, bytearray):
            kept += data
            self._tell()

    def finish(self, stdout: bytes, stderr: bytes) -> bool:
        """Close with the whole output.

        Returns False, and stays open, where that does not begin with what was written.
        """
        if not (stdout.startswith(self._streams[0]) and stderr.startswith(self._streams[1])):
            return False
        # The same bytes as in the result: not kept twice.
        self._streams = [stdout, stderr]
        self.close()
        return True

    def close(self) -> None:
        """Close with what was written so far."""
        self.done = True
        self._tell()

    def cancel(self) -> None:
        """Request the end of the run."""
        self.cancelled.set()

    def read(self, stream: int, start: int, size_max: int) -> bytes:
        """Return up to `size_max` bytes of a stream from `start` on."""
        return bytes(memoryview(self._streams[stream - 1])[start : start + size_max])

    def written(self) -> tuple[bytes, bytes]:
        """Return all of both streams."""
        return bytes(self._streams[0]), bytes(self._streams[1])

    async def pieces(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield each piece with its stream, until the buffer is closed."""
        at = [0, 0]
        while True:
            done = self.done
            for index in range(len(at)):
                while piece := self.read(index + 1, at[index], STREAM_PIECE_BYTES):
                    at[index] += len(piece)
                    yield index + 1, piece
            if done:
                return
            while not self.has_more(*at):
                await self.news.wait()

    def has_more(self, stdout_at: int, stderr_at: int) -> bool:
        """Say whether a stream is longer than that, or the buffer is closed."""
        return self.done or len(self._streams[0]) > stdout_at or len(self._streams[1]) > stderr_at

    def _tell(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


async def run_streamed(sandbox: Sandbox, job: Job, output: OutputBuffer) -> SandboxResult:
    """Return the result of a job; of a cancelled one, with what it had written by then."""
    running = asyncio.ensure_future(sandbox.run(job, output))
    wish = asyncio.ensure_future(output.cancelled.wait())
    try:
        await asyncio.wait({running, wish}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            ran_ms = output.ran_ms()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            if running.cancelled():
                return _cancelled(sandbox, output, ran_ms)
        result = running.result()
        # A killed worker takes along what it wrote; what was told of it was written.
        stdout, stderr = output.written()
        return result if output.done else replace(result, stdout=stdout, stderr=stderr)
    finally:
        wish.cancel()
        running.cancel()
        await asyncio.gather(wish, running, return_exceptions=True)
        output.close()


def _cancelled(sandbox: Sandbox, output: OutputBuffer, ran_ms: int) -> SandboxResult:
    about = sandbox.describe()
    stdout, stderr = output.written()
    return SandboxResult(
        results=(),
        exit_code=None,
        trap="cancelled",
        fuel_used=0,
        memory_peak_bytes=0,
        stdout=stdout,
        stderr=stderr,
        files=(),
        engine=str(about["engine"]),
        engine_config=bytes.fromhex(str(about["engine_config"])),
        wall_ms=ran_ms,
        compiled=output.compiled,
    )
