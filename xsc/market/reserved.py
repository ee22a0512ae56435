"""What a provider keeps free under its leases, counted as they change.

Each quote and each grant asks for it, and there may be thousands of leases. So a lease is counted
again when it changes, and when time alone may change what is kept for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from xsc.base.limits import STORAGE_LEASE_IDLE_MS
from xsc.market.lease import is_over
from xsc.market.lease_entry import LeaseEntry, kept_free
from xsc.terms.quote import Kind

_NEVER_MS: Final = 2**63


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept for one lease, and until when that holds."""

    entry: LeaseEntry
    quantity: int
    until_ms: int


def _until_ms(entry: LeaseEntry, now_ms: int) -> int:
    """Return when time alone may change what is kept for a lease: it ends, or its room lapses."""
    terms, use = entry.terms, entry.use
    if not use.level or is_over(terms, use, now_ms):
        return _NEVER_MS
    lapse_ms = terms.end_ms if terms.cleared else use.touched_ms + STORAGE_LEASE_IDLE_MS
    return min(terms.end_ms, lapse_ms) if now_ms < lapse_ms else _NEVER_MS


class Reserved:
    """What is kept free for each customer, as the store of leases tells of them."""

    def __init__(self) -> None:
        self._kept: dict[bytes, _Kept] = {}
        self._changed: dict[bytes, LeaseEntry] = {}
        self._due: list[tuple[int, bytes]] = []
        """Moments at which leases are counted again; the first stands first."""
        self._now_ms = 0
        self._shares: dict[Kind, Counter[bytes]] = {"storage": Counter(), "compute": Counter()}
        self._cleared: dict[Kind, int] = {"storage": 0, "compute": 0}
        """Under leases that no share bounds."""

    def change(self, entry: LeaseEntry) -> None:
        """Count a lease again: it is new, or has changed."""
        self._changed[entry.terms.lease_id] = entry

    def forget(self, entry: LeaseEntry) -> None:
        """Count a lease no longer."""
        self._changed.pop(entry.terms.lease_id, None)
        self._count(self._kept.pop(entry.terms.lease_id, None), -1)

    def at(self, kind: Kind, now_ms: int) -> tuple[dict[bytes, int], int]:
        """Return what each customer has reserved and not used, and what cleared leases have."""
        self._pass_time(now_ms)
        return dict(self._shares[kind]), self._cleared[kind]

    def _pass_time(self, now_ms: int) -> None:
        if now_ms < self._now_ms:  # the clock was set back
            self._changed |= {lease_id: kept.entry for lease_id, kept in self._kept.items()}
        self._now_ms = now_ms
        while self._due and self._due[0][0] <= now_ms:
            _, lease_id = heappop(self._due)
            if lease_id in self._kept:
                self._changed.setdefault(lease_id, self._kept[lease_id].entry)
        for lease_id, entry in self._changed.items():
            before = self._kept.get(lease_id)
            after = _Kept(entry, kept_free(entry, now_ms), _until_ms(entry, now_ms))
            self._count(before, -1)
            self._count(after, 1)
            self._kept[lease_id] = after
            is_known = before is not None and before.until_ms == after.until_ms
            if after.until_ms < _NEVER_MS and not is_known:
                heappush(self._due, (after.until_ms, lease_id))
        self._changed.clear()

    def _count(self, kept: _Kept | None, sign: int) -> None:
        if kept is None or not kept.quantity:
            return
        terms, change = kept.entry.terms, sign * kept.quantity
        if kept.entry.draw is not None:
            self._cleared[terms.kind] += change
            return
        shares = self._shares[terms.kind]
        shares[terms.customer] += change
        if not shares[terms.customer]:
            del shares[terms.customer]
