"""Lines of calls that wait until there is room for the first of them.

A customer's node has one for each node that is asked for, and one for any; a provider one for the
calls of each customer, whose limits have to be within what it may still come to owe.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from xsc.base.clock import Clock, event_within
from xsc.base.errors import RateLimited

K = TypeVar("K", bound=Hashable)
_LOOK_MS: Final = 1_000
"""What time alone changes is seen so often."""


class WaitingLines(Generic[K]):
    """Lines by key: first come, first served in each.

    Args:
        clock: by which they wait.
        most: how many may wait in all.
        each: how many in one line.
    """

    def __init__(self, clock: Clock, *, most: int, each: int) -> None:
        self._clock = clock
        self._most = most
        self._each = each
        self._lines: dict[K, deque[asyncio.Event]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    async def enter(self, key: K, has_room: Callable[[], bool], wait_ms: int) -> None:
        """Return once nobody waits before it in its line, and there is room.

        The caller takes the room before it awaits anything.

        Args:
            key: of the line.
            has_room: says whether there is; what it raises ends the wait.
            wait_ms: how long it may wait.

        Raises:
            RateLimited: too many wait already, or there was no room in time.
        """
        if key not in self._lines and has_room():
            return
        line = self._lines.get(key, ())
        if len(self) >= self._most or len(line) >= self._each:
            raise RateLimited(
                f"{len(line)} calls wait here already", hint="try again once some have ended"
            )
        until_ms = self._clock.monotonic_ms() + wait_ms
        place = asyncio.Event()
        standing = self._lines.setdefault(key, deque())
        standing.append(place)
        try:
            while standing[0] is not place or not has_room():
                left_ms = until_ms - self._clock.monotonic_ms()
                if left_ms <= 0:
                    raise RateLimited(
                        f"the call had to wait for others, and had no turn within {wait_ms} ms",
                        hint="let it wait longer with --wait, or try again once some have ended",
                    )
                await event_within(self._clock, place, min(left_ms, _LOOK_MS))
                place.clear()
        finally:
            standing.remove(place)
            if standing:
                standing[0].set()
            else:
                del self._lines[key]

    def wake(self) -> None:
        """Have the first of each line look again, because something has ended."""
        for line in self._lines.values():
            line[0].set()
