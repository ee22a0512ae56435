"""The last bytes that reads gave, kept for a while where a reader went away in the middle.

What was given is not yet what a client has: some of it lies in sockets, some in the client's
memory, and all that is gone when the client is killed. It asks for those bytes again, and
they need not come from the hosts again. What is kept is bounded in bytes for each read and
for all of them, and in time; it is verified plaintext, given only to whoever opens the same
object, which takes its read capability.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from xsc.base.limits import MIB, READ_AHEAD_KEPT_MS
from xsc.storage.object.erasure import Buffer

READ_AHEAD_BYTES = 5 * MIB
"""What a node gave last to a client that went away: more than sockets and the client hold."""
READ_AHEAD_TOTAL_BYTES_MAX = 32 * MIB
"""The same, of all reads; who began first loses it first."""
READ_AHEAD_READS_MAX = 64
"""Readers that went away of which something is kept."""


@dataclass(eq=False, slots=True)
class CachedRead:
    """What a read gave last, without a gap."""

    key: bytes
    """The content key of the object."""
    stop: int
    """Where in the object the read is."""
    pieces: deque[Buffer] = field(default_factory=deque)
    size_bytes: int = 0
    left_ms: int | None = None
    """When its reader went away; None while it reads."""

    @property
    def start(self) -> int:
        """Where what is kept begins."""
        return self.stop - self.size_bytes

    def drop_first(self) -> int:
        """Forget the first piece; return its size in bytes."""
        size = len(self.pieces.popleft())
        self.size_bytes -= size
        return size


class ReadAheadCache:
    """What all reads of a node gave last."""

    def __init__(self) -> None:
        self._reads: list[CachedRead] = []
        """Who began first stands first, and loses first what is too much."""
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """How much is kept of all."""
        return self._size_bytes

    def begin(self, key: bytes, start: int) -> CachedRead:
        """Return what takes down what a read gives from `start` on."""
        read = CachedRead(key, start)
        self._reads.append(read)
        return read

    def give(self, read: CachedRead, piece: Buffer) -> None:
        """Take down what comes next."""
        read.pieces.append(piece)
        read.stop += len(piece)
        read.size_bytes += len(piece)
        self._size_bytes += len(piece)
        while read.size_bytes - len(read.pieces[0]) >= READ_AHEAD_BYTES:
            self._size_bytes -= read.drop_first()
        while self._size_bytes > READ_AHEAD_TOTAL_BYTES_MAX:
            first = next(read for read in self._reads if read.pieces)
            self._size_bytes -= first.drop_first()

    def end(self, read: CachedRead, now_ms: int, *, taken: bool) -> None:
        """Keep what a read gave whose reader went away.

        Where its reader took all, that is forgotten, and what was kept of readers before it.
        """
        read.left_ms = now_ms
        left = [other for other in self._reads if other.left_ms is not None]
        if taken:
            gone = [other for other in left if other.key == read.key and other.stop <= read.stop]
        else:
            gone = [other for other in left if not other.size_bytes] or left[:-READ_AHEAD_READS_MAX]
        for other in gone:
            self._drop(other)

    def take(self, key: bytes, start: int, now_ms: int) -> list[Buffer]:
        """Return what is kept of an object from `start` on, without a gap; it may be nothing."""
        self.expire(now_ms)
        for read in self._reads:
            if read.key == key and read.start <= start < read.stop:
                break
        else:
            return []
        skipped = start - read.start
        found: list[Buffer] = []
        for piece in read.pieces:
            if skipped < len(piece):
                found.append(memoryview(piece)[skipped:])
            skipped = max(0, skipped - len(piece))
        return found

    def expire(self, now_ms: int) -> None:
        """Forget what nobody came back for."""
        for read in list(self._reads):
            if read.left_ms is not None and now_ms - read.left_ms >= READ_AHEAD_KEPT_MS:
                self._drop(read)

    def _drop(self, read: CachedRead) -> None:
        self._reads.remove(read)
        self._size_bytes -= read.size_bytes
