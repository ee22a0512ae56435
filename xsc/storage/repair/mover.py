"""Moves columns to other hosts, and rewrites damaged shards where they are.

Order: the hosts that will be sent to are written down, synced; then the shards are
sent; then the new placement is written, synced. After a crash at any point the next
survey finds the object as it is. Design: docs/design/storage-repair.md, R6 and R7.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from xsc.api.objects import Moved
from xsc.base.errors import XscError
from xsc.base.ids import short
from xsc.base.limits import STORE_REQUEST_BYTES_MAX
from xsc.identity.context import Context
from xsc.storage.object.erasure import Buffer, StorageShard
from xsc.storage.object.inventory import Wanted
from xsc.storage.object.manifest import code_of, segments_of
from xsc.storage.object.messages import GET_MAX
from xsc.storage.object.placement import placement_of
from xsc.storage.object.rebuild import rebuild
from xsc.storage.object.receipts import shards_of
from xsc.storage.object.segment import length_of
from xsc.storage.ports import HostLease
from xsc.storage.repair.bandwidth import Bandwidth
from xsc.storage.repair.damage import damaged_segments, good_for
from xsc.storage.repair.maintained_object import MaintainedObject, MaintainedObjects, marks, merged
from xsc.storage.repair.migration import next_move
from xsc.storage.repair.room import KnownLease, delete_at, room_at
from xsc.storage.repair.survey import Survey, bytes_of_column, bytes_of_record
from xsc.storage.transfer.get import Located, roots_of
from xsc.storage.transfer.host_client import HostClient, Source, together
from xsc.storage.transfer.put import Held
from xsc.storage.transfer.race import in_order, race

DELETED = "it is being deleted"

Progress: TypeAlias = Callable[[int, int], None]
"""Is called with how many segments of how many are done."""


@dataclass(slots=True)
class _Transfer:
    """Columns under way to their new hosts."""

    leases: dict[int, HostLease]
    """By column; those that failed are left out."""
    held: list[Held]
    """What was held before, without what was deleted since."""
    sent: list[Held] = field(default_factory=list)
    """What hosts confirmed."""
    fault: str = ""

    def fail(self, reason: str) -> None:
        """Give up all columns."""
        self.leases, self.fault = {}, reason


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
        ref = short(survey.maintained.ref)
        self._context.log.warning("repair.failed", object=ref, reason=fault.message)

    # Where to

    async def choose(
        self, survey: Survey, available: Collection[bytes]
    ) -> tuple[dict[int, HostLease], str]:
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
        chosen: dict[int, HostLease] = {}
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
        self, survey: Survey, chosen: dict[int, HostLease], progress: Progress | None
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
        transfer = _Transfer(dict(chosen), list(maintained.held))
        try:
            await self._transfer(survey, transfer, progress)
        except XscError as fault:
            transfer.fail(fault.message)
        leases = dict(sorted(transfer.leases.items()))
        held = merged(transfer.held, transfer.sent)
        if not leases:
            await self._objects.save(maintained.ref, maintained.placement, held)
            return replace(maintained, held=held), (), transfer.fault
        columns = list(survey.columns)
        for column, lease in leases.items():
            columns[column] = lease.node
        # The object record goes to the new hosts, too.
        held = (*held, *marks(leases.values()))
        maintained = replace(
            maintained, placement=placement_of(located.manifest, columns), held=held
        )
        if not await self._objects.save(maintained.ref, maintained.placement, held):
            return maintained, (), DELETED
        moved = tuple(
            Moved(shard=column, from_=survey.columns[column], to=lease.node)
            for column, lease in leases.items()
        )
        return maintained, moved, transfer.fault

    async def _transfer(
        self, survey: Survey, transfer: _Transfer, progress: Progress | None
    ) -> None:
        for column, lease in transfer.leases.items():
            if survey.columns[column] == lease.node and column in survey.displaced:
                # What the host has of the column is not what it should be.
                transfer.held = await delete_at(
                    self._client, survey, lease.node, frozenset({column}), transfer.held
                )
        to_send = await self._keep_in_place(survey, transfer)
        count = segments_of(survey.manifest) if to_send else 0
        for index in range(count):
            if self._objects.load(survey.maintained.ref) is None:
                transfer.fail(DELETED)
                return
            shards = await self._build(survey, index, sorted(to_send & set(transfer.leases)))
            answers = await together(
                self._send(transfer.leases[shard.column], survey.located, index, shard)
                for shard in shards
            )
            for shard, (size, fault) in zip(shards, answers, strict=True):
                lease = transfer.leases[shard.column]
                transfer.sent.append(Held(lease.node, lease.lease_id, size))
                if fault:
                    transfer.fault = fault
                    del transfer.leases[shard.column]
            if not to_send & set(transfer.leases):
                return
            if progress is not None:
                progress(index + 1, count)

    async def _keep_in_place(self, survey: Survey, transfer: _Transfer) -> set[int]:
        """Put columns that stay under their new leases without a transfer; return the others."""
        located, to_send = survey.located, set(transfer.leases)
        for column, lease in sorted(transfer.leases.items()):
            if survey.columns[column] != lease.node or column in survey.displaced:
                continue
            shards = shards_of(located.manifest, column)
            most = max(1, STORE_REQUEST_BYTES_MAX // max((s.size_bytes for s in shards), default=1))
            most = min(most, GET_MAX)
            generation = located.manifest.generation
            try:
                for start in range(0, len(shards), most):
                    batch = shards[start : start + most]
                    size = await self._client.keep(lease, located.locate, generation, batch)
                    transfer.sent.append(Held(lease.node, lease.lease_id, size))
            except XscError as fault:
                self._failed(survey, fault)
                continue
            to_send.discard(column)
        return to_send

    # Shards

    async def _build(
        self, survey: Survey, index: int, columns: Sequence[int]
    ) -> list[StorageShard]:
        """Return shards of a segment: copied from where they still are, else rebuilt."""
        manifest = survey.manifest
        code = code_of(manifest)
        length = length_of(index, manifest.size_bytes, manifest.segment_bytes)
        await self._bandwidth.take(code.shard_bytes(length) * (len(columns) + manifest.k))
        if all(survey.states[column] == "ok" for column in columns):
            try:
                return await together(self._copy(survey, index, column) for column in columns)
            except XscError as fault:
                self._failed(survey, fault)
        good = [column for column, state in enumerate(survey.states) if state == "ok"]
        return await self._rebuild(survey, index, good, columns)

    async def _rebuild(
        self, survey: Survey, index: int, good: Sequence[int], columns: Sequence[int]
    ) -> list[StorageShard]:
        """Return shards of a segment, built from k of the good columns."""
        manifest = survey.manifest
        length = length_of(index, manifest.size_bytes, manifest.segment_bytes)
        sources = [Source(column, survey.columns[column]) for column in good]
        got = await race(
            self._client,
            locate=survey.located.locate,
            generation=manifest.generation,
            segment=index,
            roots=roots_of(manifest, index),
            sources=in_order(self._client, sources, manifest.k),
            k=manifest.k,
            size_bytes=code_of(manifest).shard_bytes(length),
        )
        return await self._context.executor.run(rebuild, got, code_of(manifest), length, columns)

    async def _copy(self, survey: Survey, index: int, column: int) -> StorageShard:
        manifest = survey.manifest
        root = roots_of(manifest, index)[column]
        length = length_of(index, manifest.size_bytes, manifest.segment_bytes)
        data: Buffer = await self._client.fetch(
            survey.columns[column],
            survey.located.locate,
            manifest.generation,
            Wanted(index, column, root, None, code_of(manifest).shard_bytes(length)),
        )
        return StorageShard(column, data, root)

    async def _send(
        self, lease: HostLease, located: Located, index: int, shard: StorageShard
    ) -> tuple[int, str]:
        """Store a shard; return the bytes confirmed, or why there are none."""
        try:
            size = await self._client.store(
                lease,
                located.locate,
                located.manifest.generation,
                shards=[(index, shard)],
                record=None,
            )
        except XscError as fault:
            return 0, fault.message
        return size, ""

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
            lease = KnownLease(node, leases[0])
            try:
                for segment in segments:
                    size, fault = await self._rewrite(survey, lease, segment, column)
                    if fault:
                        self._context.log.info(
                            "repair.shard_not_rewritten", peer=short(node), reason=fault
                        )
                        break
                    # It takes the place of what was counted already.
                    await self._client.note_freed(node, lease.lease_id, size)
                    done += 1
            except XscError as fault_error:
                self._failed(survey, fault_error)
        if done:
            ref = short(survey.maintained.ref)
            self._context.log.info("repair.shards_rewritten", object=ref, shards=done)
        return done

    async def _rewrite(
        self, survey: Survey, lease: HostLease, segment: int, column: int
    ) -> tuple[int, str]:
        """Build one damaged shard from columns that are whole in this segment, and store it."""
        manifest = survey.manifest
        length = length_of(segment, manifest.size_bytes, manifest.segment_bytes)
        await self._bandwidth.take(code_of(manifest).shard_bytes(length) * (1 + manifest.k))
        good = good_for(manifest, survey.columns, survey.answers, segment)
        (shard,) = await self._rebuild(survey, segment, good, [column])
        return await self._send(lease, survey.located, segment, shard)
