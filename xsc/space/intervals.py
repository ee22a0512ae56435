"""Asks an inviter for an interval, and grants joiners theirs. docs/design/space.md, C6 and C9."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from xsc.base import errors, fields, ids, peering, tally
from xsc.identity.context import Context
from xsc.space import limits
from xsc.space.asking import body_of
from xsc.space.store import SpaceStore


class Intervals:
    """The intervals that one node asks for and gives.

    Args:
        store: keeps each grant before it is sent.
        context: the node's values.
        peers: returns the known peers.
        is_direct: says whether this node knows a peer directly.
    """

    def __init__(
        self,
        store: SpaceStore,
        context: Context,
        *,
        peers: Callable[[], Sequence[bytes]],
        is_direct: Callable[[bytes], bool],
    ) -> None:
        self._store = store
        self._caller = context.caller
        self._clock = context.clock
        self._log = context.log
        self._peers = peers
        self._is_direct = is_direct
        self._asking = asyncio.Lock()
        self._asked = tally.Tally(limits.GRANTS_A_PEER_MAX, limits.GRANTS_MS)

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what peers may ask."""
        return {"space.grant": self._answer_grant}

    async def _answer_grant(
        self, caller: bytes, header: peering.Header, _parts: peering.Parts
    ) -> peering.Answered:
        anew = fields.take_bool(header, "anew")
        if not self._is_direct(caller):
            raise errors.NotAllowed("an interval is granted to peers that this node knows directly")
        self._asked.count(caller, self._clock.monotonic_ms(), "intervals")
        return {}, [await self._store.grant(caller, anew=anew)]

    def granters(self) -> list[bytes]:
        """Return who is to grant this node an interval: who invited it; anybody for one it left."""
        if self._store.has_left:
            return [peer for peer in self._peers() if self._is_direct(peer)]
        inviter = self._store.inviter
        return [] if inviter is None else [inviter]

    async def get(self) -> None:
        """Ask those who are to grant an interval until there is one, at most ASKED_MAX times."""
        async with self._asking:  # they answer a few times a day
            for _ in range(limits.ASKED_MAX):
                asked = self.granters()
                await self.ask(asked)
                if not asked or self._store.clock is not None:
                    return
                await self._clock.sleep_ms(limits.ASK_AGAIN_MS)

    async def ask(self, peers: Iterable[bytes]) -> None:
        """Ask peers in turn until one grants an interval; a node that has one asks nobody."""
        for peer in peers:
            if self._store.clock is not None:
                return
            asked: peering.Header = {"anew": self._store.has_left}
            try:
                reply = await self._caller.call(peer, "space.grant", asked)
                await self._store.join(bytes(body_of(reply.parts)))
            except errors.XscError as fault:
                # Another peer is asked, or the node founds a domain.
                self._log.info("space.interval_refused", peer=ids.short(peer), code=fault.code)
