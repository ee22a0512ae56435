"""What the next half is judged by one at a time: rows that are looked up, not held in memory.

Rows follow from the halves. On the disk they are as the newest snapshot left them; what has
come since is in memory, and goes to the disk with the next snapshot, in one write.

What was booked with each peer and when is in rows, too, so that a month is summed without reading
halves. A balance is the sum of its flows: a statement needs no count of its own. Sums of days (UTC)
are in memory, and every sum is over whole days.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from operator import itemgetter
from typing import Final, NamedTuple

from xsc.api.ledger import Flow
from xsc.base.keyvalue import Change, KeyValue
from xsc.ledger.entry import Half

INDEX: Final = b"ledger/index/"

ID: Final = b"i"
"""Numbers of own halves, by the entry's id."""
SEEN: Final = b"s"
"""Rows of halves of peers, by peer and its number."""
SHARED: Final = b"c"
"""Ids of entries by peer and the number of the half of the lower id, beside the other's number."""
SEAL: Final = b"q"
"""Where each seal begins, by history and where it ends."""
OWN: Final = b"h"
"""Rows of own halves, by peer, date and number: what counts of each (`Flows`)."""
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
    """A peer's half that has a place in this ledger."""

    id: bytes
    prev: bytes
    seals: bool
    """Of those, the next incarnation takes none along."""
    seq: int
    """Of the own half."""


class Seen:
    """Halves of peers, by peer and its sequence number."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def get(self, peer: bytes, seq: int) -> Known | None:
        """Return the half of a number."""
        raw = self._index.get(_at(peer, seq))
        return None if raw is None else _known(raw)

    def add(self, half: Known, peer: bytes, seq: int) -> bool:
        """Add a half where there is none; return whether there was none."""
        key = _at(peer, seq)
        if self._index.get(key) is not None:
            return False
        self._index.changes[key] = (
            half.id + half.prev + bytes([half.seals]) + half.seq.to_bytes(8, "big")
        )
        return True

    def numbered(
        self, peer: bytes, first: int, stop: int = 2**64 - 1, *, reverse: bool = False
    ) -> Iterator[tuple[int, Known]]:
        """Yield those of one peer by number, from one on and before another."""
        for key, raw in self._index.scan(_at(peer, first), _at(peer, stop), reverse=reverse):
            yield int.from_bytes(key[-8:], "big"), _known(raw)


def _at(peer: bytes, seq: int) -> bytes:
    return SEEN + peer + seq.to_bytes(8, "big")


def _known(raw: bytes) -> Known:
    return Known(raw[:32], raw[32:64], raw[64] > 0, int.from_bytes(raw[65:], "big"))


_KINDS: Final = {
    ("leases", True): "earned_micro",
    ("off_books", True): "paid_micro",
    ("loop", True): "cleared_own_micro",
    ("leases", False): "spent_micro",
    ("off_books", False): "received_micro",
    ("loop", False): "cleared_micro",
}
"""By purpose, and whether the peer came to owe it. Rows have the number of a kind, and 0 of what
does not count."""
_FIELDS: Final = ("", *_KINDS.values())
_OWED: Final = 3
"""The kinds up to this number are what a peer came to owe."""
_DAY_MS: Final = 24 * 3_600_000
_END_MS: Final = (2**63 // _DAY_MS + 1) * _DAY_MS
"""Whole days, above every date."""


def _row(peer: bytes, at_ms: int, seq: int = 0) -> bytes:
    return OWN + peer + at_ms.to_bytes(8, "big") + seq.to_bytes(8, "big")


class Flows:
    """The own halves by peer and date, and sums of those that count."""

    def __init__(self, index: Index | None = None) -> None:
        self._index = index or Index()
        self._days: dict[bytes, dict[int, dict[int, int]]] = {}
        """By peer and kind, the sum of each day."""
        for key, raw in self._index.scan(DAY, DAY + b"\xff" * 64):
            self._of(key[1:-9], key[-9])[int.from_bytes(key[-8:], "big")] = int.from_bytes(
                raw, "big"
            )

    def _of(self, peer: bytes, kind: int) -> dict[int, int]:
        return self._days.setdefault(peer, {}).setdefault(kind, {})

    def show(self, half: Half) -> None:
        """Take an own half that counts nothing yet."""
        self._index.changes[_row(half.peer, half.created_ms, half.seq)] = bytes(9)

    def add(self, half: Half) -> None:
        """Take the own half of an entry that both parties have signed."""
        kind = _FIELDS.index(_KINDS[half.purpose, half.debit == half.peer])
        day = half.created_ms // _DAY_MS
        days = self._of(half.peer, kind)
        days[day] = days.get(day, 0) + half.amount_micro
        counts = bytes([kind]) + half.amount_micro.to_bytes(8, "big")
        self._index.changes[_row(half.peer, half.created_ms, half.seq)] = counts
        key = DAY + half.peer + bytes([kind]) + day.to_bytes(8, "big")
        self._index.changes[key] = days[day].to_bytes(16, "big")

    def _sums(self, peer: bytes, from_ms: int = 0, until_ms: int = _END_MS) -> dict[int, int]:
        """Return what was booked with a peer, from the day of a moment on and before another."""
        first, last = from_ms // _DAY_MS, -(-until_ms // _DAY_MS)
        found = {
            kind: sum(total for day, total in days.items() if first <= day < last)
            for kind, days in self._days.get(peer, {}).items()
        }
        return {kind: total for kind, total in found.items() if total}

    def of(self, peer: bytes, since_ms: int) -> Flow:
        """Return what was booked with a peer since the beginning of a day."""
        sums = self._sums(peer, since_ms)
        return Flow(peer=peer, **{_FIELDS[kind]: total for kind, total in sums.items()})

    def since(self, at_ms: int) -> list[Flow]:
        """Return what was booked since the beginning of a day, by peer."""
        return [self.of(peer, at_ms) for peer in sorted(self._days) if self._sums(peer, at_ms)]

    def balances(self, before_ms: int) -> dict[bytes, int]:
        """Return what each peer owed this node before a day began; below zero, was owed."""
        found = {peer: self._sums(peer, until_ms=before_ms) for peer in self._days}
        return {
            peer: sum(total if kind <= _OWED else -total for kind, total in sums.items())
            for peer, sums in found.items()
            if sums
        }

    def numbers(self, from_ms: int, until_ms: int) -> list[int]:
        """Return the numbers of what was booked from a moment on and before another, by date."""
        return [
            int.from_bytes(place[8:], "big")
            for place in sorted(
                key[-16:]
                for peer in self._days
                for key, raw in self._index.scan(_row(peer, from_ms), _row(peer, until_ms))
                if raw[0]
            )
        ]

    def newest(self, peer: bytes, before: Half | None) -> Iterator[int]:
        """Yield the numbers of own halves with a peer, the newest first; those before one."""
        stop = (
            _row(peer, 2**64 - 1) if before is None else _row(peer, before.created_ms, before.seq)
        )
        for key, _ in self._index.scan(_row(peer, 0), stop, reverse=True):
            yield int.from_bytes(key[-8:], "big")
