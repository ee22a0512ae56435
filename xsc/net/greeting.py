"""Tells peers where this node is, and learns where they are.

A greeting (`peers.hello`) carries this node's signed address record and introductions
of other peers. The answer carries the record of the peer.
"""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import PeerSilent, StoreDamaged, XscError
from xsc.base.fields import take_bytes, take_int, take_list
from xsc.base.ids import short
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import (
    ADDRESSES_A_PEER_MAX,
    ADDRESSES_MS,
    INTRODUCED_A_PEER_MAX,
    PEER_TIMEOUT_MS,
    SEEK_INTERVAL_MS,
)
from xsc.base.merkle import Part
from xsc.base.peering import Handler
from xsc.base.tally import Tally
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.net.calls.request_batcher import Spawn
from xsc.net.calls.sender import RequestSender
from xsc.net.peers import circle
from xsc.net.peers.introductions import WHERE, Introductions
from xsc.net.peers.registry import AddressRecord, PeerRegistry
from xsc.net.peers.roster import Roster
from xsc.net.transport.addresses import is_loopback, split
from xsc.net.transport.port import Transport

HELLO = "peers.hello"
OWN = b"net/self"


class Greeter:
    """Greets peers, and keeps which of them are greeted and which are silent.

    Args:
        context: the node's values.
        registry, roster: the known peers.
        sender: sends the greetings.
        transport: names the addresses of this node.
        store: keeps the number of the last address record.
        spawn: runs a greeting in the background.
        name: what this node calls itself.
        advertise: addresses to tell others instead of the transport's own.
        accepts: whether friends of friends are taken as peers (`xsc.net.peers.circle`).
    """

    def __init__(
        self,
        context: Context,
        *,
        registry: PeerRegistry,
        roster: Roster,
        sender: RequestSender,
        transport: Transport,
        store: KeyValue,
        spawn: Spawn,
        name: str,
        advertise: Sequence[str],
        accepts: bool,
    ) -> None:
        self._context = context
        self._registry = registry
        self._roster = roster
        self._sender = sender
        self._transport = transport
        self._store = store
        self._spawn = spawn
        self.name = name
        self.advertise = tuple(advertise)
        self.introductions = Introductions(
            context,
            registry=registry,
            accepts=accepts,
            added=self._was_introduced,
            moved=self._greet_soon,
        )
        self._greeted: set[bytes] = set()
        self._greeting: set[bytes] = set()
        self._again: set[bytes] = set()
        """Of those being greeted, the peers to greet once more."""
        self._silent: set[bytes] = set()
        """Peers that did not answer the last call."""
        self._told: tuple[str, ...] = ()
        """The addresses that the peers were told last."""
        self._moves = Tally(ADDRESSES_A_PEER_MAX, ADDRESSES_MS)
        self._seq = 0
        roster.on_change(self._peer_changed)

    def handlers(self) -> dict[str, Handler]:
        """Return what answers `peers.hello` and `peers.where`."""
        return {HELLO: self._hello, WHERE: self.introductions.where}

    def begin(self) -> None:
        """Number the address record anew; `greet_all` may follow once requests are answered."""
        self._seq = self._next_seq()

    def greet_all(self) -> None:
        """Tell every known peer where this node is now."""
        self._told = self.addresses()
        for peer in self._roster.peers():
            self._greet_soon(peer)

    async def run(self) -> None:
        """Look for silent peers at others, and tell all when this node has moved; never returns."""
        while True:
            await self._context.clock.sleep_ms(SEEK_INTERVAL_MS)
            if self.addresses() != self._told:
                self.begin()
                self.greet_all()
            known = self._roster.peers()
            await self.introductions.seek(
                [peer for peer in known if peer in self._silent],
                [peer for peer in known if peer in self._greeted],
            )

    def _next_seq(self) -> int:
        """Return the number of the next address record: above all earlier ones."""
        raw = self._store.get(OWN)
        value = None if raw is None else decode(raw)
        if value is not None and (not isinstance(value, dict) or value.get("v") != 1):
            raise StoreDamaged("this node's own entry in the state database is of no known form")
        seq = max(self._context.clock.now_ms(), 0 if value is None else take_int(value, "seq") + 1)
        self._store.write([(OWN, encode({"v": 1, "seq": seq}))], sync=True)
        return seq

    def addresses(self) -> tuple[str, ...]:
        """Return where others are told to reach this node; on loopback only if it is there."""
        found = self.advertise or self._transport.addresses()
        if self._transport.fingerprint is None:
            return found
        return tuple(address for address in found if not is_loopback(split(address)[0]))

    def record(self) -> Signed[AddressRecord]:
        """Return this node's own address record, signed."""
        record = AddressRecord(
            name=self.name,
            addresses=self.addresses(),
            fingerprint=self._transport.fingerprint,
            introducible=self.introductions.accepts,
            seq=self._seq,
        )
        return sign(record, self._context.key, self._context.network)

    async def greet(self, peer: bytes) -> bool:
        """Tell a peer where this node is now; return whether it answered."""
        await self._say_hello(peer)
        return peer in self._greeted

    def _was_introduced(self, peer: bytes) -> None:
        self._roster.tell(peer, "added")
        self.introduce_all()

    def introduce_all(self) -> None:
        """Greet those anew that are to hear of the others."""
        for peer in self.introductions.to_tell():
            self._greet_soon(peer)

    def _greet_soon(self, peer: bytes) -> None:
        """Greet a peer, and once more where it is being greeted: with what is true by then."""
        self._greeted.add(peer)
        self._again.add(peer)
        if peer not in self._greeting:
            self._greeting.add(peer)
            self._spawn(self._greet(peer))

    async def _greet(self, peer: bytes) -> None:
        try:
            while peer in self._again:
                self._again.discard(peer)
                await self._say_hello(peer)
        finally:
            self._greeting.discard(peer)

    async def _say_hello(self, peer: bytes) -> None:
        """Tell a peer where this node and its friends are; silence is met by a later call."""
        self._greeted.add(peer)
        try:
            info = self._registry.info(peer)
            header: dict[str, Value] = {
                "record": self.record().raw,
                "members": self.introductions.members_for(info),
            }
            reply = await self._sender.ask(info, HELLO, header, (), PEER_TIMEOUT_MS)
            self._learn(peer, take_bytes(reply.header, "record"))
            self._silent.discard(peer)
        except XscError as fault:
            self._greeted.discard(peer)
            if isinstance(fault, PeerSilent):
                self._silent.add(peer)
            self._context.log.info("net.peer_not_greeted", peer=short(peer), code=fault.code)

    async def _hello(
        self,
        caller: bytes,
        header: dict[str, Value],
        parts: Sequence[Part],  # noqa: ARG002 (a hello has none)
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        self._learn(caller, take_bytes(header, "record"))
        self.introductions.take(caller, take_list(header, "members", most=INTRODUCED_A_PEER_MAX))
        return {"record": self.record().raw}, ()

    def _learn(self, peer: bytes, raw: bytes) -> None:
        """Take a peer's own record of where it is, if it is newer."""
        signed = open_signed(raw, AddressRecord, network=self._context.network, author=peer)
        before = self._registry.info(peer)
        moved = self._registry.moved(peer, signed.record, raw)
        if moved is not None:
            self.count_record(peer)
            # Not synced: a peer may say so as often as its quota allows, and says it again.
            self._registry.put(moved, sync=False)
            self._context.log.info("net.peer_moved", peer=short(peer))
            # Of an introduced one others hear with the next greeting: it brings none about.
            if moved.introducible and not before.introducible and circle.may_introduce(moved):
                self.introduce_all()

    def count_record(self, peer: bytes) -> None:
        """Count an address record that a peer sends.

        Raises:
            RateLimited: too many within a time.
        """
        self._moves.count(peer, self._context.clock.monotonic_ms(), "address records")

    def met(self, peer: bytes) -> None:
        """Take note that a peer got this node's address record by joining."""
        self._greeted.add(peer)

    def answered(self, peer: bytes) -> None:
        """Take note that a peer answered a call; greet it if it has to be."""
        self._silent.discard(peer)
        if peer not in self._greeted:
            self._greet_soon(peer)

    def silent(self, peer: bytes) -> None:
        """Take note that a peer did not answer a call."""
        self._greeted.discard(peer)
        self._silent.add(peer)

    def _peer_changed(self, peer: bytes, what: str) -> None:
        if what in {"removed", "blocked"}:
            self._greeted.discard(peer)
            self._silent.discard(peer)
        elif what == "confirmed":
            self.introduce_all()
