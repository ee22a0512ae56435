"""What holders take up together, as bytes in memory: a total, and a share of it for each holder.

What is announced is no claim to anything: bytes are taken as they come, or are made.
Large takers leave a part free, so that small calls pass whatever the large ones do.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass

from xsc.base.limits import SMALL_BODY_BYTES_MAX


@dataclass(frozen=True, slots=True)
class _Waiting:
    holder: Hashable
    size: int
    large: bool
    granted: asyncio.Future[None]


class Room:
    """So much room, and who holds how much of it.

    Args:
        total: how much there is.
        share: how much of it one holder may have.
        small: how much of it only those get who take little.
    """

    def __init__(self, total: int, share: int, *, small: int = 0) -> None:
        assert 0 < share <= total
        assert small < total
        self._left = total
        self._share = share
        self._small = small
        self._held: Counter[Hashable] = Counter()
        self._waiting: deque[_Waiting] = deque()

    def held(self, holder: Hashable) -> int:
        """Return how much somebody has."""
        return self._held[holder]

    def _within_share(self, holder: Hashable, size: int) -> bool:
        return self._held[holder] + size <= self._share

    def take(self, holder: Hashable, size: int, *, large: bool = False, owed: bool = False) -> bool:
        """Take room, if there is enough for this holder.

        Args:
            holder: who.
            size: how much.
            large: whether the holder takes much, and leaves the part for small takers free.
            owed: whether its share does not matter: it is a small answer to what was carried out.
        """
        least = self._small if large else 0
        within = owed or self._within_share(holder, size)
        if not within or self._left - size < least:
            return False
        self._held[holder] += size
        self._left -= size
        return True

    async def wait(self, holder: Hashable, size: int, *, large: bool = False) -> None:
        """Take room once there is enough, after those who have waited for longer.

        A holder whose share is used up waits for itself alone. The size is at most a share.
        """
        assert size <= self._share
        behind = any(
            it.holder == holder or (large and self._within_share(it.holder, it.size))
            for it in self._waiting
        )
        if not behind and self.take(holder, size, large=large):
            return
        waiting = _Waiting(holder, size, large, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._grant()
            else:
                self.give(holder, size)
            raise

    def give(self, holder: Hashable, size: int) -> None:
        """Give room back."""
        self._held[holder] -= size
        self._left += size
        assert self._held[holder] >= 0
        if not self._held[holder]:
            del self._held[holder]
        if self._waiting:
            self._grant()

    def _grant(self) -> None:
        """Let in who waits, in order; who lacks only the total holds up the large ones behind."""
        behind: set[Hashable] = set()
        full = False
        for waiting in list(self._waiting):
            if waiting.granted.done() or waiting.holder in behind or (full and waiting.large):
                continue
            if self.take(waiting.holder, waiting.size, large=waiting.large):
                self._waiting.remove(waiting)
                waiting.granted.set_result(None)
            else:
                full = full or self._within_share(waiting.holder, waiting.size)
                behind.add(waiting.holder)


class Hold:
    """What one transfer holds of a room: it takes more as it goes on, and gives all back."""

    def __init__(self, room: Room, holder: Hashable) -> None:
        self._room = room
        self._holder = holder
        self.size_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Take more, if there is enough; what is beyond SMALL_BODY_BYTES_MAX is large."""
        large = self.size_bytes + size_bytes > SMALL_BODY_BYTES_MAX
        taken = self._room.take(self._holder, size_bytes, large=large)
        self.size_bytes += size_bytes if taken else 0
        return taken

    def give(self) -> None:
        """Give all of it back."""
        self._room.give(self._holder, self.size_bytes)
        self.size_bytes = 0
