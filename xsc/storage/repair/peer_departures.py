"""Knows which nodes leave the network, and keeps the departure notices of peers.

storage/leaver/<node>               the latest signed notice of a peer
"""

from __future__ import annotations

import asyncio
from typing import Final

from xsc.base import ids, keyvalue
from xsc.base.errors import SpaceExhausted, StoreDamaged, XscError
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed
from xsc.storage.ports import Commit
from xsc.storage.repair.departures import DepartureNotice

LEAVERS: Final = b"storage/leaver/"


class Departures:
    """Verifies notices of peers and keeps the latest of each; `Drain` says if this node leaves."""

    def __init__(self, context: Context, state: keyvalue.KeyValue, commit: Commit) -> None:
        """Read what was kept.

        Raises:
            StoreDamaged: a kept notice is damaged.
        """
        self.here = False
        """Whether this node leaves."""
        self._context = context
        self._commit = commit
        self._notices: dict[bytes, DepartureNotice] = {}
        self._hearing = asyncio.Lock()
        for key, raw in state.scan(LEAVERS, keyvalue.prefix_end(LEAVERS)):
            node = key.removeprefix(LEAVERS)
            try:
                self._notices[node] = self._opened(raw, node)
            except XscError as fault:
                raise StoreDamaged(f"a notice of leaving is damaged: {fault.message}") from None

    def _opened(self, raw: bytes, node: bytes) -> DepartureNotice:
        return open_signed(raw, DepartureNotice, network=self._context.network, author=node).record

    def leaving(self) -> frozenset[bytes]:
        """Return the nodes that leave, this one included."""
        peers = frozenset(node for node, notice in self._notices.items() if notice.leaving)
        return peers | {self._context.key.node_id} if self.here else peers

    def check_room(self) -> None:
        """Return if this node takes shards.

        Raises:
            SpaceExhausted: it leaves.
        """
        if self.here:
            raise SpaceExhausted(
                "this node is leaving and takes nothing new", hint="`xsc node drain --cancel` stays"
            )

    async def hear(self, node: bytes, raw: bytes) -> bool:
        """Keep a notice of a peer; return False if a later one is known.

        Raises:
            RecordInvalid, SignatureInvalid: it is no notice of that peer.
        """
        notice = self._opened(raw, node)
        async with self._hearing:
            known = self._notices.get(node)
            if known is not None and notice.said_ms <= known.said_ms:
                return False
            # Entered only once it is kept: a notice that cannot be kept is sent again.
            await self._commit([(LEAVERS + node, raw)])
            self._notices[node] = notice
            event = "drain.peer_leaves" if notice.leaving else "drain.peer_stays"
            self._context.log.info(event, peer=ids.short(node))
            return True
