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
from xsc.base.errors import SpaceExhausted, XscError
from xsc.base.limits import STORE_REQUEST_BYTES_MAX
from xsc.base.refusals import refusal
from xsc.base.units import held_bytes
from xsc.identity.context import Context
from xsc.storage.object import erasure, placement, receipts
from xsc.storage.object.capability import VerifyCapability
from xsc.storage.object.held import Held, held_of
from xsc.storage.object.manifest import code_of, hash_of, segments_of
from xsc.storage.object.messages import GET_MAX, KEEP, ObjectRecord
from xsc.storage.repair.maintained_object import (
    MaintainedObject,
    MaintainedObjects,
    marks,
    merged,
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
    nodes_without_manifest,
)
from xsc.storage.repair.surveyor import Surveyor
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
    client: HostClient,
    capability: VerifyCapability,
    node: bytes,
    columns: frozenset[int],
    held: Iterable[Held],
) -> tuple[Held, ...]:
    """Delete columns of an object at a host; return what is held after that.

    Args:
        client: the hosts.
        capability: of the object.
        node: the host. One that does not confirm is asked again later, unless it must have
            dropped all by itself.
        columns: to delete; all that is there if empty.
        held: what is held before.
    """
    left: list[Held] = []
    freed: dict[bytes, int] | None = None
    try:
        freed, _ = await client.delete(node, capability.locate, columns=columns)
    except XscError as fault:
        client.log.info("storage.delete_failed", peer=ids.short(node), reason=fault.message)
    for item in merged(held, ()):
        size = item.size_bytes
        if item.node != node or (freed is None and not client.has_dropped(node, item.lease_id)):
            left.append(item)
            continue
        if freed is not None and columns:
            size = min(size, freed.get(item.lease_id, 0))
            left.append(item._replace(size_bytes=item.size_bytes - size))
        await client.note_freed(node, item.lease_id, size)
    return tuple(left)


DELETED = "it is being deleted"

Progress: TypeAlias = Callable[[int, int], None]
"""Is called with how many segments of how many are done."""


class ColumnMover:
    """Leases room, copies or rebuilds columns, and stores them there."""

    def __init__(
        self,
        context: Context,
        client: HostClient,
        objects: MaintainedObjects,
        surveyor: Surveyor,
        bandwidth: Bandwidth,
    ) -> None:
        self._context = context
        self._client = client
        self._objects = objects
        self._surveyor = surveyor
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

    async def rooms_for_records(
        self, survey: Survey, chosen: Collection[int]
    ) -> dict[int, LeaseHandle]:
        """Return room at hosts that lack the object record, for a column that stays there."""
        rooms: dict[int, LeaseHandle] = {}
        lacking = nodes_without_manifest(survey)
        for column, node in enumerate(survey.columns):
            if node in lacking and column not in {*chosen, *survey.displaced}:
                lacking.remove(node)
                size = bytes_of_record(survey.located)
                lease, _ = await room_at(self._client, frozenset({node}), size)
                if lease is not None:
                    rooms[column] = lease
        return rooms

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
        left = maintained.held
        for column, lease in chosen.items():
            if survey.columns[column] == lease.node and column in survey.displaced:
                # What the host has of the column is not what it should be.
                gone = frozenset({column})
                left = await delete_at(self._client, maintained.capability, lease.node, gone, left)
        sender = self._sender(survey, chosen)
        record = sender.record = ObjectRecord(
            sealed=located.sealed,
            sealed_root=merkle.root_of(located.sealed),
            manifest_hash=hash_of(located.sealed),
        )
        sender.last = max(0, segments_of(survey.manifest) - 1)
        # A node that had something of the object before may have the record still.
        unasked = {item.node for item in maintained.held} - survey.answers.keys()
        unasked &= {lease.node for lease in chosen.values()}
        answers = await self._surveyor.finder.ask(unasked, maintained.capability, survey.manifest)
        said = replace(survey, answers={**survey.answers, **answers})
        sender.recorded = {node: b"" for node in said.answers if has_record(said, node)}
        await self._keep_in_place(survey, sender)
        fault = await self._send(survey, sender, progress)
        await sender.store_records()
        fault = sender.given_up or fault
        for node, lease_id in sender.recorded.items():
            if lease_id and has_damaged_record(said, node):
                # It took the place of what was counted already.
                await self._client.note_freed(node, lease_id, record.held_bytes)
                sender.held[node, lease_id] -= record.held_bytes
        columns = list(survey.columns)
        moved = []
        for column, slot in sorted(sender.state.slots.items()):
            columns[column] = slot.lease.node
            if (
                column in survey.displaced | survey.unpaid
                or columns[column] != survey.columns[column]
            ):
                moved.append(Moved(shard=column, from_=survey.columns[column], to=columns[column]))
        held = merged(left, held_of(sender.held))
        placed = maintained.placement
        if moved:
            placed = placement.placement_of(located.manifest, columns)
        maintained = replace(maintained, placement=placed, held=held)
        if not await self._objects.save(maintained.ref, placed, held):
            return maintained, (), DELETED
        return maintained, tuple(moved), fault

    def _sender(self, survey: Survey, leases: Mapping[int, LeaseHandle]) -> ColumnSender:
        """Return what sends columns: one whose host fails waits for the next look."""
        manifest = survey.manifest
        state = Sending({}, manifest.m, manifest.contract, replaces=False)
        sender = ColumnSender(self._client, survey.located.locate, code_of(manifest), state)
        sender.place(leases)
        return sender

    async def _send(self, survey: Survey, sender: ColumnSender, progress: Progress | None) -> str:
        """Send what is not done, segment by segment; return why some cannot be sent, or nothing.

        Progress is told of the segments.
        """
        segments, reason = range(segments_of(survey.manifest)), ""
        for index in segments:
            slots = sender.state.slots
            columns = [column for column in sorted(slots) if index not in sender.done[column]]
            if not columns:
                continue
            if self._objects.load(survey.maintained.ref) is None:
                sender.place({})
                return DELETED
            try:
                shards = await self._build(survey, index, columns)
            except XscError as fault:
                reason = fault.message
                sender.place({each: slots[each].lease for each in slots.keys() - {*columns}})
                continue
            sender.live[index] = {shard.column: shard for shard in shards}
            await together(sender.store(column, index) for column in columns)
            del sender.live[index]
            if progress is not None:
                progress(index + 1, len(segments))
        return reason

    async def _keep_in_place(self, survey: Survey, sender: ColumnSender) -> None:
        """Put columns that stay under their new leases without a transfer."""
        located = survey.located
        for column, slot in sorted(sender.state.slots.items()):
            lease = slot.lease
            if survey.columns[column] != lease.node or column in survey.displaced:
                continue
            if column not in survey.unpaid:
                # Only the record is sent.
                sender.done[column].update(range(segments_of(located.manifest)))
                continue
            shards = receipts.shards_of(located.manifest, column)
            most = max(1, STORE_REQUEST_BYTES_MAX // max((s.size_bytes for s in shards), default=1))
            most = min(most, GET_MAX)
            generation = located.manifest.generation
            try:
                for start in range(0, len(shards), most):
                    batch = shards[start : start + most]
                    kept = await self._client.confirmed(
                        KEEP, lease, located.locate, generation, batch
                    )
                    sizes = [item.size_bytes for item in kept]
                    sender.count(lease, held_bytes(sum(sizes), len(sizes)))
            except XscError as fault:
                self._failed(survey, fault)
                continue
            sender.done[column].update(range(segments_of(located.manifest)))

    # Shards

    async def _build(
        self, survey: Survey, index: int, columns: Sequence[int]
    ) -> list[erasure.StorageShard]:
        """Return shards of a segment: copied from where they still are, else rebuilt."""
        segment = survey.located.segment(index)
        await self._bandwidth.take(segment.shard_bytes * (len(columns) + survey.manifest.k))
        if all(survey.states[column] == "ok" for column in columns):
            try:
                return await together(self._copy(survey, index, column) for column in columns)
            except XscError as fault:
                self._failed(survey, fault)
        return await rebuilt(
            self._client,
            segment,
            sources=[Source(column, survey.columns[column]) for column in good_for(survey, index)],
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
        manifest, leases = survey.manifest, {}
        damaged = damaged_segments(survey)
        for column in damaged:
            node = survey.columns[column]
            known = {item.lease_id for item in survey.maintained.held if item.node == node}
            # With several leases it is not known which one the shard is under.
            if node not in survey.leaving and len(known) == 1:
                leases[column] = LeaseHandle(node, known.pop())
        sender = self._sender(survey, leases)
        for column in leases:
            sender.done[column].update({*range(segments_of(manifest))} - {*damaged[column]})
        reason = await self._send(survey, sender, None) or sender.given_up
        ref = ids.short(survey.maintained.ref)
        if reason:
            self._context.log.info("repair.shard_not_rewritten", object=ref, reason=reason)
        for item in held_of(sender.held):
            # It takes the place of what was counted already.
            await self._client.note_freed(item.node, item.lease_id, item.size_bytes)
        done = sum(len(sender.done[column] & {*damaged[column]}) for column in leases)
        if done:
            self._context.log.info("repair.shards_rewritten", object=ref, shards=done)
        return done
