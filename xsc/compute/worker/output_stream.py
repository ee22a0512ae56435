"""How a worker tells what its program writes: at once, but not byte by byte.

What follows within STREAM_FLUSH_MS is told together, by a thread of its own: the
program may write no more and compute for minutes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from xsc.base.limits import STREAM_FLUSH_MS, STREAM_PIECE_BYTES


class Spout:
    """Gathers writes and tells them, from whichever thread is due."""

    def __init__(self, tell: Callable[[int, bytes], None]) -> None:
        """Start the thread.

        Args:
            tell: is given a stream (1 or 2) and bytes, by one thread at a time.
        """
        self._tell = tell
        self._condition = threading.Condition()
        self._waiting: list[tuple[int, bytearray]] = []
        self._told = 0.0
        threading.Thread(target=self._watch, name="xsc-spout", daemon=True).start()

    def wrote(self, stream: int, data: bytes) -> None:
        """Tell it now, or with what follows soon."""
        if not data:
            return
        with self._condition:
            if self._waiting and self._waiting[-1][0] == stream:
                self._waiting[-1][1].extend(data)
            else:
                self._waiting.append((stream, bytearray(data)))
            late = time.monotonic() - self._told >= STREAM_FLUSH_MS / 1000
            if late or len(self._waiting[-1][1]) >= STREAM_PIECE_BYTES or len(self._waiting) > 64:
                self._flush()
            else:
                self._condition.notify()

    def flush(self) -> None:
        """Tell what waits: before anything else is said of the run."""
        with self._condition:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for stream, data in waiting:
            self._tell(stream, bytes(data))
        self._told = time.monotonic()

    def _watch(self) -> None:
        with self._condition:
            while True:
                self._condition.wait()
                while self._waiting:
                    left_s = self._told + STREAM_FLUSH_MS / 1000 - time.monotonic()
                    if left_s <= 0:
                        self._flush()
                    else:
                        self._condition.wait(left_s)
