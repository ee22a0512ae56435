"""What clearings ask of the market: capacity, credit, and what leases have of slots."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from xsc.market.service import MarketService
from xsc.terms.quote import KINDS, Kind
from xsc.terms.slot import LEASE_UNIT, EntitlementKey, Window

EVER_MS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Level:
    """A quantity that is taken at every moment of a half-open time."""

    start_ms: int
    end_ms: int
    quantity: int


def free_over(capacity: int, levels: Iterable[Level], start_ms: int, end_ms: int) -> int:
    """Return what levels leave of a capacity at every moment of a half-open time."""
    changes: list[tuple[int, int]] = []
    for level in levels:
        start, end = max(level.start_ms, start_ms), min(level.end_ms, end_ms)
        if start < end:
            changes += ((start, level.quantity), (end, -level.quantity))
    # What ends at a moment makes room for what begins then.
    changes.sort()
    taken = most = 0
    for _, change in changes:
        taken += change
        most = max(most, taken)
    return max(0, capacity - most)


class SlotRoom:
    """What a provider can grant of its slots, as a pass over all of them takes it."""

    def __init__(self, free: Mapping[Kind, int], now_ms: int) -> None:
        self._free = free
        """By kind, what is neither used nor reserved."""
        self._now_ms = now_ms
        self._taken: dict[Kind, list[Level]] = {"storage": [], "compute": []}

    def left(self, kind: Kind, window: Window) -> int:
        """Return the steps that can be granted over a window."""
        left = free_over(self._free[kind], self._taken[kind], *self._span(kind, window))
        return left // LEASE_UNIT[kind]

    def take(self, kind: Kind, window: Window, steps: int) -> None:
        """Count steps as granted over a window."""
        if steps:
            self._taken[kind].append(Level(*self._span(kind, window), steps * LEASE_UNIT[kind]))

    def _span(self, kind: Kind, window: Window) -> Window:
        return max(self._now_ms, window[0]), EVER_MS if kind == "storage" else window[1]


class SlotMarket:
    """What the allocation of slots asks of the market, in steps."""

    def __init__(self, market: MarketService) -> None:
        self._market = market

    def free(self) -> dict[Kind, int]:
        """Return what is neither used nor reserved now."""
        return {kind: self._market.headroom.unreserved(kind) for kind in KINDS}

    def room(self, free: Mapping[Kind, int], now_ms: int) -> SlotRoom:
        """Return what so much has room for."""
        return SlotRoom(free, now_ms)

    def drawn(self) -> Mapping[EntitlementKey, int]:
        """Return the steps that leases have drawn of each entitlement, rounded up."""
        return self._market.headroom.drawn_steps()

    def pinned(self) -> Mapping[EntitlementKey, int]:
        """Return the same of those that are not cleared again yet."""
        return self._market.headroom.drawn_steps(young=True)

    def credit_micro(self, customer: bytes, takers: Collection[bytes]) -> int:
        """Return the micro-credits that a customer may still come to owe.

        It has an equal part of a credit that it shares with others of these takers.
        """
        sharing = {*self._market.headroom.shares_with(customer), customer}
        return self._market.headroom.credit_left(customer) // len(sharing & {customer, *takers})
