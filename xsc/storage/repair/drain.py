"""Drain: this node leaves the network, and waits until all that it holds is stored elsewhere.

A node that leaves says so in its space and takes nothing new. Customers move their
columns away as they would repair lost ones (`Repairer`), and then order the deletion.
The node keeps these orders on the disk, counts what is still here, and says why.
After a crash the count is made again from the index.
Design: docs/design/storage-drain.md.

    storage/released/<customer><locate><record id>   a deletion order
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from xsc.api import home as api
from xsc.base import clock, encoding, fields, ids, limits, merkle, peering
from xsc.base.errors import NotAllowed, NotFound, SpaceExhausted, XscError
from xsc.base.keyvalue import prefix_end
from xsc.base.log import Log
from xsc.identity.context import Context
from xsc.identity.envelope import Count, Record, Signed, sign
from xsc.space.paths import UserSpacePaths
from xsc.space.port import Space
from xsc.space.record import Change, Entry
from xsc.storage.catalogue.heads import HEADS
from xsc.storage.ports import Hosts
from xsc.storage.repair import node_watch
from xsc.storage.repair.drain_proof import DrainProof, listed, stuck_reason
from xsc.storage.shardstore import bodies, store
from xsc.terms.storage_receipt import DeletionOrder

DRAIN_LOOK_MS = 2_000
"""How often a node that leaves counts what it still holds; longer where counting takes long."""
DRAIN_STUCK_LISTED = 100
"""Objects of which a node that leaves says one by one why they stay."""

ELSEWHERE: Final = "storage.head_elsewhere"
STAYS: Final = "storage.stays"
RELEASED: Final = b"storage/released/"
REASON_CHARS_MAX: Final = 200


class Departure(Record):
    """What a node that leaves has in its space at DEPARTURE; one that stays has nothing there."""

    begun_bytes: Count
    """What it held when it began."""


@dataclass(frozen=True, slots=True)
class Remaining:
    """What this node still holds."""

    left_objects: int = 0
    left_bytes: int = 0
    stuck_objects: int = 0
    stuck: tuple[api.Stuck, ...] = ()
    """Some of the objects that no customer is about to move."""
    only_here: tuple[bytes, ...] = ()
    """Peers whose directory no other peer has."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left that anybody needs."""
        return not (self.left_objects or self.only_here)


class Departures:
    """Which nodes leave, as each says in its space.

    Args:
        space: of this node.
        owners: those of whom something is in it.
        told: returns the peers that know what is at an own path now.
        log: hears of peers that leave or stay.
    """

    def __init__(
        self,
        space: Space,
        owners: Iterable[bytes],
        told: Callable[[str], set[bytes]],
        log: Log,
    ) -> None:
        self.space = space
        self._told = told
        self._log = log
        self._leaving: set[bytes] = set()
        self.on_change: Callable[[], None] = lambda: None
        """Called when a node, this one or a peer, leaves or stays."""
        for owner in {space.owner, *owners}:
            self.look_at(owner)
        space.on_change(self._changed)

    def look_at(self, node: bytes) -> None:
        """Read from the space whether a node leaves."""
        if self._of(node) is None:
            self._leaving.discard(node)
        else:
            self._leaving.add(node)

    def _of(self, node: bytes) -> Entry | None:
        try:
            return self.space.get(UserSpacePaths.DEPARTURE, node)
        except NotFound:
            return None

    def _changed(self, change: Change) -> None:
        if change.path == UserSpacePaths.DEPARTURE:
            before = change.owner in self._leaving
            self.look_at(change.owner)
            if before == (change.owner in self._leaving):
                return
            if change.owner != self.space.owner:
                leaves = change.owner in self._leaving
                event = "drain.peer_leaves" if leaves else "drain.peer_stays"
                self._log.info(event, peer=ids.short(change.owner))
            self.on_change()

    def leaving(self) -> frozenset[bytes]:
        """Return the nodes that leave, this one included."""
        return frozenset(self._leaving)

    @property
    def here(self) -> bool:
        """Whether this node leaves."""
        return self.space.owner in self._leaving

    def own(self) -> tuple[int, int] | None:
        """Return since when this node leaves, and what it held then; None where it stays."""
        entry = self._of(self.space.owner)
        if entry is None:
            return None
        begun = Departure.from_bytes(entry.value or b"")
        return entry.signed.record.written_ms, begun.begun_bytes

    def told(self) -> set[bytes]:
        """Return the peers that know that this node leaves, which it does."""
        return self._told(UserSpacePaths.DEPARTURE)

    def check_room(self) -> None:
        """Return if this node takes shards.

        Raises:
            SpaceExhausted: it leaves.
        """
        if self.here:
            raise SpaceExhausted(
                "this node is leaving and takes nothing new", hint="`xsc node drain --cancel` stays"
            )


class Drain:
    """The own drain."""

    def __init__(
        self,
        context: Context,
        *,
        hosts: Hosts,
        node: store.StorageNode,
        departures: Departures,
        watch: node_watch.NodeWatch,
        grace_ms: int,
    ) -> None:
        """Read what was kept."""
        self._context = context
        self._hosts = hosts
        self._node = node
        self._state = context.state
        self._commit = context.commit
        self._departures = departures
        self._watch = watch
        self._grace_ms = grace_ms
        self.copies: Callable[[bytes], int] = lambda _: 1
        """How many peers beside that one have this node's directory."""
        self._released = {key[-2 * ids.ID_BYTES :][: ids.ID_BYTES] for key, _ in self._orders()}
        """Objects of which something was released."""
        self._elsewhere: set[bytes] = set()
        """Peers whose directory is not only here."""
        self._stays: dict[tuple[bytes, bytes], str] = {}
        """By object and customer, why that customer cannot move it."""
        self._remaining: Remaining | None = None
        self._turn = asyncio.Lock()
        """Held while the drain begins or ends, or an order is kept: that belongs to one drain."""
        self._counted = asyncio.Event()
        self._woken = asyncio.Event()

    def _orders(self) -> Iterable[tuple[bytes, bytes]]:
        return self._state.scan(RELEASED, prefix_end(RELEASED))

    @property
    def active(self) -> bool:
        """Whether this node leaves."""
        return self._departures.here

    def wake(self) -> None:
        """Count again at once."""
        self._woken.set()

    # The own leave

    async def begin(self) -> None:
        """Begin to leave; the drain goes on after a restart."""
        async with self._turn:
            if self.active:
                return
            # Those of an earlier drain that was cancelled.
            await self._commit([(key, None) for key, _ in self._orders()])
            self._released.clear()
            self._stays.clear()
            self._elsewhere.clear()
            self._remaining = None
            self._counted.clear()
            held_bytes = self._node.used_bytes
            begun = Departure(begun_bytes=held_bytes).to_bytes()
            await self._departures.space.put(UserSpacePaths.DEPARTURE, begun)
            self._context.log.info("drain.begun", held_bytes=held_bytes)

    async def cancel(self) -> None:
        """Stay after all. What has moved stays where it is."""
        async with self._turn:
            if self.active:
                await self._departures.space.rm(UserSpacePaths.DEPARTURE)
                self._context.log.info("drain.cancelled")

    async def keep(self, order: Signed[DeletionOrder]) -> None:
        """Keep a verified deletion order of a customer for the proof, if this node leaves."""
        async with self._turn:
            if not self.active or order.author == self._context.key.node_id:
                return
            key = RELEASED + order.author + order.record.locate + order.id
            await self._commit([(key, order.raw)])
            self._released.add(order.record.locate)
            self._stays.pop((order.record.locate, order.author), None)

    async def run(self) -> None:
        """Count while this node leaves, until cancelled."""
        while True:
            while self.active:
                begun_ms = self._context.clock.monotonic_ms()
                await self.count()
                taken_ms = self._context.clock.monotonic_ms() - begun_ms
                # Peers can wake it as often as they like.
                await self._context.clock.sleep_ms(10 * taken_ms)
                left_ms = max(0, DRAIN_LOOK_MS - 10 * taken_ms)
                await clock.rest(self._context.clock, self._woken, left_ms)
            await self._woken.wait()
            self._woken.clear()

    # What is still here

    async def count(self) -> Remaining:
        """Count what this node still holds, from its index."""
        left: dict[tuple[bytes, bytes], int] = {}
        recorded: set[tuple[bytes, bytes]] = set()
        after = b""
        while page := await self._node.entries(after, limits.SWEEP_SLICE):
            for key, entry in page:
                owned = bodies.owner_of(key)
                if key.startswith(bodies.RECORDS):
                    recorded.add(owned)
                left[owned] = left.get(owned, 0) + entry.held_bytes
            after = page[-1][0]
        peers = self._hosts.peers()
        stuck: list[tuple[int, bytes, bytes, str]] = []
        for owned, size in left.items():
            customer = owned[1]
            reason = stuck_reason(
                recorded=owned in recorded,
                customer_said=self._stays.get(owned),
                is_up=self._hosts.is_up(customer),
                silent_ms=self._watch.silent_ms(customer) if customer in peers else None,
                grace_ms=self._grace_ms,
            )
            if reason:
                stuck.append((-size, *owned, reason))
        remaining = Remaining(
            left_objects=len({locate for locate, _ in left}),
            left_bytes=sum(left.values()),
            stuck_objects=len({locate for _, locate, _, _ in stuck}),
            stuck=tuple(
                api.Stuck(object=locate.hex(), owner=customer, size_bytes=-size, reason=reason)
                for size, locate, customer, reason in sorted(stuck)[:DRAIN_STUCK_LISTED]
            ),
            only_here=await self._only_here(),
        )
        if self._remaining != remaining and remaining.is_done:
            self._context.log.info("drain.done", objects=len(self._released))
        self._remaining = remaining
        self._counted.set()
        return remaining

    async def _only_here(self) -> tuple[bytes, ...]:
        """Return the peers that are up and say that no other peer has their directory."""
        peers = self._hosts.peers()
        held = [key.removeprefix(HEADS) for key, _ in self._state.scan(HEADS, prefix_end(HEADS))]
        asked = [
            owner
            for owner in held
            if owner in peers and owner not in self._elsewhere and self._hosts.is_up(owner)
        ]
        found = await asyncio.gather(*map(self._is_only_here, asked))
        return tuple(owner for owner, is_only in zip(asked, found, strict=True) if is_only)

    async def _is_only_here(self, owner: bytes) -> bool:
        try:
            reply = await self._context.caller.call(
                owner, ELSEWHERE, {}, timeout_ms=limits.STORAGE_QUESTION_TIMEOUT_MS
            )
            if not fields.take_bool(reply.header, "elsewhere"):
                return True
        except XscError as fault:
            self._context.log.info(
                "drain.directory_unknown", peer=ids.short(owner), reason=fault.message
            )
        else:
            self._elsewhere.add(owner)
        return False

    def _released_bytes(self, begun_bytes: int) -> int:
        """Return what was deleted since the drain began. Nothing is stored meanwhile."""
        return max(0, begun_bytes - self._node.used_bytes)

    async def counted(self, wait_ms: int) -> None:
        """Return after the next count, or after that long; at once where this node stays."""
        if self.active and (wait_ms or self._remaining is None):
            self._counted.clear()
            await clock.event_within(self._context.clock, self._counted, wait_ms or DRAIN_LOOK_MS)

    def status(self, guarded: int = 0, owed_micro: int = 0) -> api.Drain:
        """Return how far this node is with leaving.

        Args:
            guarded: objects of others of which it holds columns elsewhere, at its own cost.
            owed_micro: what it is owed.
        """
        own, left, state = self._departures.own(), self._remaining, "leaving"
        if own is None:
            own, left, state = (0, 0), Remaining(), "staying"
        elif left is None:
            left = Remaining(left_bytes=self._node.used_bytes)
        elif left.is_done:
            state = "done"
        since_ms, begun_bytes = own
        peers, leaves = self._hosts.peers(), state != "staying"
        return api.Drain(
            state=state,
            since_ms=since_ms,
            total_bytes=max(begun_bytes, left.left_bytes),
            left_bytes=left.left_bytes,
            left_objects=left.left_objects,
            released_objects=len(self._released) if leaves else 0,
            released_bytes=self._released_bytes(begun_bytes),
            peers_told=len(self._departures.told().intersection(peers)) if leaves else 0,
            peers=len(peers),
            stuck_objects=left.stuck_objects,
            stuck=[*left.stuck],
            directories_only_here=[*left.only_here],
            guarded_at_own_cost=guarded,
            owed_micro=owed_micro,
        )

    async def proof(self) -> bytes:
        """Return the proof of what was released so far.

        Raises:
            NotAllowed: this node does not leave.
        """
        own = self._departures.own()
        if own is None:
            raise NotAllowed("this node is not leaving", hint="`xsc node drain` begins it")
        remaining = self._remaining or Remaining(left_objects=1)
        context, released_bytes = self._context, self._released_bytes(own[1])

        def by_customer() -> Iterable[tuple[bytes, bytes]]:
            return ((key[len(RELEASED) :][: ids.ID_BYTES], raw) for key, raw in self._orders())

        def signed() -> bytes:
            orders, unlisted = listed(by_customer)
            proof = DrainProof(
                orders=tuple(orders),
                released_bytes=released_bytes,
                left_objects=remaining.left_objects,
                unlisted_orders=unlisted,
                said_ms=context.clock.now_ms(),
            )
            return sign(proof, context.key, context.network).raw

        return await context.executor.run(signed)

    # What peers say

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {ELSEWHERE: self._on_elsewhere, STAYS: self._on_stays}

    async def _on_elsewhere(
        self, caller: bytes, _header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        return {"elsewhere": self.copies(caller) > 0}, []

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
