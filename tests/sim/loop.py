"""An event loop whose time is a manual clock: it jumps when everybody waits.

`asyncio`'s own timers and the clock's sleepers share one time line, so a day of
probes takes milliseconds and the same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import TypeVar

from xsc.base.clock import ManualClock

T = TypeVar("T")


class NothingLeft(AssertionError):
    """Everybody waits for something that can never come."""


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout=None):
        if timeout is not None and timeout <= 0:
            return []  # somebody is ready to run, and nothing comes from outside
        ready = super().select(0)
        if ready:
            return ready
        moments = [] if timeout is None else [self._clock.now_ms() + max(1, round(timeout * 1000))]
        sleeper = self._clock.next_ms()
        if sleeper is not None:
            moments.append(sleeper)
        if not moments:
            raise NothingLeft
        self._clock.advance_to(min(moments))
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """A loop that takes its time from a manual clock."""

    def __init__(self, clock: ManualClock) -> None:
        self._manual = clock
        super().__init__(_JumpingSelector(clock))
        self._clock_resolution = 0.001

    def time(self) -> float:
        return self._manual.monotonic_ms() / 1000


def simulate(clock: ManualClock, main: Coroutine[object, object, T]) -> T:
    """Run a coroutine to its end on the clock's time."""
    loop = SimulatedLoop(clock)
    try:
        return loop.run_until_complete(main)
    finally:
        finish(loop)


def finish(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel all that is left on a loop, and close it."""
    pending = asyncio.all_tasks(loop)
    for task in pending:
        task.cancel()
    if pending:
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
    loop.close()
