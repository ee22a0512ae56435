"""Drain: this node leaves the network, and waits until all that it holds is stored elsewhere.

A node that leaves tells every peer and takes nothing new. Customers move their
columns away as they would repair lost ones (`Repairer`), and then order the deletion.
The node keeps these orders on the disk, counts what is still here, and says why.
After a crash the count is made again from the index.
Design: docs/design/storage-drain.md.

    storage/drain                       the own notice, and where the drain began
    storage/released/<locate><record id>   a deletion order
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from xsc.base import clock, encoding, fields, ids, limits, merkle, peering
from xsc.base.errors import NotAllowed, StoreDamaged, XscError
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.identity.context import Context
from xsc.identity.envelope import Count, Record, Signed, sign
from xsc.storage.catalogue.heads import HEADS
from xsc.storage.ports import Commit, Hosts
from xsc.storage.repair import node_watch, peer_departures
from xsc.storage.repair.departures import DepartureNotice, ProofSummary, stuck_reason, write_proof
from xsc.storage.shardstore import bodies, store
from xsc.terms.storage_receipt import DeletionOrder

DRAIN_LOOK_MS = 2_000
"""How often a node that leaves counts what it still holds; longer where counting takes long."""
DRAIN_STUCK_LISTED = 100
"""Objects of which a node that leaves says one by one why they stay."""

LEAVING: Final = "storage.leaving"
STAYS: Final = "storage.stays"
OWN: Final = b"storage/drain"
RELEASED: Final = b"storage/released/"
REASON_CHARS_MAX: Final = 200
COPIES_MAX: Final = 2**31

DrainPhase: TypeAlias = Literal["staying", "leaving", "done"]


class DrainState(Record):
    """The own notice as the state database has it."""

    leaving: bool
    said_ms: Count
    begun_bytes: Count
    """What was held when it began."""


@dataclass(frozen=True, slots=True)
class StuckObject:
    """An object that is still here, and why."""

    locate: bytes
    customer: bytes
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Remaining:
    """What this node still holds."""

    left_objects: int = 0
    left_bytes: int = 0
    stuck_objects: int = 0
    stuck: tuple[StuckObject, ...] = ()
    """Some of the objects that no customer is about to move."""
    only_here: tuple[bytes, ...] = ()
    """Peers whose directory no other peer has."""


@dataclass(frozen=True, slots=True)
class DrainStatus:
    """The progress of a drain."""

    phase: DrainPhase
    since_ms: int
    total_bytes: int
    released_objects: int
    released_bytes: int
    told: int
    """Peers that know that this node leaves."""
    remaining: Remaining


class Drain:
    """The own drain."""

    def __init__(
        self,
        context: Context,
        *,
        hosts: Hosts,
        node: store.StorageNode,
        state: KeyValue,
        commit: Commit,
        departures: peer_departures.Departures,
        watch: node_watch.NodeWatch,
        grace_ms: int,
    ) -> None:
        """Read what was kept.

        Raises:
            StoreDamaged: it cannot be read.
        """
        self._context = context
        self._own = context.key.node_id
        self._hosts = hosts
        self._node = node
        self._state = state
        self._commit = commit
        self._departures = departures
        self.leaving = departures.leaving
        self._watch = watch
        self._grace_ms = grace_ms
        self.on_change: Callable[[], None] = lambda: None
        """Called when a node, this one or a peer, says that it leaves or stays."""
        self.copies: Callable[[bytes], int] = lambda _: 1
        """How many peers beside that one have this node's directory."""
        self._notice: DrainState | None = None
        self._released: set[bytes] = set()
        """Objects of which something was released."""
        self._told: dict[bytes, int] = {}
        """By peer: the time of the notice that it knows."""
        self._copies: dict[bytes, int] = {}
        """By peer: how many other nodes have its directory."""
        self._stays: dict[tuple[bytes, bytes], str] = {}
        """By object and customer, why that customer cannot move it."""
        self._remaining: Remaining | None = None
        self._turn = asyncio.Lock()
        """Held while a notice or an order is written: an order belongs to one drain."""
        self._counted = asyncio.Event()
        self._woken = asyncio.Event()
        try:
            raw = self._state.get(OWN)
            if raw is not None:
                self._notice = DrainState.from_bytes(raw)
        except XscError as fault:
            raise StoreDamaged(f"the state of the drain is damaged: {fault.message}") from None
        for key, _ in self._state.scan(RELEASED, prefix_end(RELEASED)):
            self._released.add(key.removeprefix(RELEASED)[: ids.ID_BYTES])
        self._changed()

    # Which nodes leave

    @property
    def active(self) -> bool:
        """Whether this node leaves."""
        return self._notice is not None and self._notice.leaving

    def _changed(self) -> None:
        self._departures.here = self.active
        self.wake()
        self.on_change()

    def wake(self) -> None:
        """Tell peers at once that may not know yet, and count again."""
        self._woken.set()

    # The own leave

    async def begin(self) -> None:
        """Begin to leave; the drain goes on after a restart."""
        async with self._turn:
            if not self.active:
                await self._say(leaving=True)
                self._context.log.info("drain.begun", held_bytes=self._node.used_bytes)

    async def cancel(self) -> None:
        """Stay after all, and tell the peers. What has moved stays where it is."""
        async with self._turn:
            changes: list[Change] = [
                (key, None) for key, _ in self._state.scan(RELEASED, prefix_end(RELEASED))
            ]
            await self._say(leaving=False, changes=changes)
            self._released.clear()
            self._stays.clear()
            self._context.log.info("drain.cancelled")

    async def _say(self, *, leaving: bool, changes: Sequence[Change] = ()) -> None:
        before = -1 if self._notice is None else self._notice.said_ms
        notice = DrainState(
            leaving=leaving,
            said_ms=max(self._context.clock.now_ms(), before + 1),
            begun_bytes=self._node.used_bytes,
        )
        await self._commit([(OWN, notice.to_bytes()), *changes])
        self._notice = notice
        self._remaining = None
        self._counted.clear()
        self._changed()

    async def keep(self, order: Signed[DeletionOrder]) -> None:
        """Keep a verified deletion order of a customer for the proof, if this node leaves."""
        async with self._turn:
            if not self.active or order.author == self._own:
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
            begun_ms = self._context.clock.monotonic_ms()
            await self.tell()
            if self.active:
                await self.count()
            taken_ms = self._context.clock.monotonic_ms() - begun_ms
            await clock.rest(self._context.clock, self._woken, max(DRAIN_LOOK_MS, 10 * taken_ms))

    def _untold(self) -> list[bytes]:
        """Return the peers that may not know the notice yet, or whose directory is only here."""
        notice = self._notice
        if notice is None:
            return []
        return [
            peer
            for peer in self._hosts.peers()
            if self._told.get(peer) != notice.said_ms
            or (notice.leaving and not self._copies[peer] and self._state.get(HEADS + peer))
        ]

    async def tell(self) -> None:
        """Send the notice to every peer that is up and does not know it."""
        notice = self._notice
        if notice is None:
            return
        said = DepartureNotice(leaving=notice.leaving, said_ms=notice.said_ms)
        raw = sign(said, self._context.key, self._context.network).raw
        up = [peer for peer in self._untold() if self._hosts.is_up(peer)]
        await asyncio.gather(*(self._tell(peer, raw, notice.said_ms) for peer in up))

    async def _tell(self, peer: bytes, raw: bytes, said_ms: int) -> None:
        try:
            reply = await self._context.caller.call(
                peer, LEAVING, {"said": raw}, timeout_ms=limits.STORAGE_QUESTION_TIMEOUT_MS
            )
            self._copies[peer] = fields.take_int(reply.header, "copies", most=COPIES_MAX)
        except XscError as fault:
            self._context.log.info("drain.not_told", peer=ids.short(peer), reason=fault.message)
        else:
            self._told[peer] = said_ms

    # What is still here

    async def count(self) -> Remaining:
        """Count what this node still holds, from its index."""
        left: dict[tuple[bytes, bytes], int] = {}
        recorded: set[tuple[bytes, bytes]] = set()
        after = b""
        while page := await self._node.entries(after, limits.SWEEP_SLICE):
            for key, entry in page:
                locate, customer = key[1 : 1 + ids.ID_BYTES], key[-ids.ID_BYTES :]
                owned = (locate, customer)
                if key.startswith(bodies.RECORDS):
                    recorded.add(owned)
                left[owned] = left.get(owned, 0) + entry.held_bytes
            after = page[-1][0]
        stuck = [
            StuckObject(*owned, size, reason)
            for owned, size in left.items()
            if (reason := self._stuck_reason(*owned, recorded=owned in recorded))
        ]
        stuck.sort(key=lambda item: (-item.size_bytes, item.locate))
        held = {key.removeprefix(HEADS) for key, _ in self._state.scan(HEADS, prefix_end(HEADS))}
        only_here = sorted(
            owner for owner in held if self._copies.get(owner, 1) == 0 and self._hosts.is_up(owner)
        )
        remaining = Remaining(
            left_objects=len({locate for locate, _ in left}),
            left_bytes=sum(left.values()),
            stuck_objects=len({item.locate for item in stuck}),
            stuck=tuple(stuck[:DRAIN_STUCK_LISTED]),
            only_here=tuple(only_here),
        )
        if self._remaining != remaining and _is_done(remaining):
            self._context.log.info("drain.done", objects=len(self._released))
        self._remaining = remaining
        self._counted.set()
        return remaining

    def _stuck_reason(self, locate: bytes, customer: bytes, *, recorded: bool) -> str:
        """Return why no customer is about to move an object; empty if one should be."""
        is_peer = customer in self._hosts.peers()
        return stuck_reason(
            recorded=recorded,
            customer_said=self._stays.get((locate, customer)),
            is_up=self._hosts.is_up(customer),
            is_peer=is_peer,
            silent_ms=self._watch.silent_ms(customer) if is_peer else 0,
            grace_ms=self._grace_ms,
        )

    def _released_bytes(self, notice: DrainState) -> int:
        """Return what was deleted since the drain began. Nothing is stored meanwhile."""
        return max(0, notice.begun_bytes - self._node.used_bytes)

    async def status(self, wait_ms: int = 0) -> DrainStatus:
        """Return the progress of the drain.

        Args:
            wait_ms: wait at most that long for the next count.
        """
        if self.active and (wait_ms or self._remaining is None):
            if wait_ms:
                self._counted.clear()
            await clock.event_within(self._context.clock, self._counted, wait_ms or DRAIN_LOOK_MS)
        notice, remaining = self._notice, self._remaining
        if notice is None or not notice.leaving:
            return DrainStatus("staying", 0, 0, 0, 0, 0, Remaining())
        done = remaining is not None and _is_done(remaining)
        if remaining is None:
            remaining = Remaining(left_bytes=self._node.used_bytes)
        return DrainStatus(
            phase="done" if done else "leaving",
            since_ms=notice.said_ms,
            total_bytes=max(notice.begun_bytes, remaining.left_bytes),
            released_objects=len(self._released),
            released_bytes=self._released_bytes(notice),
            told=sum(self._told.get(peer) == notice.said_ms for peer in self._hosts.peers()),
            remaining=remaining,
        )

    def proof(self) -> Iterator[bytes]:
        """Return the pieces of the proof of what was released so far.

        Raises:
            NotAllowed: this node does not leave.
        """
        notice = self._notice
        if notice is None or not notice.leaving:
            raise NotAllowed("this node is not leaving", hint="`xsc node drain` begins it")
        remaining = self._remaining or Remaining(left_objects=1)
        return write_proof(
            (raw for _, raw in self._state.scan(RELEASED, prefix_end(RELEASED))),
            ProofSummary(
                self._released_bytes(notice), remaining.left_objects, self._context.clock.now_ms()
            ),
            key=self._context.key,
            network=self._context.network,
        )

    # What peers say

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {LEAVING: self._on_leaving, STAYS: self._on_stays}

    async def _on_leaving(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        if await self._departures.hear(caller, fields.take_bytes(header, "said")):
            self._changed()
        return {"copies": self.copies(caller)}, []

    async def _on_stays(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        locate = fields.take_bytes(header, "locate", size=ids.ID_BYTES)
        reason = fields.take_str(header, "reason", most=REASON_CHARS_MAX)
        key = bodies.RECORDS + locate + caller
        if self.active and await self._node.between(key, key + b"\0"):
            self._stays[locate, caller] = reason
        return {}, []

    async def excuse(self, leaver: bytes, locate: bytes, reason: str) -> None:
        """Tell a node that leaves why an object of this node cannot be moved from it."""
        text = reason[:REASON_CHARS_MAX]
        try:
            await self._context.caller.call(
                leaver,
                STAYS,
                {"locate": locate, "reason": text},
                timeout_ms=limits.STORAGE_QUESTION_TIMEOUT_MS,
            )
        except XscError as fault:
            self._context.log.info(
                "drain.reason_not_told", peer=ids.short(leaver), reason=fault.message
            )


def _is_done(remaining: Remaining) -> bool:
    return not (remaining.left_objects or remaining.only_here)
