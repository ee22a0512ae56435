"""What clearings ask of the market: capacity, credit, and what leases have of slots."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from xsc.market.service import MarketService
from xsc.terms.quote import KINDS, Kind
from xsc.terms.slot import STEP, EntitlementKey


class SlotMarket:
    """What the allocation of slots asks of the market, in steps."""

    def __init__(self, market: MarketService) -> None:
        self._market = market

    def free(self) -> dict[Kind, int]:
        """Return the steps that are neither used nor reserved now."""
        headroom = self._market.headroom
        return {kind: headroom.unreserved(kind) // STEP[kind] for kind in KINDS}

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
