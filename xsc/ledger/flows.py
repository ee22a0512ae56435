"""What was booked with each peer and when, so that a month is summed without reading the store.

A balance is the sum of its flows: a statement needs no count of its own.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from functools import lru_cache
from typing import Final

from xsc.api.ledger import Flow
from xsc.ledger.entry import Half
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

_NOTHING: Final = (array("q"), array("q"), array("q"))


class Flows:
    """Settled amounts by peer and field of `Flow`, with date and number of own halves: 24 bytes."""

    def __init__(self) -> None:
        self._booked: dict[tuple[bytes, str], tuple[array[int], array[int], array[int]]] = {}
        """Dates, which rise, amounts, and numbers."""

    def add(self, half: Half) -> None:
        """Take the own half of an entry that both parties have signed."""
        is_payment = half.account == _off_books(half.credit, half.debit)
        if half.clears:
            kind = "cleared_own_micro" if half.debit == half.peer else "cleared_micro"
        elif half.debit == half.peer:
            kind = "paid_micro" if is_payment else "earned_micro"
        else:
            kind = "received_micro" if is_payment else "spent_micro"
        dates, amounts, seqs = self._booked.setdefault(
            (half.peer, kind), (array("q"), array("q"), array("q"))
        )
        place = bisect_right(dates, half.created_ms)
        dates.insert(place, half.created_ms)
        amounts.insert(place, half.amount_micro)
        seqs.insert(place, half.seq)

    def since(self, at_ms: int) -> list[Flow]:
        """Return what was booked from a moment on, by peer."""
        found = defaultdict[bytes, dict[str, int]](dict)
        for (peer, kind), (dates, amounts, _) in self._booked.items():
            if (first := bisect_left(dates, at_ms)) < len(dates):
                found[peer][kind] = sum(amounts[first:])
        return [Flow(peer=peer, **sums) for peer, sums in sorted(found.items())]

    def of(self, peer: bytes, since_ms: int) -> Flow:
        """Return what was booked with a peer from a moment on."""
        sums = {}
        for kind in _SIGNS:
            dates, amounts, _ = self._booked.get((peer, kind), _NOTHING)
            sums[kind] = sum(amounts[bisect_left(dates, since_ms) :])
        return Flow(peer=peer, **sums)

    def balances(self, before_ms: int) -> dict[bytes, int]:
        """Return what each peer owed this node just before a moment; below zero, was owed."""
        found: dict[bytes, int] = {}
        for (peer, kind), (dates, amounts, _) in self._booked.items():
            if last := bisect_left(dates, before_ms):
                found[peer] = found.get(peer, 0) + _SIGNS[kind] * sum(amounts[:last])
        return found

    def numbers(self, from_ms: int, until_ms: int) -> list[int]:
        """Return the numbers of what was booked from a moment on and before another, by date."""
        found: list[tuple[int, int]] = []
        for dates, _, seqs in self._booked.values():
            span = slice(bisect_left(dates, from_ms), bisect_left(dates, until_ms))
            found += zip(dates[span], seqs[span], strict=True)
        return [seq for _, seq in sorted(found)]
