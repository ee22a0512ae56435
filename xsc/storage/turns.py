"""One task at a time for each key: what reads a row, awaits, and writes it loses nothing so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Locks by key, in the order in which they were asked for; an unused one is forgotten."""

    def __init__(self) -> None:
        self._locks: dict[bytes, asyncio.Lock] = {}
        self._users: dict[bytes, int] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._users

    def __len__(self) -> int:
        return len(self._users)

    @asynccontextmanager
    async def of(self, key: bytes) -> AsyncIterator[None]:
        """Hold the turn of a key; not to be asked for again by who has it."""
        self._users[key] = self._users.get(key, 0) + 1
        try:
            async with self._locks.setdefault(key, asyncio.Lock()):
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]
