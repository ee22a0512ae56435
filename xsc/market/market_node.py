"""What every part of the market works with."""

from __future__ import annotations

from xsc.identity.context import Context
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts, MarketSettings


class MarketNode:
    """This node on the market: who it is, what it needs of others, and its leases."""

    def __init__(
        self, context: Context, ports: MarketPorts, settings: MarketSettings, store: LeaseStore
    ) -> None:
        self.id = context.key.node_id
        self.key = context.key
        self.network = context.network
        self.clock = context.clock
        self.entropy = context.entropy
        self.caller = context.caller
        self.log = context.log
        self.ports = ports
        self.settings = settings
        self.store = store
