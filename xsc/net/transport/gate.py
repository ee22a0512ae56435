"""The connections of one listener: how many, of whom, and who goes for a newcomer.

A connection is idle as long as it has brought no whole request, however much of a head it
has. Idle ones make room for others, the oldest first; those that are served stay.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from xsc.base.limits import ACCEPTED_AT_ONCE_MAX
from xsc.net.transport.addresses import source_of


class Gate:
    """Counts connections, evicts idle ones for newcomers, and cuts off what is idle for too long.

    Args:
        most: how many there may be.
        share: how many of one source (`source_of`).
        idle_ms: how long one may be idle.
    """

    def __init__(self, *, most: int, share: int, idle_ms: int) -> None:
        self.backlog = min(most, ACCEPTED_AT_ONCE_MAX)
        """What the listener is to accept at once: nothing is counted in between."""
        self._most = most
        self._share = share
        self._idle_s = idle_ms / 1000
        self._sources: dict[asyncio.Transport, str] = {}
        self._counts: Counter[str] = Counter()
        self._idle: dict[asyncio.Transport, float] = {}
        """Since when, the oldest first."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._sources)

    def enter(self, transport: asyncio.Transport) -> bool:
        """Let a new connection in; where nobody idle can make room for it, it is aborted."""
        peername = transport.get_extra_info("peername")
        source = source_of(str(peername[0])) if peername else ""
        if self._counts[source] >= self._share:
            fits = self._evict(source)
        else:
            fits = len(self._sources) < self._most or self._evict(None)
        if not fits:
            transport.abort()
            return False
        self._sources[transport] = source
        self._counts[source] += 1
        self.quiet(transport)
        return True

    def _evict(self, source: str | None) -> bool:
        """Cut off the oldest idle connection of a source, or of all; say whether there was one."""
        for transport in self._idle:
            if source is None or self._sources[transport] == source:
                self._cut(transport)
                return True
        return False

    def _cut(self, transport: asyncio.Transport) -> None:
        self.leave(transport)
        transport.abort()

    def leave(self, transport: asyncio.Transport) -> None:
        """Count a connection no more."""
        source = self._sources.pop(transport, None)
        self._idle.pop(transport, None)
        if source is not None:
            self._counts[source] -= 1
            if not self._counts[source]:
                del self._counts[source]

    def busy(self, transport: asyncio.Transport) -> None:
        """Note that a connection has brought a whole head."""
        self._idle.pop(transport, None)

    def quiet(self, transport: asyncio.Transport) -> None:
        """Note that a connection waits for a request from now on."""
        if transport not in self._sources or transport.is_closing():
            return
        loop = asyncio.get_running_loop()
        self._idle.pop(transport, None)
        self._idle[transport] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._idle_s, self._sweep)

    @contextmanager
    def serving(self, transport: asyncio.Transport | None) -> Iterator[None]:
        """Keep a connection from being cut off while a request of it is answered."""
        if transport is None:
            yield
            return
        self.busy(transport)
        try:
            yield
        finally:
            self.quiet(transport)

    def _sweep(self) -> None:
        """Cut off what has been idle for too long, and look again when the next one has."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for transport, since in list(self._idle.items()):
            left = since + self._idle_s - loop.time()
            if left > 0:
                self._timer = loop.call_later(left, self._sweep)
                return
            self._cut(transport)

    def close(self) -> None:
        """End the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
