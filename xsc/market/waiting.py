"""Lines of calls that wait until there is room for the first of them.

A customer's node has one for each node that is asked for, and one for any. A provider has one for
the calls for now of each customer, whose limits have to be within what it may still come to owe,
and one for each lease with a cleared rate. Leases are cheap, so places are counted by customer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from xsc.base.clock import Clock, event_within
from xsc.base.errors import RateLimited

_LOOK_MS: Final = 1_000
"""What time alone changes is seen so often."""


class WaitingLines:
    """Lines by key: first come, first served in each.

    Args:
        clock: by which they wait.
        most: how many may wait in all.
        each: how many of one key, in all of its lines.
    """

    def __init__(self, clock: Clock, *, most: int, each: int) -> None:
        self._clock = clock
        self._most = most
        self._each = each
        self._lines: dict[tuple[bytes, bytes], deque[asyncio.Event]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    async def enter(
        self, key: bytes, has_room: Callable[[], bool], wait_ms: int, *, line: bytes = b""
    ) -> None:
        """Return once nobody waits before it in its line, and there is room.

        The caller takes the room before it awaits anything.

        Args:
            key: whose line it is.
            has_room: says whether there is; what it raises ends the wait.
            wait_ms: how long it may wait.
            line: which of its lines.

        Raises:
            RateLimited: too many wait already, or there was no room in time.
        """
        place_of = key, line
        if place_of not in self._lines and has_room():
            return
        waiting = sum(len(places) for (of, _), places in self._lines.items() if of == key)
        if len(self) >= self._most or waiting >= self._each:
            raise RateLimited(
                f"{waiting} calls wait here already", hint="try again once some have ended"
            )
        until_ms = self._clock.monotonic_ms() + wait_ms
        place = asyncio.Event()
        standing = self._lines.setdefault(place_of, deque())
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
                del self._lines[place_of]

    def wake(self) -> None:
        """Have the first of each line look again, because something has ended."""
        for line in self._lines.values():
            line[0].set()
