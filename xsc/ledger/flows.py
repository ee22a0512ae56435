"""What was booked with each peer and when, so that a month is summed without reading halves.

A balance is the sum of its flows: a statement needs no count of its own. Sums of days (UTC) are in
memory, and every sum is over whole days.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xsc.api.ledger import Flow
from xsc.ledger.entry import Half
from xsc.ledger.index import DAY, HALF, Index

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
    return HALF + peer + at_ms.to_bytes(8, "big") + seq.to_bytes(8, "big")


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
