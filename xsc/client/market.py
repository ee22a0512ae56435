"""Calls for what is offered, needed and allocated ahead of use, and why."""

from __future__ import annotations

import re
from typing import cast

from xsc.api import market as api
from xsc.api.endpoint import Id, Nothing
from xsc.base.errors import ArgumentInvalid
from xsc.client.core import Core, Document, Download


def slot_id_of(text: str) -> str:
    """Return the id of a slot or need, or the beginning of one.

    Raises:
        ArgumentInvalid: it is none.
    """
    if not re.fullmatch("[a-z2-7]{1,26}", text):
        hint = "`xsc market slots` lists them"
        raise ArgumentInvalid(f"'{text}' is no id of an offer or need", hint=hint)
    return text


class MarketCalls:
    """The calls of one node."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def declare(self, role: str, kind: str, stated: Document) -> Document:
        """Make an offer or a need; return its `id`."""
        return self.core.ask(
            api.DECLARE,
            api.Declare(role=cast(api.Role, role), kind=cast(api.Kind, kind), **stated),
        )

    def edit(self, slot_id: str, stated: Document) -> Document:
        """Change what is stated of an own offer or need; return what `declare` does."""
        return self.core.ask(api.EDIT, api.Edit(id=slot_id_of(slot_id), **stated))

    def withdraw(self, slot_id: str) -> Document:
        """Withdraw an own offer or need; return its `id`."""
        return self.core.ask(api.WITHDRAW, Id(id=slot_id_of(slot_id)))

    def slots(self) -> Document:
        """Return the offers and needs of this node, and those of peers that are known here."""
        return self.core.ask(api.SLOTS, Nothing())

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
