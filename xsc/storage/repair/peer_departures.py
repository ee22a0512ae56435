"""Keeps the departure notices of peers: which of them leave the network.

storage/leaver/<node>               the latest signed notice of a peer
"""

from __future__ import annotations

import asyncio
from typing import Final

from xsc.base.ids import short
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed
from xsc.storage.ports import Commit
from xsc.storage.repair.departures import DepartureNotice

LEAVERS: Final = b"storage/leaver/"


class PeerDepartures:
    """Verifies notices and keeps the latest one of each peer."""

    def __init__(self, context: Context, state: KeyValue, commit: Commit) -> None:
        """Read what was kept.

        Raises:
            RecordInvalid, SignatureInvalid: a kept notice is damaged.
        """
        self._context = context
        self._commit = commit
        self._notices: dict[bytes, DepartureNotice] = {}
        self._hearing = asyncio.Lock()
        for key, raw in state.scan(LEAVERS, prefix_end(LEAVERS)):
            node = key.removeprefix(LEAVERS)
            self._notices[node] = self._opened(raw, node)

    def _opened(self, raw: bytes, node: bytes) -> DepartureNotice:
        return open_signed(raw, DepartureNotice, network=self._context.network, author=node).record

    def leaving(self) -> frozenset[bytes]:
        """Return the peers that leave."""
        return frozenset(node for node, notice in self._notices.items() if notice.leaving)

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
            self._context.log.info(event, peer=short(node))
            return True
