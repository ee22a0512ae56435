"""Asks an inviter for an interval, and grants joiners theirs. docs/design/space.md, C6 and C9."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from xsc.base.clock import Clock
from xsc.base.encoding import Value
from xsc.base.errors import NotAllowed, XscError
from xsc.base.fields import take_bool
from xsc.base.ids import short
from xsc.base.log import Log
from xsc.base.merkle import Part
from xsc.base.peering import Answered, Caller, Handler
from xsc.base.tally import Tally
from xsc.space.limits import ASK_AGAIN_MS, ASKED_MAX, GRANTS_A_PEER_MAX, GRANTS_MS
from xsc.space.store import SpaceStore
from xsc.space.sync import body_of


class Intervals:
    """The intervals that one node asks for and gives.

    Args:
        store: keeps each grant before it is sent.
        caller: reaches the peers.
        clock: the node's.
        answers_for: says whether this node knows a peer directly.
        log: told of peers that grant nothing.
    """

    def __init__(
        self,
        store: SpaceStore,
        caller: Caller,
        clock: Clock,
        *,
        answers_for: Callable[[bytes], bool],
        log: Log,
    ) -> None:
        self._store = store
        self._caller = caller
        self._clock = clock
        self._log = log
        self._answers_for = answers_for
        self._asked = Tally(GRANTS_A_PEER_MAX, GRANTS_MS)

    def handlers(self) -> dict[str, Handler]:
        """Return what peers may ask."""
        return {"space.grant": self._answer_grant}

    async def _answer_grant(
        self, caller: bytes, header: dict[str, Value], parts: Sequence[Part]
    ) -> Answered:
        del parts
        anew = take_bool(header, "anew")
        if not self._answers_for(caller):
            raise NotAllowed("an interval is granted to peers that this node knows directly")
        self._asked.count(caller, self._clock.monotonic_ms(), "intervals")
        return {}, [await self._store.grant(caller, anew=anew)]

    async def run(self, peers: Callable[[], Iterable[bytes]]) -> None:
        """Ask peers until one has granted an interval, at most ASKED_MAX times."""
        for _ in range(ASKED_MAX):
            asked = [*peers()]
            await self.ask(asked)
            if not asked or self._store.clock is not None:
                return
            await self._clock.sleep_ms(ASK_AGAIN_MS)

    async def ask(self, peers: Iterable[bytes]) -> None:
        """Ask peers in turn until one grants an interval; a node that has one asks nobody."""
        for peer in peers:
            if self._store.clock is not None:
                return
            asked: dict[str, Value] = {"anew": self._store.has_left}
            try:
                reply = await self._caller.call(peer, "space.grant", asked)
                await self._store.join(bytes(body_of(reply.parts)))
            except XscError as fault:
                # Another peer is asked, or the node founds a domain.
                self._log.info("space.interval_refused", peer=short(peer), code=fault.code)
