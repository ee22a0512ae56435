"""Sends what a worker's program writes: at once, but not byte by byte.

Writes within STREAM_FLUSH_MS of each other are sent together. A thread of its own flushes
them, because the program may then compute for minutes without writing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from xsc.base.limits import STREAM_PIECE_BYTES

STREAM_FLUSH_MS = 20
"""What a program writes within this time is shown together."""


class OutputStream:
    """Coalesces writes and sends them, from the writing thread or its own."""

    def __init__(self, tell: Callable[[int, bytes], None]) -> None:
        """Start the thread.

        Args:
            tell: receives a stream (1 or 2) and bytes, from one thread at a time.
        """
        self._tell = tell
        self._condition = threading.Condition()
        self._waiting: list[tuple[int, bytearray]] = []
        self._told = 0.0
        threading.Thread(target=self._watch, name="xsc-output", daemon=True).start()

    def wrote(self, stream: int, data: bytes) -> None:
        """Send it now, or together with what follows soon."""
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
        """Send what is pending; call it before any other message about the run."""
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
