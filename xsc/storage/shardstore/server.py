"""The host's side: what customers have this node store, show, count and delete.

Each put is held against its lease before anything is written, and is answered with
a signed receipt once it is on the disk. Each deletion is ordered by a record that
the customer signed. A host knows neither key nor name of what it holds.
docs/design/storage.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from xsc.base import fields, limits, turns
from xsc.base.bounded import Bounded
from xsc.base.clock import run_sized
from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid, XscError
from xsc.base.merkle import Part
from xsc.base.peering import Asked, GroupHandler, Handler, Outcome
from xsc.identity import batch_signer, envelope
from xsc.identity.context import Context
from xsc.storage.object import erasure, expiry, inventory, messages, receipts
from xsc.storage.object.manifest import hash_of
from xsc.storage.object.messages import PutRequest
from xsc.storage.object.segment import Span
from xsc.storage.ports import ChargeRead, Leases
from xsc.storage.shardstore import store, writer
from xsc.storage.shardstore.bodies import Body, record_key, shard_key
from xsc.terms.possession import PROVE, AskedLeaf, LeafProof, Lost
from xsc.terms.storage_receipt import (
    DeletionOrder,
    DeletionReceipt,
    Freed,
    HeldShard,
    StorageReceipt,
)

ARRIVING_MAX = 4_096
"""Puts of customers of which it is counted what is stored, until their record comes."""

STORED_SAID_S = 1.0
"""How long after the record of an object it is logged that it is stored."""


class ShardServer:
    """Answers the calls of customers about what lies in this node's shard store."""

    def __init__(
        self,
        context: Context,
        *,
        leases: Leases,
        node: store.StorageNode,
        check_room: Callable[[], None],
        released: Callable[[envelope.Signed[DeletionOrder]], Awaitable[None]],
        charge_read: ChargeRead,
    ) -> None:
        """Put it together.

        Args:
            context: of this node.
            leases: that it granted.
            node: its shard store.
            check_room: raises where it takes no shards.
            released: told of each checked order, before it is carried out, to delete what is here.
            charge_read: charges what is read for a caller.
        """
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._executor = context.executor
        self._leases = leases
        self._node = node
        node.writer.settle_use = leases.settle_use
        self._check_room = check_room
        self._released = released
        self._charge_read = charge_read
        self._log = context.log
        self._arrived: Bounded[tuple[bytes, bytes], int] = Bounded(ARRIVING_MAX)
        """Bytes stored of objects that are not logged yet, by customer and object."""
        self._signer = batch_signer.BatchSigner(context.key, context.network)
        self._looks: turns.Turns[bytes] = turns.Turns()
        """One question at a time for each caller that reads much for some bytes."""

    def handlers(self) -> dict[str, Handler]:
        """Return what answers peers, by method."""
        return {
            messages.PUT: self._on_put,
            messages.GET: self._on_get,
            messages.HAVE: self._on_have,
            messages.KEEP: self._on_keep,
            messages.STAT: self._on_stat,
            messages.FIND: self._on_find,
            messages.HOLDS: self._on_holds,
            messages.DELETE: self._on_delete,
        }

    def group_handlers(self) -> dict[str, GroupHandler]:
        """Return what answers several calls that came together."""
        return {messages.PUT: self._on_puts}

    def _taken(self, request: PutRequest, caller: bytes) -> writer.Write:
        """Return what is to be written for a put, once its lease has room for that.

        Raises:
            LeaseExhausted, SpaceExhausted: it has none.
        """
        size, lease_id, locate = request.held_bytes, request.lease_id, request.locate
        bodies = []
        for segment, shard in request.shards:
            key = shard_key(locate, request.generation, segment, shard.column, caller)
            bodies.append(Body(key, lease_id, shard.root, shard.data))
        if request.sealed is not None:
            sealed = bytes(request.sealed)
            bodies.append(Body(record_key(locate, caller), lease_id, hash_of(sealed), sealed))

        # Told also where the caller has given up: the lease must learn what was stored.
        def settle(held: Mapping[bytes, int]) -> None:
            self._leases.stored(lease_id, size, held.get(lease_id, 0))
            # A record or a damaged shard may have lain under another lease before.
            for other, delta in held.items():
                if other != lease_id:
                    self._leases.settle_use(other, delta)
            place = caller, locate
            if more := sum(held.values()):
                self._arrived.put(place, more + (self._arrived.get(place) or 0), caller)
            if more and request.sealed is not None:
                # Other columns of the last segment come beside the record.
                later = asyncio.get_running_loop().call_later
                later(STORED_SAID_S, self._say_stored, place, lease_id)

        write = writer.Write(bodies, settle)
        self._leases.admit(lease_id, caller, size)
        return write

    def _say_stored(self, place: tuple[bytes, bytes], lease_id: bytes) -> None:
        """Log what came of an object."""
        if size_bytes := self._arrived.pop(place):
            price_micro = self._leases.price(lease_id)
            self._say("storage.stored", place[0], size_bytes, price_micro=price_micro)

    def _say(self, event: str, customer: bytes, size_bytes: int, **more: object) -> None:
        self._log.info(
            event,
            peer=customer,
            size_bytes=size_bytes,
            **more,
            used_bytes=self._node.used_bytes,
            used_ppm=self._node.used_ppm,
        )

    async def _on_put(
        self, caller: bytes, header: dict[str, Value], parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[erasure.Buffer]]:
        (answer,) = await self._on_puts(caller, [(header, parts)])
        if isinstance(answer, XscError):
            raise answer
        return answer

    async def _on_puts(self, caller: bytes, calls: Sequence[Asked]) -> list[Outcome]:
        """Store what several puts bring: each is checked, stored and confirmed for itself."""
        asked: list[tuple[PutRequest, writer.Write] | XscError] = []
        for header, parts in calls:
            try:
                request = messages.read_put(header, parts)
                self._check_room()
                asked.append((request, self._taken(request, caller)))
            except XscError as fault:
                asked.append(fault)
            header.clear()
        await self._node.writer.store_together(
            [item[1] for item in asked if not isinstance(item, XscError)]
        )
        # All receipts are signed at once, before one of them is awaited.
        confirmed = [
            item if isinstance(item, XscError) else self._confirmed(caller, *item) for item in asked
        ]
        return [
            item if isinstance(item, XscError) else ({"receipt": (await item).raw}, [])
            for item in confirmed
        ]

    def _confirmed(
        self, caller: bytes, request: PutRequest, write: writer.Write
    ) -> asyncio.Future[envelope.Signed[StorageReceipt]] | XscError:
        """Return the receipt of a put that is on the disk, or why it is not."""
        if write.fault is not None:
            return write.fault
        manifest = None if request.sealed is None else write.bodies[-1].proof
        place = request.lease_id, request.locate, request.generation
        return self._signed(caller, place, receipts.named(request.shards), manifest)

    def _signed(
        self,
        caller: bytes,
        place: tuple[bytes, bytes, int],
        shards: tuple[HeldShard, ...],
        manifest: bytes | None = None,
    ) -> asyncio.Future[envelope.Signed[StorageReceipt]]:
        lease_id, locate, generation = place
        receipt = StorageReceipt(
            host=self._key.node_id,
            customer=caller,
            lease_id=lease_id,
            locate=locate,
            generation=generation,
            shards=shards,
            manifest=manifest,
            stored_ms=self._clock.now_ms(),
        )
        return self._signer.sign(receipt)

    async def _on_keep(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[erasure.Buffer]]:
        """Store under a lease of the caller what lies here already: a put without its bytes."""
        lease_id, locate, generation, wanted, most = messages.read_keep(header)
        self._check_room()
        charge = partial(self._charge_read, caller, messages.KEEP)
        found = await self._node.get(locate, generation, wanted, size_max=most, charge=charge)
        shards = inventory.whole_of(wanted, found)
        request = PutRequest(lease_id, locate, generation, tuple(shards), None)
        write = self._taken(request, caller)
        await self._node.writer.store_together([write])
        confirmed = self._confirmed(caller, request, write)
        if isinstance(confirmed, XscError):
            raise confirmed
        return {"receipt": (await confirmed).raw}, []

    async def _on_get(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[erasure.Buffer]]:
        locate, generation, wanted, most = messages.read_get(header)
        charge = partial(self._charge_read, caller, messages.GET)
        found = await self._node.get(locate, generation, wanted, size_max=most, charge=charge)
        return messages.get_answer(found)

    async def _on_have(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[erasure.Buffer]]:
        lease_id, locate, generation, wanted, _ = messages.read_keep(header)
        charge = partial(self._charge_read, caller, messages.HAVE)
        async with self._looks.of(caller):
            held = await self._node.held_shards(
                locate, generation, caller, lease_id, wanted, charge=charge
            )
        shards = tuple(
            HeldShard(segment=want.segment, column=want.column, size_bytes=size, root=want.root)
            for want, size in held
        )
        signed = await self._signed(caller, (lease_id, locate, generation), shards)
        return {"receipt": signed.raw}, []

    async def _on_stat(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[erasure.Buffer]]:
        asked = messages.read_stat(header)
        charge = partial(self._charge_read, caller, messages.STAT)
        async with self._looks.of(caller):
            held = await self._node.stat(*asked, charge=charge)
        return messages.stat_answer(expiry.with_ends(held, self._leases.end_ms), caller), []

    async def _on_find(
        self, _caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[erasure.Buffer]]:
        sealed = await self._node.find(*messages.read_find(header))
        return {}, [] if sealed is None else [sealed]

    async def _on_holds(
        self, _caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[erasure.Buffer]]:
        return messages.holds_answer(await self._node.holds(*messages.read_holds(header))), []

    async def leaf(self, caller: bytes, asked: AskedLeaf) -> LeafProof | Lost:
        """Return a leaf that lies here with its proof, or else how it is lost.

        Raises:
            RecordInvalid: the manifest that lies here has another root or size.
            RateLimited: the caller may not have so much read now.
        """
        extent, root, size = asked.extent, asked.root, asked.size_bytes
        span = Span(asked.leaf, asked.leaf + 1, size)
        charge = partial(self._charge_read, caller, PROVE)
        if root.manifest is None:
            if (
                size > limits.SEGMENT_BYTES
                or extent.column > erasure.COLUMN_MAX
                or asked.body > erasure.SEGMENT_MAX
                or root.generation > erasure.GENERATION_MAX
            ):
                raise RecordInvalid("there is no such shard")
            want = inventory.Wanted(asked.body, extent.column, root.root, span)
            (found,) = await self._node.get(
                extent.locate, root.generation, [want], size_max=limits.SEGMENT_BYTES, charge=charge
            )
        else:
            charge(size)
            sealed = await self._node.find(extent.locate, root.manifest, size)
            if sealed is None:
                return "missing"
            cut = await run_sized(
                self._executor, len(sealed), inventory.cut_found, sealed, root.root, span
            )
            if cut is None or cut.state != "ok":
                raise RecordInvalid("the manifest here has another root or size")
            found = cut
        if found.data is None or found.path is None:
            return "corrupt" if found.state == "corrupt" else "missing"
        return LeafProof(bytes(found.data), found.path)

    async def _on_delete(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[erasure.Buffer]]:
        signed = envelope.open_signed(
            fields.take_bytes(header, "order"), DeletionOrder, network=self._network, author=caller
        )
        order = signed.record
        fault = receipts.order_fault(order, host=self._key.node_id, customer=caller)
        if fault is not None:
            raise RecordInvalid(fault)
        # A deletion goes on where its caller gives up.
        freed = await asyncio.shield(asyncio.create_task(self._deleted(signed)))
        receipt = DeletionReceipt(
            host=self._key.node_id,
            customer=caller,
            locate=order.locate,
            order=signed.id,
            freed=tuple(
                Freed(lease_id=lease_id, size_bytes=size)
                for lease_id, size in sorted(freed.items())
            ),
            deleted_ms=self._clock.now_ms(),
        )
        return {"receipt": envelope.sign(receipt, self._key, self._network).raw}, []

    async def _deleted(self, signed: envelope.Signed[DeletionOrder]) -> dict[bytes, int]:
        order = signed.record
        # Before anything is deleted: what the proof of a leave lacks cannot be had again.
        columns = frozenset(order.columns)
        charge = partial(self._charge_read, order.customer, messages.DELETE)
        async with self._looks.of(order.customer):
            # How much the look is, only the look says: who owes nothing may begin it, and owes it.
            charge(store.PASSED_BYTES)
            held, size = await self._node.has_any(order.locate, order.customer, columns)
            charge(size, made=True)
        if held:
            await self._released(signed)
        freed = await self._node.delete(
            order.locate, order.customer, columns, final=order.final and not columns
        )
        if freed:
            self._say("storage.deleted", order.customer, sum(freed.values()))
        return freed
