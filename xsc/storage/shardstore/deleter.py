"""Deletes what customers have in a shard store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xsc.base.clock import Executor
from xsc.base.keyvalue import Change
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.access import WriteAccess
from xsc.storage.shardstore.committer import Committer
from xsc.storage.shardstore.compactor import Compactor
from xsc.storage.shardstore.damage import DamagedBodies
from xsc.storage.shardstore.index import Choose, Put, ShardIndex


class ShardDeleter:
    """Deletes entries of one customer and object while nothing else of them is written."""

    def __init__(
        self,
        *,
        index: ShardIndex,
        damaged: DamagedBodies,
        access: WriteAccess,
        committer: Committer,
        compactor: Compactor,
        executor: Executor,
    ) -> None:
        self._index = index
        self._damaged = damaged
        self._access = access
        self._committer = committer
        self._compactor = compactor
        self._executor = executor

    async def delete(
        self,
        locate: bytes,
        customer: bytes,
        chosen: Choose | None = None,
        only_if: Callable[[], bool] | None = None,
    ) -> dict[bytes, int]:
        """Delete entries of a customer of an object; return the bytes freed under each lease.

        A cancelled call goes on once it has begun.

        Args:
            locate: of the object.
            customer: whose part of it.
            chosen: selects the entries; None: all.
            only_if: asked in the executor before anything is deleted; nothing is if it says no.
        """
        owner = (locate, customer)
        await self._access.begin_delete(owner)

        async def run() -> dict[bytes, int]:
            try:
                if only_if is not None and not await self._executor.run(only_if):
                    return {}
                return await self._delete(locate, customer, chosen)
            finally:
                self._access.end_delete(owner)

        return await self._access.finish(asyncio.create_task(run()))

    async def _delete(
        self, locate: bytes, customer: bytes, chosen: Choose | None
    ) -> dict[bytes, int]:
        freed: dict[bytes, int] = {}
        while True:
            await self._committer.catch_up()
            mine = await self._executor.run(self._index.owned, locate, customer, chosen)
            if not mine:
                return freed
            await self._delete_batch(mine)
            for _, entry in mine:
                freed[entry.lease_id] = freed.get(entry.lease_id, 0) + entry.held_bytes
            notes = self._damaged.forget([entry.sequence for _, entry in mine])
            if notes:
                await self._executor.run(self._damaged.drop_notes, notes)
            self._compactor.note_dead([entry for _, entry in mine])

    async def _delete_batch(self, mine: list[Put]) -> None:
        """Commit and index the deletion of some entries."""
        (note,) = self._committer.take_sequences(1)
        drops = [(key, entry.sequence) for key, entry in mine]
        changes: list[Change] = [
            (formats.sequenced(prefix, entry.sequence), None)
            for prefix in (formats.BODIES, formats.DAMAGED)
            for _, entry in mine
            if prefix == formats.BODIES or entry.sequence in self._damaged
        ]
        gone = formats.encode_gone(drops)
        changes.append((formats.sequenced(formats.GONE, note), gone))
        await self._committer.commit([note], changes)
        self._compactor.note_gone(len(gone))
        await self._committer.index([note], [], drops)
