"""Watches the event loop and long work, and keeps the last measures for a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from xsc.api.monitor import Measures, Work
from xsc.base import progress
from xsc.base.clock import Clock
from xsc.base.errors import ArgumentInvalid

LOOK_MS = 1_000
"""Between two looks at the event loop; measures are made anew at most as often."""
LOOKS = 10
"""So many looks back a delay is told."""


class Watch:
    """What is measured by looking again and again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._delays_ms: deque[int] = deque(maxlen=LOOKS)
        self.last: Measures | None = None
        """The last measures that were made."""
        self.told: tuple[Measures, str] | None = None
        """The last that were told as metrics, and their text."""
        self.changes = 0
        """Of the space."""
        self.ending: tuple[object, int] = None, 0
        """Of which leases and objects it was counted how many objects are under those that end."""

    @property
    def loop_delay_ms(self) -> int:
        """By how much the event loop was late at most within the last looks."""
        return max(self._delays_ms, default=0)

    def fresh(self) -> Measures | None:
        """Return the last measures where they are still those of now."""
        last = self.last
        # The clock may have been set back.
        if last is None or not 0 <= self._clock.now_ms() - last.at_ms < LOOK_MS:
            return None
        return last

    def changed(self, _: object) -> None:
        """Count a change of the space."""
        self.changes += 1

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            begun_ms = self._clock.monotonic_ms()
            await self._clock.sleep_ms(LOOK_MS)
            self._delays_ms.append(max(0, self._clock.monotonic_ms() - begun_ms - LOOK_MS))


class Works:
    """The long work of a node that who asked for it wants to watch."""

    def __init__(self) -> None:
        self._under_way: dict[str, list[int]] = {}
        """By id: what is done, and how much there is."""

    def watch_of(self, work: str) -> progress.Watch:
        """Return what watches work of an id; without one nothing does.

        It raises ArgumentInvalid where other work has that id.
        """
        return partial(self._watched, work) if work else progress.unwatched

    @contextmanager
    def _watched(self, work: str, total: int | None) -> Iterator[progress.Progress]:
        if work in self._under_way:
            raise ArgumentInvalid("other work has that id", hint="give each request its own")
        count = self._under_way[work] = [0, total or 0]

        def told(more: int) -> None:
            count[0] += more

        try:
            yield told
        finally:
            del self._under_way[work]

    def rows(self) -> list[Work]:
        """Return how far all of it is."""
        return [
            Work(id=work, done_bytes=done, total_bytes=total)
            for work, (done, total) in self._under_way.items()
        ]
