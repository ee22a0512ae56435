"""Whether a transfer goes on: within each window so many bytes, or its end.

A mean over the whole would let a sender that was quick at first hold what it has for as long
as it likes with a byte now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from xsc.base.errors import FrameInvalid


class Flow:
    """One transfer. Times are of one clock, in seconds.

    Args:
        now_s: when it begins.
        window_ms: how long it may take for the bytes that are due.
        bytes_a_second: what is due in a second, on the mean of a window.
    """

    def __init__(self, now_s: float, window_ms: int, bytes_a_second: int) -> None:
        self._window_ms = window_ms
        self._least = max(1, bytes_a_second * window_ms // 1000)
        self._moved = 0
        self.ends_s = now_s + window_ms / 1000
        """When it is given up, unless more moves."""

    def moved(self, now_s: float, size_bytes: int) -> None:
        """Count what has moved; with as much as is due another window begins."""
        self._moved += size_bytes
        if self._moved >= self._least:
            self._moved = 0
            self.ends_s = now_s + self._window_ms / 1000

    def fault(self) -> FrameInvalid:
        """Return what is wrong with a transfer that was given up."""
        if not self._moved:
            return FrameInvalid(f"it stopped: nothing came or went for {self._window_ms} ms")
        return FrameInvalid(
            f"it is too slow: {self._moved} bytes in {self._window_ms} ms, {self._least} are due"
        )

    @asynccontextmanager
    async def step(self) -> AsyncIterator[None]:
        """Bound a wait for the next bytes.

        Raises:
            FrameInvalid: they do not come, or too slowly.
        """
        try:
            async with asyncio.timeout_at(self.ends_s):
                yield
        except TimeoutError:
            raise self.fault() from None
