"""What the next half is judged by one at a time: rows that are looked up, not held in memory.

Rows follow from the halves. On the disk they are as the newest snapshot left them; what has
come since is in memory, and goes to the disk with the next snapshot, in one write.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from operator import itemgetter
from typing import Final, NamedTuple

from xsc.base.keyvalue import Change, KeyValue

INDEX: Final = b"ledger/index/"

ENTRY: Final = b"e"
"""Rows of entries by initiator and xid."""
ID: Final = b"i"
"""The same by id."""
SEEN: Final = b"s"
"""Rows of halves of peers, by peer and its number."""
SHARED: Final = b"c"
"""Ids of entries by peer and the number of the half of the lower id, beside the other's number."""
SEAL: Final = b"q"
"""Where each seal begins, by history and where it ends."""
HALF: Final = b"h"
"""Rows of own halves, by peer, date and number: what counts of each (`xsc.ledger.flows`)."""
DAY: Final = b"d"
"""Rows of sums by peer, kind and day."""


class Index:
    """Rows in the store, and above them those that have changed since a snapshot.

    Args:
        base: where they are stored; None for a book that is only in memory.
    """

    def __init__(self, base: KeyValue | None = None) -> None:
        self._base = base
        self.changes: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        """Return a row."""
        found = self.changes.get(key)
        # In this order: a snapshot writes them before it forgets them, and threads read, too.
        if found is None and self._base is not None:
            found = self._base.get(INDEX + key)
        return found

    def rows(self) -> list[Change]:
        """Return what the store lacks."""
        return [(INDEX + key, row) for key, row in self.changes.items()]

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows with start <= key < stop, in order of keys."""
        changes = self.changes
        found = [item for item in [*changes.items()] if start <= item[0] < stop]
        new = sorted(found, reverse=reverse)
        if self._base is None:
            return iter(new)
        stored = self._base.scan(INDEX + start, INDEX + stop, reverse=reverse)
        kept = ((key[len(INDEX) :], row) for key, row in stored if key[len(INDEX) :] not in changes)
        return heapq.merge(kept, new, key=itemgetter(0), reverse=reverse)


class Known(NamedTuple):
    """A half that has a place in this ledger: of an entry its initiator's, or a peer's."""

    id: bytes
    prev: bytes
    seals: bool
    """Of those, the next incarnation takes none along."""
    seq: int
    """Of the own half."""


class Table:
    """Rows of halves.

    Args:
        index: has the rows.
        name: the first byte of each key.
    """

    def __init__(self, index: Index, name: bytes) -> None:
        self._index = index
        self._name = name

    def _at(self, owner: bytes, at: bytes | int) -> bytes:
        return self._name + owner + (at if isinstance(at, bytes) else at.to_bytes(8, "big"))

    def get(self, owner: bytes, at: bytes | int = b"") -> Known | None:
        """Return a half by the parts of its key."""
        raw = self._index.get(self._at(owner, at))
        return None if raw is None else _known(raw)

    def add(self, half: Known, owner: bytes, at: bytes | int = b"") -> bool:
        """Add a half where there is none; return whether there was none."""
        key = self._at(owner, at)
        if self._index.get(key) is not None:
            return False
        self._index.changes[key] = (
            half.id + half.prev + bytes([half.seals]) + half.seq.to_bytes(8, "big")
        )
        return True

    def numbered(
        self, owner: bytes, first: int, stop: int = 2**64 - 1, *, reverse: bool = False
    ) -> Iterator[tuple[int, Known]]:
        """Yield those of one owner by number, from one on and before another."""
        start, end = self._at(owner, first), self._at(owner, stop)
        for key, raw in self._index.scan(start, end, reverse=reverse):
            yield int.from_bytes(key[-8:], "big"), _known(raw)


def _known(raw: bytes) -> Known:
    return Known(raw[:32], raw[32:64], raw[64] > 0, int.from_bytes(raw[65:], "big"))
