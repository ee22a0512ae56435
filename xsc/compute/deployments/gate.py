"""Limits the concurrent and the waiting requests of one service."""

from __future__ import annotations

import asyncio
from collections import deque

from xsc.base.errors import RateLimited

SERVICE_QUEUE_MAX = 64
"""Requests that wait for one service."""
SERVICE_WAIT_MS_MAX = 10_000
"""How long a request waits for its turn."""


class RequestGate:
    """Admits requests first in, first out.

    Args:
        wait_ms: how long one may wait.
    """

    def __init__(
        self, *, queue_max: int = SERVICE_QUEUE_MAX, wait_ms: int = SERVICE_WAIT_MS_MAX
    ) -> None:
        self._queue_max = queue_max
        self._wait_ms = wait_ms
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.running = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def enter(self, most: int) -> None:
        """Return once the request may run; each return needs one `leave`.

        Args:
            most: how many may run at once.

        Raises:
            RateLimited: too many wait already, or it waited for too long.
        """
        if self.running < most and not self._waiting:
            self.running += 1
            return
        if len(self._waiting) >= self._queue_max:
            raise RateLimited(f"{self._queue_max} requests wait for this service already")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout(self._wait_ms / 1000):
                await future
        except TimeoutError:
            self._give_up(future, most)
            raise RateLimited(f"no request could be taken within {self._wait_ms} ms") from None
        except asyncio.CancelledError:
            self._give_up(future, most)
            raise

    def _give_up(self, future: asyncio.Future[None], most: int) -> None:
        if future in self._waiting:
            self._waiting.remove(future)
        elif not future.cancelled():  # it was let in at the same moment
            self.leave(most)

    def leave(self, most: int) -> None:
        """Make room for the next."""
        self.running -= 1
        while self._waiting and self.running < most:
            future = self._waiting.popleft()
            if not future.done():
                self.running += 1
                future.set_result(None)
