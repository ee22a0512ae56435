"""Stores the object record, which has the manifest, at hosts that lack it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from xsc.base.errors import LeaseExhausted, SpaceExhausted, XscError
from xsc.base.ids import short
from xsc.base.merkle import root_of
from xsc.identity.context import Context
from xsc.storage.object.manifest import hash_of
from xsc.storage.object.messages import ObjectRecord
from xsc.storage.ports import HostLease
from xsc.storage.repair.maintained_object import MaintainedObject, MaintainedObjects, marks, merged
from xsc.storage.repair.room import room_at
from xsc.storage.repair.survey import Survey, has_damaged_record, has_record
from xsc.storage.repair.surveyor import Surveyor
from xsc.storage.transfer.get import Located
from xsc.storage.transfer.host_client import HostClient, requests_of, together
from xsc.storage.transfer.put import Held
from xsc.storage.transfer.sending import KnownLease


class RecordWriter:
    """Stores object records under leases that this node has, else under new ones."""

    def __init__(
        self, context: Context, client: HostClient, objects: MaintainedObjects, surveyor: Surveyor
    ) -> None:
        self._own = context.key.node_id
        self._log = context.log
        self._client = client
        self._objects = objects
        self._surveyor = surveyor

    async def write(
        self, maintained: MaintainedObject, survey: Survey, nodes: Iterable[bytes]
    ) -> None:
        """Store the record at those of the nodes that lack it.

        A host that cannot be reached now gets the record after the next survey.
        """
        sealed = survey.located.sealed
        record = ObjectRecord(
            sealed=sealed, sealed_root=root_of(sealed), manifest_hash=hash_of(sealed)
        )
        wanted = list(dict.fromkeys(nodes))
        # A node that had something of the object before may have the record still.
        unasked = [node for node in wanted if node not in survey.answers]
        answers = await self._surveyor.ask(maintained, survey.manifest, unasked)
        survey = replace(survey, answers={**survey.answers, **answers})
        lacking = [node for node in wanted if not has_record(survey, node)]
        rooms = await self._rooms(maintained, record, lacking)
        if rooms and not await self._objects.save(
            maintained.ref, maintained.placement, (*maintained.held, *marks(rooms.values()))
        ):
            return
        stored = await together(
            self._store(maintained, survey.located, record, node, rooms.get(node))
            for node in lacking
        )
        counted: list[Held] = []
        for node, item in zip(lacking, stored, strict=True):
            if item is not None and has_damaged_record(survey, node):
                # It took the place of what was counted already.
                await self._client.note_freed(node, item.lease_id, item.size_bytes)
            elif item is not None:
                counted.append(item)
        held = merged(maintained.held, counted)
        if held != maintained.held:
            await self._objects.save(maintained.ref, maintained.placement, held)

    async def _rooms(
        self, maintained: MaintainedObject, record: ObjectRecord, nodes: Collection[bytes]
    ) -> dict[bytes, HostLease]:
        """Return room for the record at nodes where this node pays for nothing of the object."""
        known = {item.node for item in maintained.held} | {self._own}
        unknown = [node for node in nodes if node not in known]
        size = record.held_bytes
        found = await together(room_at(self._client, frozenset({node}), size) for node in unknown)
        return {
            node: lease
            for node, (lease, _) in zip(unknown, found, strict=True)
            if lease is not None
        }

    async def _store(
        self,
        maintained: MaintainedObject,
        located: Located,
        record: ObjectRecord,
        node: bytes,
        room: HostLease | None,
    ) -> Held | None:
        """Store the record at one host; return what it counts for there."""
        # The newest lease first: the others may be full, or over.
        known = [item.lease_id for item in reversed(maintained.held) if item.node == node]
        leases: list[HostLease] = [KnownLease(node, id_) for id_ in dict.fromkeys(known)]
        if room is not None:
            leases = [room]
        try:
            for lease in leases:
                try:
                    return await self._store_under(lease, located, record)
                except (LeaseExhausted, SpaceExhausted):
                    continue
            fresh, _ = await room_at(self._client, frozenset({node}), record.held_bytes)
            return None if fresh is None else await self._store_under(fresh, located, record)
        except XscError as fault:
            ref = short(maintained.ref)
            self._log.warning("repair.failed", object=ref, reason=fault.message)
            return None

    async def _store_under(self, lease: HostLease, located: Located, record: ObjectRecord) -> Held:
        generation = located.manifest.generation
        for batch, carried in requests_of([], record):
            await self._client.store(
                lease, located.locate, generation, shards=batch, record=carried
            )
        return Held(lease.node, lease.lease_id, record.held_bytes)
