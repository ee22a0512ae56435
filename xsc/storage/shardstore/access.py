"""Orders the writers and deletions of a shard store.

Writers of one body wait for each other, a deletion waits for all writers of its object
and customer, and all wait while the store is quiet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Owner: TypeAlias = tuple[bytes, bytes]
"""Locate id of an object, and a customer."""


class WriteAccess:
    """Says which writes and deletions may begin, and wakes those that wait."""

    def __init__(self) -> None:
        self._quiet = False
        self._writing: set[bytes] = set()
        self._writers: dict[Owner, int] = {}
        self._deleting: set[Owner] = set()
        self._freed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def until(self, free: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is tested whenever a write or deletion ends."""
        while not free():
            await self._freed.wait()

    def release(self) -> None:
        """Wake all that wait."""
        self._freed.set()
        self._freed = asyncio.Event()

    def finish(self, task: asyncio.Task[T]) -> asyncio.Future[T]:
        """Return a future of a task that continues where the waiting for it is cancelled."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asyncio.shield(task)

    def is_unwritten(self, keys: Sequence[bytes]) -> bool:
        """Return whether none of these bodies is being written."""
        return self._writing.isdisjoint(keys)

    def may_write(self, owner: Owner, keys: Sequence[bytes]) -> bool:
        """Return whether bodies of an owner may be written now."""
        return not self._quiet and owner not in self._deleting and self._writing.isdisjoint(keys)

    def begin_write(self, owner: Owner, keys: Sequence[bytes]) -> None:
        """Take note that bodies are being written."""
        self._writing.update(keys)
        self._writers[owner] = self._writers.get(owner, 0) + 1

    def end_write(self, owner: Owner, keys: Sequence[bytes]) -> None:
        """Take note that they are written; `release` wakes others."""
        self._writing.difference_update(keys)
        self._writers[owner] -= 1
        if not self._writers[owner]:
            del self._writers[owner]

    async def begin_delete(self, owner: Owner) -> None:
        """Wait until nothing of an owner is written or deleted, and let no other begin."""
        await self.until(
            lambda: not self._quiet and owner not in self._deleting and owner not in self._writers
        )
        self._deleting.add(owner)

    def end_delete(self, owner: Owner) -> None:
        """Let others begin."""
        self._deleting.discard(owner)
        self.release()

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Wait until nothing is written or deleted, and let nothing begin: for a moment only."""
        await self.until(lambda: not self._quiet)
        self._quiet = True
        try:
            await self.until(lambda: not (self._writing or self._deleting))
            yield
        finally:
            self._quiet = False
            self.release()
