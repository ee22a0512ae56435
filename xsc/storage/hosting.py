"""The host's side: what customers have this node store, show, count and delete.

Each put is held against its lease and its placement before anything is written,
and is answered with a signed receipt once it is on the disk. A host knows neither
key nor name of what it holds, and of placements only that their owner sent them.
docs/design/storage.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xsc.base.clock import Clock, Executor
from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid, XscError
from xsc.base.merkle import Part
from xsc.base.peering import Asked, GroupHandler, Handler, Outcome
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.storage import having, messages
from xsc.storage.delegation import open_sent, valid_placements
from xsc.storage.drain import Drain
from xsc.storage.erasure import Buffer
from xsc.storage.expiry import with_ends
from xsc.storage.manifest import hash_of
from xsc.storage.messages import ObjectRecord, PutRequest
from xsc.storage.placement_seal import PlacementSeals
from xsc.storage.ports import Leases
from xsc.storage.reach import bodies_of, whole_of
from xsc.storage.receipts import expected_receipt
from xsc.storage.seals import Sealer
from xsc.storage.shards import StorageNode, Write
from xsc.terms.deletion_receipt import DeletionReceipt, Freed
from xsc.terms.storage_receipt import HeldShard, StorageReceipt


class Hosting:
    """Answers the calls of customers about what lies in this node's shard store."""

    def __init__(
        self,
        *,
        key: KeyPair,
        network: bytes,
        clock: Clock,
        executor: Executor,
        leases: Leases,
        node: StorageNode,
        drain: Drain,
    ) -> None:
        self._key = key
        self._network = network
        self._clock = clock
        self._executor = executor
        self._leases = leases
        self._node = node
        self._drain = drain
        self._sealer = Sealer(key, network)
        self._placement_seals = PlacementSeals(network)

    def handlers(self) -> dict[str, Handler]:
        """Return what answers peers, by method."""
        return {
            messages.PUT: self._on_put,
            messages.GET: self._on_get,
            having.HAVE: self._on_have,
            messages.KEEP: self._on_keep,
            messages.STAT: self._on_stat,
            messages.FIND: self._on_find,
            messages.DELETE: self._on_delete,
            messages.TRIM: self._on_trim,
        }

    def group_handlers(self) -> dict[str, GroupHandler]:
        """Return what answers several calls that came together."""
        return {messages.PUT: self._on_puts}

    def _record_of(self, request: PutRequest, caller: bytes) -> ObjectRecord | None:
        """Return the object record of a put, checked as far as a host can.

        Raises:
            RecordInvalid, SignatureInvalid: the placement is of another object, or by nobody
                who may place it.
        """
        if request.placement is None or request.sealed is None:
            return None
        covered: Collection[bytes] = ()
        if request.placement_seal is not None:
            covered = self._placement_seals.covered(request.placement_seal, caller)
        placed = open_sent(request.placement, self._network, caller, covered)
        placement = placed.placement
        if placement.locate != request.locate:
            raise RecordInvalid("the placement is of another object")
        if placement.code_generation != request.generation:
            raise RecordInvalid("the placement is of another encoding generation")
        if self._key.node_id not in placement.columns:
            raise RecordInvalid("the placement does not name this host")
        sealed = bytes(request.sealed)
        return ObjectRecord(
            sealed=sealed,
            sealed_root=b"",
            manifest_hash=hash_of(sealed),
            placement=request.placement,
            placement_id=placed.id,
            placement_generation=placed.rank,
        )

    def _taken(self, request: PutRequest, record: ObjectRecord | None, caller: bytes) -> Write:
        """Return what is to be written for a put, once its lease has room for that.

        Raises:
            LeaseExhausted, SpaceExhausted: it has none.
        """
        size = request.size_bytes
        bodies = bodies_of(
            customer=caller,
            lease_id=request.lease_id,
            locate=request.locate,
            generation=request.generation,
            shards=request.shards,
            record=record,
        )

        # Told also where the caller has given up: the lease must learn what was stored.
        def settle(held: Mapping[bytes, int]) -> None:
            # A record or a damaged shard may have lain under another lease before.
            for lease_id in dict.fromkeys((request.lease_id, *held)):
                counted = size if lease_id == request.lease_id else 0
                if delta := held.get(lease_id, 0) - counted:
                    self._leases.settle_use(lease_id, delta)

        write = Write(bodies, settle)
        self._leases.admit(request.lease_id, caller, size)
        return write

    async def _on_put(
        self, caller: bytes, header: dict[str, Value], parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        (answer,) = await self._on_puts(caller, [(header, parts)])
        if isinstance(answer, XscError):
            raise answer
        return answer

    async def _on_puts(self, caller: bytes, calls: Sequence[Asked]) -> list[Outcome]:
        """Store what several puts bring: each is checked, stored and confirmed for itself."""
        outcomes: dict[int, dict[str, Value] | asyncio.Future[dict[str, Value]] | XscError] = {}
        asked: dict[int, tuple[PutRequest, ObjectRecord | None]] = {}
        writes: list[Write] = []
        for number, (header, parts) in enumerate(calls):
            try:
                request = messages.read_put(header, parts)
                record = self._record_of(request, caller)
                if request.shards:
                    self._drain.check_room()
                writes.append(self._taken(request, record, caller))
            except XscError as fault:
                outcomes[number] = fault
            else:
                asked[number] = request, record
        stored = await self._node.store_together(writes)
        for (number, (request, record)), held in zip(asked.items(), stored, strict=True):
            if isinstance(held, XscError):
                outcomes[number] = held
                continue
            receipt = self._receipt(caller, request, record)
            if request.seal:
                outcomes[number] = self._sealer.together(receipt)
            else:
                outcomes[number] = self._sealer.alone(receipt)
        answers: list[Outcome] = []
        for number in range(len(calls)):
            outcome = outcomes[number]
            if isinstance(outcome, asyncio.Future):
                outcome = await outcome
            answers.append(outcome if isinstance(outcome, XscError) else (outcome, []))
        return answers

    def _receipt(
        self, caller: bytes, request: PutRequest, record: ObjectRecord | None
    ) -> StorageReceipt:
        """Return what confirms a put that is on the disk, not signed yet."""
        return expected_receipt(
            host=self._key.node_id,
            customer=caller,
            lease_id=request.lease_id,
            locate=request.locate,
            generation=request.generation,
            shards=request.shards,
            manifest=None if record is None else record.manifest_hash,
            placement=None if record is None else record.placement_id,
            stored_ms=self._clock.now_ms(),
        )

    async def _on_keep(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        """Store under a lease of the caller what lies here already: a put without its bytes."""
        lease_id, locate, generation, wanted = messages.read_keep(header)
        self._drain.check_room()
        found = await self._node.get(locate, generation, wanted)
        shards = whole_of(wanted, found)
        request = PutRequest(lease_id, locate, generation, tuple(shards), None, None)
        (held,) = await self._node.store_together([self._taken(request, None, caller)])
        if isinstance(held, XscError):
            raise held
        return self._sealer.alone(self._receipt(caller, request, None)), []

    async def _on_get(
        self, _caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        locate, generation, wanted = messages.read_get(header)
        return messages.get_answer(await self._node.get(locate, generation, wanted))

    async def _on_have(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        lease_id, locate, generation, wanted = having.read_have(header)
        held = await self._node.have(locate, generation, caller, lease_id, wanted)
        receipt = StorageReceipt(
            host=self._key.node_id,
            customer=caller,
            lease_id=lease_id,
            locate=locate,
            generation=generation,
            shards=tuple(
                HeldShard(segment=want.segment, column=want.column, size_bytes=size, root=want.root)
                for want, size in held
            ),
            manifest=None,
            placement=None,
            stored_ms=self._clock.now_ms(),
        )
        return self._sealer.alone(receipt), []

    async def _on_stat(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        locate, generation, manifest_hash = messages.read_stat(header)
        held = await self._node.stat(locate, generation, manifest_hash)
        return messages.stat_answer(with_ends(held, self._leases.end_ms), caller), []

    async def _on_find(
        self, _caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        locate, manifest_hash = messages.read_find(header)
        found = await self._node.find(locate, manifest_hash)
        if found is not None:
            # Of what came under a seal the own signature was not verified (`placement_seal`),
            # and who is shown one that does not hold would take it for this host's.
            valid = await self._executor.run(valid_placements, found.placements, self._network)
            shown = tuple(placed.raw for placed in valid)
            found = replace(found, placements=shown) if shown else None
        return messages.find_answer(found)

    async def _on_delete(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        locate, final = messages.read_delete(header)
        # A caller that gives up must not keep the lease from learning what was freed.
        work = self._node.delete(locate, caller, final=final)
        freed = await asyncio.shield(asyncio.create_task(self._drop(locate, work)))
        receipt = DeletionReceipt(
            host=self._key.node_id,
            customer=caller,
            locate=locate,
            freed=tuple(
                Freed(lease_id=lease_id, size_bytes=size)
                for lease_id, size in sorted(freed.items())
            ),
            deleted_ms=self._clock.now_ms(),
        )
        return {"receipt": sign(receipt, self._key, self._network).raw}, []

    async def _on_trim(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        locate, columns = messages.read_trim(header)
        # A caller that gives up must not keep the lease from learning what was freed.
        work = self._node.trim(locate, caller, columns)
        freed = await asyncio.shield(asyncio.create_task(self._drop(locate, work)))
        return messages.trim_answer(freed), []

    async def _drop(
        self, locate: bytes, work: Coroutine[Any, Any, dict[bytes, int]]
    ) -> dict[bytes, int]:
        freed = await work
        for lease_id, size in freed.items():
            self._leases.settle_use(lease_id, -size)
        await self._drain.note_deleted(locate, sum(freed.values()))
        return freed
