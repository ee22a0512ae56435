"""Whole segments on their way to a reader, one column after the other.

A `ByteBudget` bounds what is asked for and not yet delivered, so that a reader that is
killed has little to fetch again. An `SegmentDecoder` takes the shards of one segment as
they come and opens its data columns in order, each where a shard has just been
verified: none waits for the rest of its segment.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from xsc.base.errors import RecordInvalid
from xsc.storage.object.erasure import Buffer, Code, decode_rows
from xsc.storage.object.segment import Opener, Place


class ByteBudget:
    """So many bytes that may be on their way at once; who comes first is served first."""

    def __init__(self, size_bytes: int) -> None:
        self._free = self._size = size_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def ticket(self, size_bytes: int) -> asyncio.Future[None]:
        """Return what is done once there is room for so much; it is taken then."""
        assert size_bytes <= self._size
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, done))
        self._serve()
        return done

    def free(self, size_bytes: int) -> None:
        """Give back what has been delivered."""
        self._free += size_bytes
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            size, done = self._waiting.popleft()
            if not done.done():
                self._free -= size
                done.set_result(None)


def row_bytes(length: int, code: Code) -> list[int]:
    """Return how many bytes of a segment each data column holds, without the padding."""
    size = code.shard_bytes(length)
    return [max(0, min(size, length - row * size)) for row in range(code.k)]


class SegmentDecoder:
    """The shards of one segment that come in, and what can be read of it by them."""

    def __init__(self, opener: Opener, place: Place, code: Code, budget: ByteBudget) -> None:
        self._opener = opener
        self._place = place
        self._code = code
        self._sizes = row_bytes(place.length, code)
        self._rows: dict[int, Buffer] = {}
        self._next = 0
        self._turn = threading.Lock()
        self._opened: deque[bytes] = deque()
        self._fault: RecordInvalid | None = None
        self.tickets: Sequence[asyncio.Future[None]] = [budget.ticket(size) for size in self._sizes]
        """As many shards may be asked for as are done, from the first on."""

    def take(self, column: int, shard: Buffer) -> None:
        """Take a verified shard, in any thread; what becomes readable by it is opened here."""
        with self._turn:
            if len(shard) != self._code.shard_bytes(self._place.length):
                self._fault = RecordInvalid(
                    f"a shard of segment {self._place.index} is not as long as it should be"
                )
            elif self._next <= column < self._code.k:
                self._rows[column] = shard
                self._open()

    def complete(self, shards: Mapping[int, Buffer]) -> None:
        """Rebuild the data columns that did not come, of k shards that did, and open them.

        Raises:
            RecordInvalid: the segment was sealed otherwise, or a shard is of the wrong size.
        """
        with self._turn:
            if self._fault is None and self._next < self._code.k:
                rows = decode_rows(shards, self._code, self._place.length)
                self._rows = dict(enumerate(rows))
                self._open()
            if self._fault is not None:
                raise self._fault

    @property
    def is_open(self) -> bool:
        """Whether all of it was opened, and is what was sealed."""
        return self._next == self._code.k and self._fault is None

    def opened(self) -> Iterable[bytes]:
        """Yield what became readable since the last call, in order."""
        while self._opened:
            yield self._opened.popleft()

    def _open(self) -> None:
        while self._fault is None and self._next in self._rows:
            row = memoryview(self._rows.pop(self._next))[: self._sizes[self._next]]
            plain = self._opener.update(row)
            self._next += 1
            if self._next == self._code.k:
                try:
                    # The last column is held back until the tag has covered all of them.
                    self._opener.finish()
                except RecordInvalid as fault:
                    self._fault = fault
                    return
            self._opened.append(plain)
