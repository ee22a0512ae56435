"""Calls for what was allocated ahead of use, and why."""

from __future__ import annotations

from xsc.api import market as api
from xsc.api.endpoint import Id, Nothing
from xsc.client.core import Core, Document, Download


class AllocationCalls:
    """The calls of one node."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def show(self) -> Document:
        """Return what was cleared: by this node, and by nodes whose states it follows."""
        return self.core.ask(api.SHOW, Nothing())

    def groups(self) -> Document:
        """Return the eleven groups of nodes."""
        return self.core.ask(api.GROUPS, Nothing())

    def consistent(self) -> Document:
        """Return the commitments that are known, and which of them are of one cut."""
        return self.core.ask(api.CONSISTENT, Nothing())

    def expected(self) -> Document:
        """Return what the needs of this node are granted."""
        return self.core.ask(api.EXPECTED, Nothing())

    def received(self) -> Document:
        """Return what this node has drawn of that."""
        return self.core.ask(api.RECEIVED, Nothing())

    def why(self, node_or_slot: str) -> Document:
        """Return why needs were granted what they were: by slot, need, clearing or node."""
        return self.core.ask(api.WHY, Id(id=node_or_slot))

    def clearings(self) -> Document:
        """Return the clearings of this node's slots."""
        return self.core.ask(api.CLEARINGS, Nothing())

    def clearing(self, clearing_id: str) -> Download:
        """Return a signed clearing record."""
        return self.core.download(api.CLEARING, Id(id=clearing_id))
