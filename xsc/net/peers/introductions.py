"""Introductions and lost addresses: what peers say of each other, and of nobody else.

A greeting carries, for a direct peer, the signed `member` and address records of whom
this node introduces to it, or passes on; a peer that is silent is sought at those that
answer. The rules are in `xsc.net.peers.circle`. Everything taken here is signed by the node that
it is about, but for one word: that its origin knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from xsc.base.encoding import Value
from xsc.base.errors import FrameInvalid, RecordInvalid, XscError
from xsc.base.fields import take_bytes, take_list
from xsc.base.ids import ID_BYTES, short
from xsc.base.limits import (
    ADDRESSES_MS,
    INTRODUCTIONS_A_PEER_MAX,
    PEER_CONNECT_TIMEOUT_MS,
    PEERS_MAX,
    SEEK_FRIENDS,
    SOUGHT_MAX,
)
from xsc.base.merkle import Part
from xsc.base.tally import Tally
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, read_claimed, sign
from xsc.net.peers import circle
from xsc.net.peers.circle import Member
from xsc.net.peers.registry import AddressRecord, PeerInfo, PeerRegistry

WHERE = "peers.where"


@dataclass(frozen=True, slots=True)
class _Newcomer:
    member: Signed[Member]
    address: Signed[AddressRecord]


class Introductions:
    """What this node tells its peers of each other, and hears.

    Args:
        context: the node's values.
        registry: of peers; what is learnt is kept there.
        accepts: whether introductions are taken and made.
        added: told of each peer that was introduced.
        moved: told of each peer that was found at another address.
    """

    def __init__(
        self,
        context: Context,
        *,
        registry: PeerRegistry,
        accepts: bool,
        added: Callable[[bytes], None],
        moved: Callable[[bytes], None],
    ) -> None:
        self._context = context
        # A member record names no recipient: each is signed once for all greetings.
        self._signed = lru_cache(maxsize=PEERS_MAX)(
            lambda member: sign(member, context.key, context.network).raw
        )
        self._registry = registry
        self.accepts = accepts
        self._added = added
        self._moved = moved
        self._heard = Tally(INTRODUCTIONS_A_PEER_MAX, ADDRESSES_MS)
        self._turn = 0

    # Introductions

    def to_tell(self) -> list[bytes]:
        """Return the peers that introductions are for."""
        if not self.accepts:
            return []
        return [
            info.node_id
            for info in self._registry.all()
            if circle.may_introduce(info) and info.introducible
        ]

    def members_for(self, peer: PeerInfo) -> list[Value]:
        """Return what a greeting tells a peer of the others."""
        if not self.accepts:
            return []
        return [
            {"member": self._signed(member) if member else info.member, "record": info.record}
            for info, member in circle.members_for(peer, self._registry.all())
        ]

    def take(self, introducer: bytes, members: list[Value]) -> None:
        """Take whom a peer introduces, as far as the rules allow; the others are left out.

        Raises:
            RateLimited: too many greetings with introductions within a time.
            PeerError: a record is malformed, or is not signed by whom it must be.
        """
        if not members:
            return
        self._heard.count(introducer, self._context.clock.monotonic_ms(), "introductions")
        if not self.accepts or not circle.may_introduce(self._registry.info(introducer)):
            return
        found = {
            newcomer.member.record.node: newcomer
            for newcomer in map(self._newcomer, members)
            if newcomer is not None
        }
        known = self._registry.all()
        for node, newcomer in found.items():
            place = circle.place_for(newcomer.member.author, known)
            if place is None:
                continue
            met = self._registry.met(
                node,
                newcomer.address.record,
                name=None,
                now_ms=self._context.clock.now_ms(),
                signed=newcomer.address.raw,
            )
            came = {
                "introducer": place.introducer,
                "hops": place.hops,
                "member": newcomer.member.raw,
            }
            info = met.model_copy(update=came)
            self._registry.put(info)
            # Whom it signed for may follow in the same greeting.
            known.append(info)
            self._context.log.info(
                "net.peer_introduced", peer=short(node), by=short(place.introducer)
            )
            self._added(node)

    def _newcomer(self, item: Value) -> _Newcomer | None:
        """Return what an introduction says; None of who is known or was removed."""
        if not isinstance(item, dict):
            raise FrameInvalid("an introduction is a map of two records")
        raw, record = take_bytes(item, "member"), take_bytes(item, "record")
        node = read_claimed(raw, Member, network=self._context.network).record.node
        known = node == self._context.key.node_id or self._registry.get(node) is not None
        if known or self._registry.was_removed(node):
            return None
        member = open_signed(raw, Member, network=self._context.network)
        address = open_signed(record, AddressRecord, network=self._context.network, author=node)
        if not address.record.introducible:
            raise RecordInvalid("who is introduced has not said that it may be")
        return _Newcomer(member, address)

    # Addresses

    async def where(
        self,
        caller: bytes,  # noqa: ARG002 (whoever may ask is a known peer)
        header: dict[str, Value],
        parts: Sequence[Part],  # noqa: ARG002 (a question has none)
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Answer where peers are that are known here, in their own signed words."""
        records: list[Value] = []
        for node in take_list(header, "peers", most=SOUGHT_MAX):
            if not isinstance(node, bytes) or len(node) != ID_BYTES:
                raise FrameInvalid("a peer that is sought is a node id")
            info = self._registry.get(node)
            if info is not None and info.record and not info.blocked:
                records.append(info.record)
        return {"records": records}, ()

    async def seek(self, silent: Sequence[bytes], answering: Sequence[bytes]) -> None:
        """Ask some peers that answer where those are that do not; others the next time."""
        if not silent or not answering:
            return
        lost = circle.in_turn(silent, self._turn, SOUGHT_MAX)
        friends = circle.in_turn(answering, self._turn, SEEK_FRIENDS)
        self._turn += 1
        for friend in friends:
            try:
                reply = await self._context.caller.call(
                    friend, WHERE, {"peers": [*lost]}, timeout_ms=PEER_CONNECT_TIMEOUT_MS
                )
                for raw in take_list(reply.header, "records", most=SOUGHT_MAX):
                    self._found(raw, lost)
            except XscError as fault:
                self._context.log.info(
                    "net.peers_not_sought", friend=short(friend), code=fault.code
                )

    def _found(self, raw: Value, lost: Sequence[bytes]) -> None:
        if not isinstance(raw, bytes):
            raise RecordInvalid("an address record is bytes")
        signed = open_signed(raw, AddressRecord, network=self._context.network)
        if signed.author not in lost or self._registry.get(signed.author) is None:
            return
        found = self._registry.moved(signed.author, signed.record, raw)
        if found is not None:
            self._registry.put(found, sync=False)
            self._context.log.info("net.peer_found", peer=short(signed.author))
            self._moved(signed.author)
