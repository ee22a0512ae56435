"""The clock, randomness and executor ports, and the manual ones.

Rules take time and randomness as arguments; only services hold these ports.
The system's own adapters are in `xsc.node.system`: nothing below the node
reads a clock or draws a random byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Clock(Protocol):
    """Wall time, steady time and waiting."""

    def now_ms(self) -> int:
        """Return milliseconds since 1970-01-01T00:00Z; may jump when the clock is set."""

    def monotonic_ms(self) -> int:
        """Return milliseconds of a clock that never goes back; its origin means nothing."""

    async def sleep_ms(self, duration_ms: int) -> None:
        """Return after that long; 0 only lets others run."""


async def event_within(clock: Clock, event: asyncio.Event, duration_ms: int) -> None:
    """Return once an event is set, or after that long."""
    sleep = asyncio.ensure_future(clock.sleep_ms(duration_ms))
    wake = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((sleep, wake), return_when=asyncio.FIRST_COMPLETED)
    finally:
        sleep.cancel()
        wake.cancel()


async def rest(clock: Clock, woken: asyncio.Event, duration_ms: int) -> None:
    """Wait that long, or until an event is set, and clear it."""
    await event_within(clock, woken, duration_ms)
    woken.clear()


class Entropy(Protocol):
    """A source of random bytes."""

    def token(self, size: int) -> bytes:
        """Return `size` bytes that nobody can guess."""


class Executor(Protocol):
    """Where work goes that would keep the event loop from running."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns; a raised exception passes through."""

    def processor_us(self) -> int:
        """Return the processor time of the present thread; 0 where time is simulated."""

    def close(self) -> None:
        """Wait for what runs and refuse anything new."""


SMALL_WORK_BYTES = 64 * 1024
"""Hashing, sealing or parsing so much takes less than handing it to a thread and back."""


async def run_sized(
    executor: Executor, size_bytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Return what a function gives: at once where the work is small, else by the executor."""
    if size_bytes <= SMALL_WORK_BYTES:
        return function(*args, **kwargs)
    return await executor.run(function, *args, **kwargs)


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = start_ms
        self._start_ms = start_ms
        self._order = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    def now_ms(self) -> int:
        """Return the time it was moved to."""
        return self._now_ms

    def monotonic_ms(self) -> int:
        """Return the milliseconds it was moved by."""
        return self._now_ms - self._start_ms

    async def sleep_ms(self, duration_ms: int) -> None:
        """Return once the clock was moved far enough."""
        if duration_ms <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._waiting, (self._now_ms + duration_ms, self._order, future))
        await future

    def next_ms(self) -> int | None:
        """Return when the earliest sleeper wakes, or None where nobody sleeps."""
        while self._waiting and self._waiting[0][2].done():
            heapq.heappop(self._waiting)
        return self._waiting[0][0] if self._waiting else None

    def advance_to(self, now_ms: int) -> None:
        """Move the clock and wake everybody whose time has come, in order of time."""
        self._now_ms = max(self._now_ms, now_ms)
        while (next_ms := self.next_ms()) is not None and next_ms <= self._now_ms:
            heapq.heappop(self._waiting)[2].set_result(None)


class SeededEntropy:
    """Bytes that follow from a seed: for simulations and tests, never for keys in use."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._count = 0

    def token(self, size: int) -> bytes:
        """Return the next `size` bytes of the stream (SHAKE-256 of seed and counter)."""
        self._count += 1
        return hashlib.shake_256(self._seed + self._count.to_bytes(8, "big")).digest(size)


class InlineExecutor:
    """Runs work at once, where it stands: for simulations and one-shot programs."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns."""
        return function(*args, **kwargs)

    def processor_us(self) -> int:
        """Return 0: what is simulated takes no time."""
        return 0

    def close(self) -> None:
        """Do nothing: no work can be left."""
