"""Locks by key, iteration over long lists that lets other tasks run, and turns among lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Generic, ParamSpec, TypeVar

from xsc.base import clock, limits

WORK_INLINE_BYTES = 4 * limits.KIB
"""What a peer sent is decoded without waiting for its turn up to this size."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
P = ParamSpec("P")

SLICE: Final = 64
"""Items between two points at which other tasks run."""


async def sliced(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield items, and let other tasks run after each slice of them.

    Otherwise a long list would delay every answer of the node.
    """
    for number, item in enumerate(items, 1):
        yield item
        if number % SLICE == 0:
            await asyncio.sleep(0)


class Turns(Generic[K]):
    """Locks by key, so that a read, an await and a write of one row are not interleaved.

    They are granted in the order of the requests; an unused one is dropped.
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
        """Hold the lock of a key; it is not reentrant.

        Yields a function that releases it before the context is left.
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


class PeerWork:
    """Work on what peers have sent: of each peer one piece at a time, large ones in a thread.

    So others have their turn between two pieces of one peer, however many it sends. Decoding
    holds the interpreter for most of its time, so that several threads of one peer would keep the
    event loop from running as if it were done there.
    """

    def __init__(self, executor: clock.Executor) -> None:
        self._executor = executor
        self._turns: Turns[bytes] = Turns()

    async def run(
        self,
        peer: bytes,
        size_bytes: int,
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what a function gives: at once where the work is small."""
        if size_bytes <= WORK_INLINE_BYTES:
            return function(*args, **kwargs)
        async with self._turns.of(peer):
            found = await clock.run_sized(self._executor, size_bytes, function, *args, **kwargs)
            await asyncio.sleep(0)
            return found


def one_of_each(lists: Sequence[Sequence[T]], most: int) -> list[T]:
    """Return at most so many items: the first of each list, the second of each, and so on.

    So who has much leaves room for who has little.
    """
    turns = sorted((place, who) for who, each in enumerate(lists) for place in range(len(each)))
    return [lists[who][place] for place, who in turns[:most]]
