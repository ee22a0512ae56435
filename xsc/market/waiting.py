"""Lines of calls that look for fuel, and wait until a run of this node at a provider has ended.

A line is first come, first served: only its first looks for fuel, and in the line for any node
also who needs less than all before it, while these wait. It is woken by the end of a run, and never
asks by the clock but for the end of a lease.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice

from xsc.base.clock import Clock, event_within
from xsc.base.errors import RateLimited
from xsc.base.limits import COMPUTE_WAITING_MAX


@dataclass(slots=True, eq=False)
class Place:
    """The place of a call in a line."""

    line: deque[Place]
    fuel_steps: int
    until_ms: int
    """How long it waits, by a steady clock."""
    is_for_any: bool
    """Whether it takes fuel of any node."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    waits: bool = False

    @property
    def may_look(self) -> bool:
        """Whether it may look for fuel: the first, or one that passes those that wait for more.

        What a call for any node waits for may be at one node only, and what a smaller one needs
        at another.
        """
        for before in self.line:
            if before is self:
                return True
            if not (self.is_for_any and before.waits and self.fuel_steps < before.fuel_steps):
                return False
        raise AssertionError


class WaitingLines:
    """The calls of this node that want fuel of others: a line for each node, and one for any."""

    def __init__(self, clock: Clock, waiting_max: int = COMPUTE_WAITING_MAX) -> None:
        self._clock = clock
        self._waiting_max = waiting_max
        self._lines: dict[bytes | None, deque[Place]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def is_wanted(self, node: bytes) -> bool:
        """Return whether a call waits for fuel of that node, and would take no other's."""
        return node in self._lines and self._lines[node][0].waits

    @asynccontextmanager
    async def place(
        self, node: bytes | None, fuel_steps: int, until_ms: int
    ) -> AsyncIterator[Place]:
        """Stand at the end of the line for a node, or of the one for any.

        Args:
            node: the node; None for any.
            fuel_steps: what it needs.
            until_ms: how long it waits, by a steady clock.

        Raises:
            RateLimited: too many stand in lines already.
        """
        if len(self) >= self._waiting_max:
            raise RateLimited(
                f"{self._waiting_max} calls of this node wait for fuel already",
                hint="try again once some of them have ended",
            )
        line = self._lines.setdefault(node, deque())
        place = Place(line, fuel_steps, until_ms, is_for_any=node is None)
        place.line.append(place)
        try:
            yield place
        finally:
            place.line.remove(place)
            if not place.line:
                del self._lines[node]
            # Who comes next, and who had left this node to those that take no other.
            self._wake(node)
            self._wake(None)

    async def wait(self, place: Place, wait_ms: int) -> None:
        """Return once the place was woken, or after that long."""
        place.waits = True
        if place.may_look:
            # It looked in vain: now those may look that need less, and others are refused in time.
            now_ms = self._clock.monotonic_ms()
            for after in islice(place.line, place.line.index(place) + 1, None):
                if after.until_ms <= now_ms or after.may_look:
                    after.woken.set()
        try:
            await event_within(self._clock, place.woken, wait_ms)
        finally:
            place.waits = False

    def freed(self, node: bytes) -> None:
        """Wake who waits for fuel at a node, because a run of this node there has ended."""
        self._wake(node)
        self._wake(None)

    def _wake(self, node: bytes | None) -> None:
        if node in self._lines:
            self._lines[node][0].woken.set()
