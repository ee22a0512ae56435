"""Large bodies go to a peer one after the other, each with the whole line for itself.

Together they would not arrive sooner, only all of them late; and were this node
killed, each would have arrived in part and count for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from xsc.base.limits import BATCH_CALL_BYTES_MAX


class Turns:
    """Who may send to which peer."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def turn(self, peer: str, size_bytes: int) -> AsyncIterator[Callable[[], None]]:
        """Wait until a body may be sent; what is given is called once it has left.

        Where it was not called, leaving the context does the same.
        """
        if size_bytes <= BATCH_CALL_BYTES_MAX:
            yield lambda: None
            return
        lock = self._locks.setdefault(peer, asyncio.Lock())
        self._users[peer] = self._users.get(peer, 0) + 1
        holding = False

        def left() -> None:
            nonlocal holding
            if holding:
                holding = False
                lock.release()

        try:
            await lock.acquire()
            holding = True
            yield left
        finally:
            left()
            self._users[peer] -= 1
            if not self._users[peer]:
                del self._users[peer], self._locks[peer]
