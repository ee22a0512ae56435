"""What nodes do for each other's probes: answer a ping, carry one, and tell of a miss.

A node that misses a peer asks others to carry a ping of its own. Only the target can sign the
pong, over the nonce of who asks: so a helper can hide that it answers, and can invent nothing.
Who is told of a miss probes by itself. A carried ping causes one call and a report one probe,
within bounds for each peer and for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from xsc.base import encoding, errors, fields, merkle, peering
from xsc.base.ids import ID_BYTES
from xsc.base.limits import NONCE_BYTES
from xsc.base.tally import Tally
from xsc.health.absence import helpers, told
from xsc.health.detector import AvailabilityTester
from xsc.health.messages import Ping, Pong, check_pong
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign

PING = "health.ping"
PROBE_FOR = "health.probe_for"
MISSED = "health.missed"

CARRIED_A_PEER_MAX = 12
"""Pings that are carried for one peer in an interval."""
CARRIED_MAX = 64
TOLD_A_PEER_MAX = 4
"""Probes in an interval because of what one peer tells."""
TOLD_MAX = 12
_ALL = b""


class Helping:
    """The peers' part in the probes of a node, and its part in theirs.

    Args:
        context: signs pings and pongs, and sends them.
        peers: who is known.
        tester: says who is up.
        domain_of: returns the failure domain of a peer.
        watch: probes a peer at once.
        interval_ms: from one round of probes to the next.
        timeout_ms: after which a probe is missed at the latest.
    """

    def __init__(
        self,
        context: Context,
        peers: peering.Peers,
        tester: AvailabilityTester,
        *,
        domain_of: Callable[[bytes], bytes],
        watch: Callable[[bytes], None],
        interval_ms: int,
        timeout_ms: int,
    ) -> None:
        self._context = context
        self._peers = peers
        self._tester = tester
        self._domain_of = domain_of
        self._watch = watch
        self._timeout_ms = timeout_ms
        self._turn = 0
        self._carried = Tally(CARRIED_A_PEER_MAX, interval_ms)
        self._carried_all = Tally(CARRIED_MAX, interval_ms)
        self._told = Tally(TOLD_A_PEER_MAX, interval_ms)
        self._told_all = Tally(TOLD_MAX, interval_ms)
        self._watched = Tally(1, interval_ms)
        """Peers that are probed once more in an interval, whoever gives the reason."""

    def _up(self, but: bytes) -> list[bytes]:
        return [each for each in self._peers.peers() if each != but and self._tester.is_up(each)]

    # What this node asks

    async def find(self, target: bytes, most: int) -> bool:
        """Ask up to so many others for a peer; return whether one brought its pong."""
        asked = helpers(
            self._domain_of(target),
            [(each, self._domain_of(each)) for each in self._up(target)],
            self._turn,
            most,
        )
        self._turn += len(asked)
        return any(await asyncio.gather(*(self._find_by(helper, target) for helper in asked)))

    async def _find_by(self, helper: bytes, target: bytes) -> bool:
        at, key, network = self._context, self._context.key, self._context.network
        ping = Ping(node=target, nonce=at.entropy.token(NONCE_BYTES), sent_ms=at.clock.now_ms())
        try:
            reply = await at.caller.call(
                helper,
                PROBE_FOR,
                {"v": 1, "ping": sign(ping, key, network).raw},
                # It waits for the target itself.
                timeout_ms=2 * self._timeout_ms,
            )
            raw = fields.take_bytes(reply.header, "pong")
            pong = open_signed(raw, Pong, network=network, author=target).record
            if (wrong := check_pong(pong, ping)) is not None:
                raise errors.RecordInvalid(wrong)
        except errors.XscError:
            return False
        return True

    async def tell(self, missed: bytes) -> None:
        """Tell some others that a peer missed a probe."""

        async def one(peer: bytes) -> None:
            try:
                await self._context.caller.call(
                    peer, MISSED, {"v": 1, "node": missed}, timeout_ms=self._timeout_ms
                )
            except errors.XscError:
                return  # It probes by itself, only later.

        await asyncio.gather(*map(one, told(self._context.key.node_id, self._up(missed))))

    # What peers ask

    def handlers(self) -> dict[str, peering.Handler]:
        """Return the methods that peers may call."""
        return {PING: self._answer, PROBE_FOR: self._carry, MISSED: self._hear}

    async def _answer(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        signed = open_signed(fields.take_bytes(header, "ping"), Ping, network=self._context.network)
        ping, key = signed.record, self._context.key
        if signed.author != caller and not self._peers.is_peer(signed.author):
            raise errors.SignatureInvalid("the ping is by nobody that is known here")
        if ping.node != key.node_id:
            raise errors.RecordInvalid("the ping is for another node")
        state = self._tester.state(signed.author)
        now_ms = self._context.clock.monotonic_ms()
        if (
            signed.author == caller
            and state == "down"
            and not self._watched.wait_ms(caller, now_ms)
        ):
            # It is back, or reaches this node alone.
            self._watched.note(caller, now_ms)
            self._watch(caller)
        pong = Pong(
            node=key.node_id,
            nonce=ping.nonce,
            now_ms=self._context.clock.now_ms(),
            reaches={"up": True, "down": False}.get(state),
        )
        return {"v": 1, "pong": sign(pong, key, self._context.network).raw}, ()

    async def _carry(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        raw, network = fields.take_bytes(header, "ping"), self._context.network
        ping = open_signed(raw, Ping, network=network, author=caller).record
        if ping.node == caller or not self._peers.is_peer(ping.node):
            raise errors.PeerUnknown("the ping is for nobody that is known here")
        now_ms = self._context.clock.monotonic_ms()
        self._carried.count(caller, now_ms, "pings carried")
        self._carried_all.count(_ALL, now_ms, "pings carried for all")
        timeout_ms = self._tester.timeout_ms(ping.node, self._timeout_ms)
        try:
            reply = await self._context.caller.call(
                ping.node, PING, {"v": 1, "ping": raw}, timeout_ms=timeout_ms
            )
            pong = fields.take_bytes(reply.header, "pong")
            # Nothing is passed on that the target did not sign.
            open_signed(pong, Pong, network=network, author=ping.node)
        except errors.XscError:
            # What is wrong with its answer is not said as if this node had refused the caller.
            raise errors.PeerSilent("the target gave no pong") from None
        return {"v": 1, "pong": pong}, ()

    async def _hear(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        node = fields.take_bytes(header, "node", size=ID_BYTES)
        now_ms = self._context.clock.monotonic_ms()
        if self._tester.state(node) == "up" and not self._watched.wait_ms(node, now_ms):
            self._told.count(caller, now_ms, "misses told")
            self._told_all.count(_ALL, now_ms, "misses told by all")
            self._watched.note(node, now_ms)
            self._watch(node)
        return {"v": 1}, ()
