"""What was booked with each peer and when, so that a month is summed without reading the store."""

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


class Flows:
    """Settled amounts by peer and field of `Flow`, with the dates of own halves: 16 bytes each."""

    def __init__(self) -> None:
        self._booked: dict[tuple[bytes, str], tuple[array[int], array[int]]] = {}
        """Dates, which rise, and amounts."""

    def add(self, half: Half) -> None:
        """Take the own half of an entry that both parties have signed."""
        if half.clears:
            return  # nothing was earned or spent
        is_payment = half.account == _off_books(half.credit, half.debit)
        if half.debit == half.peer:
            kind = "paid_micro" if is_payment else "earned_micro"
        else:
            kind = "received_micro" if is_payment else "spent_micro"
        dates, amounts = self._booked.setdefault((half.peer, kind), (array("q"), array("q")))
        place = bisect_right(dates, half.created_ms)
        dates.insert(place, half.created_ms)
        amounts.insert(place, half.amount_micro)

    def since(self, at_ms: int) -> list[Flow]:
        """Return what was booked from a moment on, by peer."""
        found = defaultdict[bytes, dict[str, int]](dict)
        for (peer, kind), (dates, amounts) in self._booked.items():
            if (first := bisect_left(dates, at_ms)) < len(dates):
                found[peer][kind] = sum(amounts[first:])
        return [Flow(peer=peer, **sums) for peer, sums in sorted(found.items())]
