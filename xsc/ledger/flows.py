"""What was booked with each peer and when, so that a month is summed without reading halves.

A balance is the sum of its flows: a statement needs no count of its own. Sums of days are in
memory; a time that begins or ends within a day takes rows of the index for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Final

from xsc.api.ledger import Flow
from xsc.ledger.entry import Half
from xsc.ledger.index import DAY, HALF, Index
from xsc.terms.voucher import off_books_account

_off_books: Final = lru_cache(maxsize=1024)(off_books_account)
_SIGNS: Final = {
    "earned_micro": 1,
    "paid_micro": 1,
    "cleared_own_micro": 1,
    "spent_micro": -1,
    "received_micro": -1,
    "cleared_micro": -1,
}
"""Of what a peer owes this node."""
_KINDS: Final = ("", *_SIGNS)
"""By the number in a row; the first of what does not count."""
_DAY_MS: Final = 24 * 3_600_000
_END_MS: Final = (2**63 // _DAY_MS + 1) * _DAY_MS
"""Whole days, above every date."""


def _row(peer: bytes, at_ms: int, seq: int = 0) -> bytes:
    return HALF + peer + at_ms.to_bytes(8, "big") + seq.to_bytes(8, "big")


def _kind_of(half: Half) -> int:
    is_payment = half.account == _off_books(half.credit, half.debit)
    if half.clears:
        kind = "cleared_own_micro" if half.debit == half.peer else "cleared_micro"
    elif half.debit == half.peer:
        kind = "paid_micro" if is_payment else "earned_micro"
    else:
        kind = "received_micro" if is_payment else "spent_micro"
    return _KINDS.index(kind)


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
        kind, day = _kind_of(half), half.created_ms // _DAY_MS
        days = self._of(half.peer, kind)
        days[day] = days.get(day, 0) + half.amount_micro
        counts = bytes([kind]) + half.amount_micro.to_bytes(8, "big")
        self._index.changes[_row(half.peer, half.created_ms, half.seq)] = counts
        key = DAY + half.peer + bytes([kind]) + day.to_bytes(8, "big")
        self._index.changes[key] = days[day].to_bytes(16, "big")

    def _rows(
        self, peer: bytes, from_ms: int, until_ms: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """Yield date, number, kind and amount of what counts."""
        for key, raw in self._index.scan(_row(peer, from_ms), _row(peer, until_ms)):
            at_ms, seq = (int.from_bytes(part, "big") for part in (key[-16:-8], key[-8:]))
            if raw[0]:
                yield at_ms, seq, raw[0], int.from_bytes(raw[1:], "big")

    def _sums(self, peer: bytes, from_ms: int, until_ms: int) -> dict[str, int]:
        """Return what was booked with a peer from a moment on and before another, by field."""
        first, last = -(-from_ms // _DAY_MS), until_ms // _DAY_MS
        kinds = self._days.get(peer, {})
        found = {
            kind: sum(total for day, total in days.items() if first <= day < last)
            for kind, days in kinds.items()
        }
        parts = [(from_ms, first * _DAY_MS), (last * _DAY_MS, until_ms)]
        for start, stop in parts if first <= last else [(from_ms, until_ms)]:
            if start < stop and any(start // _DAY_MS in days for days in kinds.values()):
                for _, _, kind, amount in self._rows(peer, start, stop):
                    found[kind] += amount
        return {_KINDS[kind]: total for kind, total in found.items() if total}

    def since(self, at_ms: int) -> list[Flow]:
        """Return what was booked from a moment on, by peer."""
        found = {peer: self._sums(peer, at_ms, _END_MS) for peer in self._days}
        return [Flow(peer=peer, **sums) for peer, sums in sorted(found.items()) if sums]

    def of(self, peer: bytes, since_ms: int) -> Flow:
        """Return what was booked with a peer from a moment on."""
        return Flow(peer=peer, **dict.fromkeys(_SIGNS, 0) | self._sums(peer, since_ms, _END_MS))

    def balances(self, before_ms: int) -> dict[bytes, int]:
        """Return what each peer owed this node just before a moment; below zero, was owed."""
        found = {peer: self._sums(peer, 0, before_ms) for peer in self._days}
        return {
            peer: sum(_SIGNS[kind] * total for kind, total in sums.items())
            for peer, sums in found.items()
            if sums
        }

    def numbers(self, from_ms: int, until_ms: int) -> list[int]:
        """Return the numbers of what was booked from a moment on and before another, by date."""
        rows = (self._rows(peer, from_ms, until_ms) for peer in self._days)
        return [seq for _, seq, *_ in sorted(chain.from_iterable(rows))]

    def newest(self, peer: bytes, before: Half | None) -> Iterator[int]:
        """Yield the numbers of own halves with a peer, the newest first; those before one."""
        stop = (
            _row(peer, 2**64 - 1) if before is None else _row(peer, before.created_ms, before.seq)
        )
        for key, _ in self._index.scan(_row(peer, 0), stop, reverse=True):
            yield int.from_bytes(key[-8:], "big")
