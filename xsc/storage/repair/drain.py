"""Leaving: who of the peers leaves, and this node's own leave until all it held is elsewhere.

A node that leaves tells every peer, takes nothing new, and waits: owners move its
columns as they would repair lost ones (`repairer`), and then order their deletion. It
keeps these orders on the disk, counts what is still here, and says why. Nothing else
is kept: after a crash the count is made anew from the index.
Design: docs/design/storage-drain.md.

    storage/drain                       the own word, and where the drain began
    storage/leaver/<node>               the last signed word of a peer
    storage/released/<locate><record id>   a deletion order
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, TypeAlias

from xsc.base.clock import Clock
from xsc.base.encoding import Value
from xsc.base.errors import (
    NotAllowed,
    SpaceExhausted,
    StoreDamaged,
    XscError,
)
from xsc.base.fields import take_bytes, take_int, take_str
from xsc.base.ids import ID_BYTES, short
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.limits import (
    DRAIN_LOOK_MS,
    DRAIN_STUCK_LISTED,
    LEAVING_A_PEER_MAX,
    LEAVING_MS,
    STORAGE_QUESTION_TIMEOUT_MS,
    SWEEP_SLICE,
)
from xsc.base.log import Log
from xsc.base.merkle import Part
from xsc.base.peering import Caller, Handler
from xsc.base.tally import Tally
from xsc.identity.envelope import Count, Record, Signed, open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.storage.catalogue.heads import HEADS
from xsc.storage.object.erasure import Buffer
from xsc.storage.ports import Commit, Hosts
from xsc.storage.repair.departures import Leaving, Rest, proof_of
from xsc.storage.shardstore import bodies
from xsc.storage.shardstore.store import StorageNode
from xsc.storage.transfer.host_client import rest
from xsc.terms.deletion_order import DeletionOrder

LEAVING: Final = "storage.leaving"
STAYS: Final = "storage.stays"
OWN: Final = b"storage/drain"
LEAVERS: Final = b"storage/leaver/"
RELEASED: Final = b"storage/released/"
REASON_CHARS_MAX: Final = 200
COPIES_MAX: Final = 2**31

DrainPhase: TypeAlias = Literal["staying", "leaving", "done"]


class DrainState(Record):
    """The own word as it is kept."""

    KIND: ClassVar[str] = "drain_state"

    leaving: bool
    said_ms: Count
    begun_bytes: Count
    """What was held when it began."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """An object that is still here, and why."""

    locate: bytes
    customer: bytes
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Look:
    """What a count of all that is held came to."""

    left_objects: int = 0
    left_bytes: int = 0
    stuck_objects: int = 0
    stuck: tuple[Stuck, ...] = ()
    """Some of those that nobody is about to move."""
    only_here: tuple[bytes, ...] = ()
    """Peers whose directory lies at no other peer."""


@dataclass(frozen=True, slots=True)
class DrainStatus:
    """How far a drain is."""

    phase: DrainPhase
    since_ms: int
    total_bytes: int
    released_objects: int
    released_bytes: int
    told: int
    """Peers that know of it."""
    look: Look


class Drain:
    """See the module."""

    def __init__(
        self,
        *,
        key: KeyPair,
        network: bytes,
        clock: Clock,
        caller: Caller,
        hosts: Hosts,
        node: StorageNode,
        state: KeyValue,
        commit: Commit,
        log: Log,
        grace_ms: int,
    ) -> None:
        """Read what was kept.

        Raises:
            StoreDamaged: it cannot be read.
        """
        self._key = key
        self._own = key.node_id
        self._network = network
        self._clock = clock
        self._caller = caller
        self._hosts = hosts
        self._node = node
        self._state = state
        self._commit = commit
        self._log = log
        self._grace_ms = grace_ms
        self.on_change: Callable[[], None] = lambda: None
        """Called when a node, this one or a peer, says that it leaves or stays."""
        self.silent_ms: Callable[[bytes], int] = lambda _: 0
        """For how long a node has been silent."""
        self.copies: Callable[[bytes], int] = lambda _: 1
        """How many peers beside that one have this node's directory."""
        self._word: DrainState | None = None
        self._leavers: dict[bytes, Leaving] = {}
        self._words = Tally(LEAVING_A_PEER_MAX, LEAVING_MS)
        self._released: set[bytes] = set()
        """Objects of which something was released."""
        self._told: dict[bytes, int] = {}
        self._copies: dict[bytes, int] = {}
        self._stays: dict[tuple[bytes, bytes], str] = {}
        """By object and customer, why that customer cannot move it."""
        self._look: Look | None = None
        self._turn = asyncio.Lock()
        """Held while a word is said or an order is kept: an order is of one leave."""
        self._hearing = asyncio.Lock()
        self._looked = asyncio.Event()
        self._woken = asyncio.Event()
        try:
            self._read()
        except XscError as fault:
            raise StoreDamaged(f"what is kept about leaving is damaged: {fault.message}") from None
        self._leaving = self._all_leaving()

    def _read(self) -> None:
        raw = self._state.get(OWN)
        if raw is not None:
            self._word = DrainState.from_bytes(raw)
        for key, said in self._state.scan(LEAVERS, prefix_end(LEAVERS)):
            node = key.removeprefix(LEAVERS)
            signed = open_signed(said, Leaving, network=self._network, author=node)
            self._leavers[node] = signed.record
        for key, _ in self._state.scan(RELEASED, prefix_end(RELEASED)):
            self._released.add(key.removeprefix(RELEASED)[:ID_BYTES])

    # Who leaves

    @property
    def active(self) -> bool:
        """Whether this node leaves."""
        return self._word is not None and self._word.leaving

    def leaving(self) -> frozenset[bytes]:
        """Return the nodes that leave, this one included."""
        return self._leaving

    def _all_leaving(self) -> frozenset[bytes]:
        found = {node for node, said in self._leavers.items() if said.leaving}
        return frozenset(found | ({self._own} if self.active else set()))

    def _changed(self) -> None:
        self._leaving = self._all_leaving()
        self.wake()
        self.on_change()

    def wake(self) -> None:
        """Tell peers at once that may not know yet, and count anew."""
        self._woken.set()

    def check_room(self) -> None:
        """Return if this node takes shards.

        Raises:
            SpaceExhausted: it leaves.
        """
        if self.active:
            raise SpaceExhausted("this node is leaving and takes nothing new")

    # The own leave

    async def begin(self) -> None:
        """Begin to leave; once begun it goes on, also after a restart."""
        async with self._turn:
            if not self.active:
                await self._say(leaving=True)
                self._log.info("drain.begun", held_bytes=self._node.used_bytes)

    async def cancel(self) -> None:
        """Stay after all, and tell the peers, also such as heard something else from before.

        What has moved stays where it is.
        """
        async with self._turn:
            changes: list[Change] = [
                (key, None) for key, _ in self._state.scan(RELEASED, prefix_end(RELEASED))
            ]
            await self._say(leaving=False, changes=changes)
            self._released.clear()
            self._stays.clear()
            self._log.info("drain.cancelled")

    async def _say(self, *, leaving: bool, changes: Sequence[Change] = ()) -> None:
        before = -1 if self._word is None else self._word.said_ms
        word = DrainState(
            leaving=leaving,
            said_ms=max(self._clock.now_ms(), before + 1),
            begun_bytes=self._node.used_bytes,
        )
        await self._commit([(OWN, word.to_bytes()), *changes])
        self._word = word
        self._look = None
        self._looked.clear()
        self._changed()

    async def keep(self, order: Signed[DeletionOrder]) -> None:
        """Keep a customer's checked order to delete what it has here, for the proof."""
        async with self._turn:
            if not self.active:
                return
            key = RELEASED + order.record.locate + order.id
            await self._commit([(key, order.raw)])
            self._released.add(order.record.locate)
            self._stays.pop((order.record.locate, order.author), None)

    async def run(self) -> None:
        """Tell peers and count, until cancelled."""
        self.wake()
        while True:
            if not self.active and not self._untold():
                await self._woken.wait()
                self._woken.clear()
            begun_ms = self._clock.monotonic_ms()
            await self.tell()
            if self.active:
                await self.count()
            taken_ms = self._clock.monotonic_ms() - begun_ms
            await rest(self._clock, self._woken, max(DRAIN_LOOK_MS, 10 * taken_ms))

    def _untold(self) -> list[bytes]:
        """Return the peers that may not know the own word yet, or have no other directory copy."""
        word = self._word
        if word is None:
            return []
        return [
            peer
            for peer in self._hosts.peers()
            if self._told.get(peer) != word.said_ms
            or (word.leaving and not self._copies[peer] and self._state.get(HEADS + peer))
        ]

    async def tell(self) -> None:
        """Tell every peer that is up and does not know."""
        word = self._word
        if word is None:
            return
        said = Leaving(leaving=word.leaving, said_ms=word.said_ms)
        raw = sign(said, self._key, self._network).raw
        up = [peer for peer in self._untold() if self._hosts.is_up(peer)]
        await asyncio.gather(*(self._tell(peer, raw, word.said_ms) for peer in up))

    async def _tell(self, peer: bytes, raw: bytes, said_ms: int) -> None:
        try:
            reply = await self._caller.call(
                peer, LEAVING, {"said": raw}, timeout_ms=STORAGE_QUESTION_TIMEOUT_MS
            )
            self._copies[peer] = take_int(reply.header, "copies", most=COPIES_MAX)
        except XscError as fault:
            self._log.info("drain.not_told", peer=short(peer), reason=fault.message)
        else:
            self._told[peer] = said_ms

    # What is still here

    async def count(self) -> Look:
        """Go through all that is held."""
        left: dict[tuple[bytes, bytes], int] = {}
        recorded: set[tuple[bytes, bytes]] = set()
        after = b""
        while page := await self._node.entries(after, SWEEP_SLICE):
            for key, entry in page:
                locate, customer = key[1 : 1 + ID_BYTES], key[-ID_BYTES:]
                owned = (locate, customer)
                if key.startswith(bodies.RECORDS):
                    recorded.add(owned)
                left[owned] = left.get(owned, 0) + entry.held_bytes
            after = page[-1][0]
        stuck = [
            Stuck(*owned, size, reason)
            for owned, size in left.items()
            if (reason := self._reason(*owned, recorded=owned in recorded))
        ]
        stuck.sort(key=lambda item: (-item.size_bytes, item.locate))
        held = {key.removeprefix(HEADS) for key, _ in self._state.scan(HEADS, prefix_end(HEADS))}
        only_here = sorted(
            owner for owner in held if self._copies.get(owner, 1) == 0 and self._is_up(owner)
        )
        look = Look(
            left_objects=len({locate for locate, _ in left}),
            left_bytes=sum(left.values()),
            stuck_objects=len({item.locate for item in stuck}),
            stuck=tuple(stuck[:DRAIN_STUCK_LISTED]),
            only_here=tuple(only_here),
        )
        if self._look != look and _is_done(look):
            self._log.info("drain.done", objects=len(self._released))
        self._look = look
        self._looked.set()
        return look

    def _is_up(self, node: bytes) -> bool:
        return node == self._own or self._hosts.is_up(node)

    def _reason(self, locate: bytes, customer: bytes, *, recorded: bool) -> str:
        """Return why nobody is about to move something; empty where somebody should be."""
        if not recorded:
            return "it belongs to a put that has not ended"
        if (locate, customer) in self._stays:
            return self._stays[locate, customer]
        if self._is_up(customer):
            return ""
        if customer not in self._hosts.peers():
            return "its owner is no peer of this node any more"
        if self.silent_ms(customer) < 3 * self._grace_ms:
            return ""
        return "the node that stored it is away, and nobody else can release it"

    def _released_bytes(self, word: DrainState) -> int:
        """Return what was deleted since it began to leave: nothing new is taken meanwhile."""
        return max(0, word.begun_bytes - self._node.used_bytes)

    async def status(self, wait_ms: int = 0) -> DrainStatus:
        """Return how far the drain is.

        Args:
            wait_ms: wait for the next count for so long at most.
        """
        if self.active and (wait_ms or self._look is None):
            if wait_ms:
                self._looked.clear()
            wait = asyncio.ensure_future(self._looked.wait())
            sleep = asyncio.ensure_future(self._clock.sleep_ms(wait_ms or DRAIN_LOOK_MS))
            try:
                await asyncio.wait((wait, sleep), return_when=asyncio.FIRST_COMPLETED)
            finally:
                wait.cancel()
                sleep.cancel()
        word, look = self._word, self._look
        if word is None or not word.leaving:
            return DrainStatus("staying", 0, 0, 0, 0, 0, Look())
        done = look is not None and _is_done(look)
        if look is None:
            look = Look(left_bytes=self._node.used_bytes)
        return DrainStatus(
            phase="done" if done else "leaving",
            since_ms=word.said_ms,
            total_bytes=max(word.begun_bytes, look.left_bytes),
            released_objects=len(self._released),
            released_bytes=self._released_bytes(word),
            told=sum(self._told.get(peer) == word.said_ms for peer in self._hosts.peers()),
            look=look,
        )

    def proof(self) -> Iterator[bytes]:
        """Yield the proof of what has been released so far, piece by piece.

        Raises:
            NotAllowed: this node does not leave.
        """
        word = self._word
        if word is None or not word.leaving:
            raise NotAllowed("this node is not leaving", hint="`xsc node drain` begins it")
        look = self._look or Look(left_objects=1)
        return proof_of(
            (raw for _, raw in self._state.scan(RELEASED, prefix_end(RELEASED))),
            Rest(self._released_bytes(word), look.left_objects, self._clock.now_ms()),
            key=self._key,
            network=self._network,
        )

    # What peers say

    def handlers(self) -> dict[str, Handler]:
        """Return what answers peers, by method."""
        return {LEAVING: self._on_leaving, STAYS: self._on_stays}

    async def _on_leaving(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        raw = take_bytes(header, "said")
        said = open_signed(raw, Leaving, network=self._network, author=caller).record
        async with self._hearing:
            known = self._leavers.get(caller)
            if known is None or said.said_ms > known.said_ms:
                self._words.count(caller, self._clock.monotonic_ms(), "words about leaving")
                # Not entered before it is kept: where that fails it is said, and heard, again.
                await self._commit([(LEAVERS + caller, raw)])
                self._leavers[caller] = said
                self._log.info(
                    "drain.peer_leaves" if said.leaving else "drain.peer_stays", peer=short(caller)
                )
                self._changed()
        return {"copies": self.copies(caller)}, []

    async def _on_stays(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        locate = take_bytes(header, "locate", size=ID_BYTES)
        reason = take_str(header, "reason", most=REASON_CHARS_MAX)
        await self.take_stays(locate, caller, reason)
        return {}, []

    async def take_stays(self, locate: bytes, customer: bytes, reason: str) -> None:
        """Keep in memory why a customer cannot move its part; it says so again."""
        if self.active and await self._has(locate, customer):
            self._stays[locate, customer] = reason

    async def _has(self, locate: bytes, customer: bytes) -> bool:
        key = bodies.RECORDS + locate + customer
        return bool(await self._node.between(key, key + b"\0"))

    async def excuse(self, leaver: bytes, locate: bytes, reason: str) -> None:
        """Tell a node that leaves why an object of this node cannot be moved away from it."""
        text = reason[:REASON_CHARS_MAX]
        if leaver == self._own:
            await self.take_stays(locate, self._own, text)
            return
        try:
            await self._caller.call(
                leaver,
                STAYS,
                {"locate": locate, "reason": text},
                timeout_ms=STORAGE_QUESTION_TIMEOUT_MS,
            )
        except XscError as fault:
            self._log.info("drain.reason_not_told", peer=short(leaver), reason=fault.message)


def _is_done(look: Look) -> bool:
    return not (look.left_objects or look.only_here)
