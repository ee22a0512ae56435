"""The nodes that give capacity under leases, as storage and compute see them."""

from __future__ import annotations

from xsc.base.peering import Peers
from xsc.health.service import HealthService
from xsc.market.service import MarketService


class Providers:
    """Implements storage's `Hosts` and compute's `ServiceLeases` by the services that know."""

    def __init__(
        self, own: bytes, market: MarketService, health: HealthService, peers: Peers
    ) -> None:
        self._own = own
        self._health = health
        self.peers = peers.peers
        self.report = health.report
        self.labels = market.providers.labels
        self.learn_labels = market.providers.learn_labels
        self.lease_hosts = market.buyer.lease_hosts
        self.unplaced = market.default_need.refused
        self.placed = market.default_need.placed
        self.lease_compute = market.buyer.lease_compute
        self.lease_service = market.buyer.lease_service
        self.lease_providers = market.buyer.lease_providers
        self.lease_end = market.signing.end_of
        self.used = market.buyer.used
        self.spent = market.buyer.spent
        self.unused = market.buyer.unused
        self.refused = market.buyer.refused
        self.is_denied = market.buyer.is_denied
        self.price_and_room = market.buyer.price_and_room
        self.rates_at = market.default_need.rates_at

    def is_up(self, node: bytes) -> bool:
        """Return whether a node answered lately; this one always did."""
        return node == self._own or self._health.is_up(node)

    def response_ms(self, node: bytes) -> int:
        """Return how long a node is expected to take for an answer."""
        return 0 if node == self._own else self._health.response_ms(node)
