"""Calls for what was allocated ahead of use, and why."""

from __future__ import annotations

from urllib.parse import quote

from xsc.client.core import Core, Document, Download


class AllocationCalls:
    """The calls of one node."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def show(self) -> Document:
        """Return what was cleared: by this node, and by nodes whose states it follows."""
        return self.core.call("GET", "/v1/allocation")

    def groups(self) -> Document:
        """Return the eleven groups of nodes."""
        return self.core.call("GET", "/v1/allocation/groups")

    def expected(self) -> Document:
        """Return what the needs of this node are granted."""
        return self.core.call("GET", "/v1/allocation/expected")

    def received(self) -> Document:
        """Return what this node has drawn of that."""
        return self.core.call("GET", "/v1/allocation/received")

    def why(self, node_or_slot: str) -> Document:
        """Return why needs were granted what they were: by slot, need, clearing or node."""
        return self.core.call("GET", f"/v1/allocation/why/{quote(node_or_slot, safe='')}")

    def clearings(self) -> Document:
        """Return the clearings of this node's slots."""
        return self.core.call("GET", "/v1/market/clearings")

    def clearing(self, clearing_id: str) -> Download:
        """Return a signed clearing record."""
        return self.core.download(f"/v1/market/clearings/{quote(clearing_id, safe='')}", {})
