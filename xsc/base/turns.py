"""One task at a time for each key; and long lists, gone through so that others have their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Iterable
from contextlib import asynccontextmanager
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

SLICE: Final = 64
"""Rows of a list that are gone through before others have their turn."""


async def sliced(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield items; after each slice of them whatever else waits goes first.

    A list that grows with what the node keeps would else hold up all its answers.
    """
    for number, item in enumerate(items, 1):
        yield item
        if number % SLICE == 0:
            await asyncio.sleep(0)


class Turns(Generic[K]):
    """Locks by key: what reads a row, awaits, and writes it, loses nothing so.

    They are given in the order in which they were asked for; an unused one is forgotten.
    """

    def __init__(self) -> None:
        self._locks: dict[K, asyncio.Lock] = {}
        self._users: dict[K, int] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._users

    def __len__(self) -> int:
        return len(self._users)

    @asynccontextmanager
    async def of(self, key: K) -> AsyncIterator[Callable[[], None]]:
        """Hold the turn of a key; not to be asked for again by who has it.

        What is given lets the next one in before the context is left.
        """
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] = self._users.get(key, 0) + 1
        holding = False

        def leave() -> None:
            nonlocal holding
            if holding:
                holding = False
                lock.release()

        try:
            await lock.acquire()
            holding = True
            yield leave
        finally:
            leave()
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]
