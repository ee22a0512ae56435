"""What clearings ask of the market: capacity, credit, and what leases have of slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from xsc.allocation.commitments import Commitments
from xsc.allocation.standing import inherited, standing_key
from xsc.base.limits import SLOT_STEP_BYTES
from xsc.base.units import ceil_div
from xsc.identity.context import Context
from xsc.market.entitlements import SlotRoom
from xsc.market.lease_entry import LeaseEntry
from xsc.market.service import MarketService
from xsc.terms.quote import Kind
from xsc.terms.slot import EntitlementKey


class SlotMarket:
    """What the allocation of slots asks of the market, in steps."""

    def __init__(self, context: Context, market: MarketService, commitments: Commitments) -> None:
        self._node = context.key.node_id
        self._clock = context.clock
        self._market = market
        self._commitments = commitments

    def free(self) -> dict[Kind, int]:
        """Return what is neither used nor reserved now."""
        return self._market.headroom.unreserved()

    def room(self, free: Mapping[Kind, int], now_ms: int) -> SlotRoom:
        """Return what so much has room for."""
        return SlotRoom(free, now_ms)

    def drawn(self) -> Counter[EntitlementKey]:
        """Return the steps that leases have drawn of each entitlement here, rounded up."""
        return self._counted(
            self._market.headroom.drawn_steps(),
            {(self._node, who): size for who, size in self._market.headroom.held_for_now().items()},
        )

    def pinned(self) -> Counter[EntitlementKey]:
        """Return the same of those that are not cleared again yet."""
        held = self._market.headroom.held_for_now(pinned=True)
        return self._counted(
            self._market.headroom.drawn_steps(young=True),
            {(self._node, customer): size for customer, size in held.items()},
        )

    def taken(self) -> Counter[EntitlementKey]:
        """Return the steps that leases of this node have drawn at others, rounded up."""
        held = self._market.default_need.held_for_now()
        return self._counted(
            self._market.store.drawn_steps("customer", self._clock.now_ms()),
            {(provider, self._node): size for provider, size in held.items()},
        )

    def key_of(self, entry: LeaseEntry) -> EntitlementKey | None:
        """Return the entitlement that a lease counts for; None of compute for now."""
        if entry.drawn_key is not None:
            return inherited(entry.drawn_key, self._commitments.of(entry.terms.customer))
        if entry.terms.kind == "compute":
            return None
        return standing_key(entry.terms.provider, entry.terms.customer, self._commitments.of)

    def _counted(
        self, drawn: Mapping[EntitlementKey, int], for_now: Mapping[tuple[bytes, bytes], int]
    ) -> Counter[EntitlementKey]:
        """Return what leases have, by what they count for.

        Args:
            drawn: steps by what the leases name.
            for_now: bytes held by leases that name nothing, by provider and customer.
        """
        found = Counter[EntitlementKey]()
        for named, steps in drawn.items():
            found[inherited(named, self._commitments.of(named.customer))] += steps
        for (provider, customer), size_bytes in for_now.items():
            key = standing_key(provider, customer, self._commitments.of)
            if key is not None and size_bytes:
                found[key] += ceil_div(size_bytes, SLOT_STEP_BYTES)
        return found

    def credit_micro(self, customer: bytes, takers: Collection[bytes]) -> int:
        """Return the micro-credits that a customer may still come to owe.

        It has an equal part of a credit that it shares with others of these takers.
        """
        sharing = {*self._market.limits.shares_with(customer), customer}
        return self._market.limits.left(customer) // len(sharing & {customer, *takers})
