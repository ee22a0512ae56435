"""Moves columns to other hosts, and rewrites damaged shards where they are.

Order: the hosts that will be sent to are written down, synced; then the shards are
sent; then the new placement is written, synced. After a crash at any point the next
survey finds the object as it is. Design: docs/design/storage-repair.md, R6 and R7.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from xsc.api.objects import Moved
from xsc.base import ids, merkle
from xsc.base.errors import LeaseExhausted, SpaceExhausted, XscError
from xsc.base.limits import STORE_REQUEST_BYTES_MAX
from xsc.base.refusals import refusal
from xsc.identity.context import Context
from xsc.storage.object import erasure, placement, receipts
from xsc.storage.object.held import Held, held_of
from xsc.storage.object.manifest import code_of, hash_of, segments_of
from xsc.storage.object.messages import GET_MAX, ObjectRecord
from xsc.storage.repair.maintained_object import (
    MaintainedObject,
    MaintainedObjects,
    marks,
    merged,
    without,
)
from xsc.storage.repair.migration import next_move
from xsc.storage.repair.node_watch import Bandwidth
from xsc.storage.repair.survey import (
    Survey,
    bytes_of_column,
    bytes_of_record,
    damaged_segments,
    good_for,
    has_damaged_record,
    has_record,
)
from xsc.storage.repair.surveyor import Surveyor
from xsc.storage.transfer.get import Located
from xsc.storage.transfer.host_client import HostClient, Source, together
from xsc.storage.transfer.sender import ColumnSender, rebuilt
from xsc.storage.transfer.sending import Sending
from xsc.terms.lease import LeaseHandle


async def room_at(
    client: HostClient, targets: frozenset[bytes], size_bytes: int
) -> tuple[LeaseHandle | None, str]:
    """Return room at one of the nodes, or why there is none."""
    known = {client.own, *client.hosts.peers()}
    offered = await client.hosts.lease_hosts(
        size_bytes=size_bytes, count=1, exclude=frozenset(known - targets)
    )
    if not offered.leases:
        if any(isinstance(fault, SpaceExhausted) for fault in offered.refused.values()):
            client.hosts.unplaced(size_bytes, 1)
        return None, refusal(offered.refused, "no node offers the room that is needed").message
    client.hosts.placed(size_bytes)
    if offered.leases[0].node not in targets:
        return None, "no node that may take it has room"
    return offered.leases[0], ""


async def delete_at(
    client: HostClient, survey: Survey, node: bytes, columns: frozenset[int], held: list[Held]
) -> list[Held]:
    """Delete columns of an object at a host; return what is held after that.

    Args:
        client: the hosts.
        survey: of the object.
        node: the host. One that does not confirm is asked again after the next survey.
        columns: to delete; all that is there if empty.
        held: what is held before.
    """
    try:
        freed, _ = await client.delete(node, survey.located.locate, columns=columns)
    except XscError as fault:
        ref = ids.short(survey.maintained.ref)
        client.log.warning("repair.failed", object=ref, reason=fault.message)
        return held
    if columns:
        for lease_id, size in freed.items():
            await client.note_freed(node, lease_id, size)
        return without(held, node, freed)
    for item in held:
        if item.node == node:
            await client.note_freed(node, item.lease_id, item.size_bytes)
    return [item for item in held if item.node != node]


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
            sealed=sealed, sealed_root=merkle.root_of(sealed), manifest_hash=hash_of(sealed)
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
    ) -> dict[bytes, LeaseHandle]:
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
        room: LeaseHandle | None,
    ) -> Held | None:
        """Store the record at one host; return what it counts for there."""
        # The newest lease first: the others may be full, or over.
        known = [item.lease_id for item in reversed(maintained.held) if item.node == node]
        leases: list[LeaseHandle] = [LeaseHandle(node, id_) for id_ in dict.fromkeys(known)]
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
            ref = ids.short(maintained.ref)
            self._log.warning("repair.failed", object=ref, reason=fault.message)
            return None

    async def _store_under(
        self, lease: LeaseHandle, located: Located, record: ObjectRecord
    ) -> Held:
        await self._client.store(
            lease, located.locate, located.manifest.generation, shards=[], record=record
        )
        return Held(lease.node, lease.lease_id, record.held_bytes)


DELETED = "it is being deleted"

Progress: TypeAlias = Callable[[int, int], None]
"""Is called with how many segments of how many are done."""


class ColumnMover:
    """Leases room, copies or rebuilds columns, and stores them there."""

    def __init__(
        self, context: Context, client: HostClient, objects: MaintainedObjects, bandwidth: Bandwidth
    ) -> None:
        self._context = context
        self._client = client
        self._objects = objects
        self._bandwidth = bandwidth

    def _failed(self, survey: Survey, fault: XscError) -> None:
        ref = ids.short(survey.maintained.ref)
        self._context.log.warning("repair.failed", object=ref, reason=fault.message)

    # Where to

    async def choose(
        self, survey: Survey, available: Collection[bytes]
    ) -> tuple[dict[int, LeaseHandle], str]:
        """Return room for each column that needs a lease or another host, and what failed.

        Args:
            survey: of the object.
            available: nodes that may be given columns.
        """
        layout, located = survey.layout, survey.located
        silent = {node for node, held in survey.answers.items() if held is None}
        able = set(available) - silent - {survey.columns[column] for column in survey.expiring}
        size = bytes_of_column(survey.manifest) + bytes_of_record(located)
        budget_bytes = survey.maintained.budget_bytes
        most = len(layout.columns) if budget_bytes is None else budget_bytes // max(1, size)
        chosen: dict[int, LeaseHandle] = {}
        reason = ""
        for column in sorted(survey.unpaid)[:most]:
            lease, fault = await room_at(self._client, frozenset({layout.columns[column]}), size)
            if lease is not None:
                chosen[column] = lease
            reason = reason or fault
        if survey.margin < 0 and survey.manifest.inline is None:
            return chosen, "fewer columns are left than the object needs"
        while True:
            if len(chosen) >= most:
                return chosen, reason or "what this node may keep for that owner is used up"
            move = await self._context.executor.run(next_move, layout, frozenset(able))
            if move is None:
                return chosen, reason
            lease, fault = await room_at(self._client, move.targets, size)
            if lease is None:
                reason = reason or fault
                able -= move.targets
                continue
            layout = layout.placed(move.column, lease.node)
            chosen[move.column] = lease

    # Moving

    async def move(
        self, survey: Survey, chosen: dict[int, LeaseHandle], progress: Progress | None
    ) -> tuple[MaintainedObject, tuple[Moved, ...], str]:
        """Copy or rebuild columns at their new hosts; return the object, what moved, and a fault.

        Args:
            survey: of the object.
            chosen: the new lease of each column.
            progress: is told after each segment.
        """
        maintained, located = survey.maintained, survey.located
        # Marks, not sums: after a crash it is known where more may be stored than was counted.
        held = (*maintained.held, *marks(chosen.values()))
        if not await self._objects.save(maintained.ref, maintained.placement, held):
            return maintained, (), DELETED
        left = list(maintained.held)
        for column, lease in chosen.items():
            if survey.columns[column] == lease.node and column in survey.displaced:
                # What the host has of the column is not what it should be.
                gone = frozenset({column})
                left = await delete_at(self._client, survey, lease.node, gone, left)
        sender = self._sender(survey, chosen)
        fault = await self._send(survey, sender, progress)
        leases = {column: slot.lease for column, slot in sorted(sender.state.slots.items())}
        held = merged(left, held_of(sender.held))
        if not leases:
            await self._objects.save(maintained.ref, maintained.placement, held)
            return replace(maintained, held=held), (), fault
        columns = list(survey.columns)
        for column, lease in leases.items():
            columns[column] = lease.node
        # The object record goes to the new hosts, too.
        held = (*held, *marks(leases.values()))
        maintained = replace(
            maintained, placement=placement.placement_of(located.manifest, columns), held=held
        )
        if not await self._objects.save(maintained.ref, maintained.placement, held):
            return maintained, (), DELETED
        moved = tuple(
            Moved(shard=column, from_=survey.columns[column], to=lease.node)
            for column, lease in leases.items()
        )
        return maintained, moved, fault

    def _sender(self, survey: Survey, leases: Mapping[int, LeaseHandle]) -> ColumnSender:
        """Return what sends columns: one whose host fails waits for the next look."""
        manifest = survey.manifest
        state = Sending({}, manifest.m, manifest.contract, replaces=False)
        sender = ColumnSender(self._client, survey.located.locate, code_of(manifest), state)
        sender.place(leases)
        return sender

    async def _send(self, survey: Survey, sender: ColumnSender, progress: Progress | None) -> str:
        """Send columns segment by segment; return why some were given up, or nothing."""
        await self._keep_in_place(survey, sender)
        kept = set(sender.done)
        count = segments_of(survey.manifest) if sender.state.slots.keys() - kept else 0
        reason = ""
        for index in range(count):
            columns = sorted(sender.state.slots.keys() - kept)
            if self._objects.load(survey.maintained.ref) is None:
                sender.place({})
                return DELETED
            if not columns:
                break
            try:
                shards = await self._build(survey, index, columns)
            except XscError as fault:
                sender.place({})
                return fault.message
            faults = await together(self._stored(sender, index, shard) for shard in shards)
            reason = next(filter(None, faults), reason)
            if progress is not None:
                progress(index + 1, count)
        return reason

    @staticmethod
    async def _stored(sender: ColumnSender, index: int, shard: erasure.StorageShard) -> str:
        """Store a shard at its host; return why it is not there, or nothing."""
        sender.live.setdefault(index, {})[shard.column] = shard
        try:
            await sender.store(shard.column, index)
        except XscError as fault:
            return fault.message
        finally:
            del sender.live[index][shard.column]
        return ""

    async def _keep_in_place(self, survey: Survey, sender: ColumnSender) -> None:
        """Put columns that stay under their new leases without a transfer."""
        located = survey.located
        for column, slot in sorted(sender.state.slots.items()):
            lease = slot.lease
            if survey.columns[column] != lease.node or column in survey.displaced:
                continue
            shards = receipts.shards_of(located.manifest, column)
            most = max(1, STORE_REQUEST_BYTES_MAX // max((s.size_bytes for s in shards), default=1))
            most = min(most, GET_MAX)
            generation = located.manifest.generation
            try:
                for start in range(0, len(shards), most):
                    batch = shards[start : start + most]
                    size = await self._client.keep(lease, located.locate, generation, batch)
                    sender.count(lease, size)
            except XscError as fault:
                self._failed(survey, fault)
                continue
            sender.done[column].update(range(segments_of(located.manifest)))

    # Shards

    async def _build(
        self, survey: Survey, index: int, columns: Sequence[int]
    ) -> list[erasure.StorageShard]:
        """Return shards of a segment: copied from where they still are, else rebuilt."""
        manifest = survey.manifest
        size = survey.located.segment(index).shard_bytes
        await self._bandwidth.take(size * (len(columns) + manifest.k))
        if all(survey.states[column] == "ok" for column in columns):
            try:
                return await together(self._copy(survey, index, column) for column in columns)
            except XscError as fault:
                self._failed(survey, fault)
        good = [column for column, state in enumerate(survey.states) if state == "ok"]
        return await self._rebuild(survey, index, good, columns)

    async def _rebuild(
        self, survey: Survey, index: int, good: Sequence[int], columns: Sequence[int]
    ) -> list[erasure.StorageShard]:
        """Return shards of a segment, built from k of the good columns."""
        return await rebuilt(
            self._client,
            survey.located.segment(index),
            sources=[Source(column, survey.columns[column]) for column in good],
            columns=columns,
        )

    async def _copy(self, survey: Survey, index: int, column: int) -> erasure.StorageShard:
        shards = survey.located.segment(index)
        data: erasure.Buffer = await self._client.fetch(
            survey.columns[column], shards.locate, shards.code.generation, shards.wanted(column)
        )
        return erasure.StorageShard(column, data, shards.roots[column])

    async def rewrite_damaged(self, survey: Survey) -> int:
        """Store damaged shards again at hosts that have the rest of the column; return how many.

        What cannot be stored there is left to be moved with its column.
        """
        manifest, done = survey.manifest, 0
        for column, segments in damaged_segments(
            manifest, survey.columns, survey.answers, survey.own
        ).items():
            node = survey.columns[column]
            leases = list({item.lease_id for item in survey.maintained.held if item.node == node})
            if node in survey.leaving or len(leases) != 1:
                # With several leases it is not known which one the shard is under.
                continue
            sender = self._sender(survey, {column: LeaseHandle(node, leases[0])})
            for segment in segments:
                reason = await self._rewrite(survey, sender, segment, column)
                if reason:
                    self._context.log.info(
                        "repair.shard_not_rewritten", peer=ids.short(node), reason=reason
                    )
                    break
                done += 1
            for item in held_of(sender.held):
                # It takes the place of what was counted already.
                await self._client.note_freed(item.node, item.lease_id, item.size_bytes)
        if done:
            ref = ids.short(survey.maintained.ref)
            self._context.log.info("repair.shards_rewritten", object=ref, shards=done)
        return done

    async def _rewrite(
        self, survey: Survey, sender: ColumnSender, segment: int, column: int
    ) -> str:
        """Build one damaged shard from columns that are whole in this segment, and store it.

        Return why it is not there, or nothing.
        """
        manifest = survey.manifest
        size = survey.located.segment(segment).shard_bytes
        await self._bandwidth.take(size * (1 + manifest.k))
        good = good_for(manifest, survey.columns, survey.answers, segment)
        try:
            (shard,) = await self._rebuild(survey, segment, good, [column])
        except XscError as fault:
            return fault.message
        return await self._stored(sender, segment, shard)
