"""Stores bodies in a shard store: the room that they take, their order and their commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from xsc.base.clock import Executor, run_sized
from xsc.base.errors import NotAllowed, XscError
from xsc.base.limits import KIB
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.access import WriteAccess
from xsc.storage.shardstore.bodies import Body, IndexEntry
from xsc.storage.shardstore.committer import Committer
from xsc.storage.shardstore.compactor import Compactor
from xsc.storage.shardstore.damage import DamagedBodies
from xsc.storage.shardstore.index import ShardIndex
from xsc.storage.shardstore.tombstones import Tombstones
from xsc.storage.shardstore.write_rules import WritePlan, changes_of, plan_write


@dataclass(slots=True, eq=False)
class Write:
    """Bodies of one object and customer that are to be stored, all or none."""

    bodies: Sequence[Body]
    told: Callable[[Mapping[bytes, int]], None] = lambda _: None
    """Called once with what was stored, also where the caller was cancelled; empty: nothing."""
    keys: list[bytes] = field(init=False)
    owner: tuple[bytes, bytes] = field(init=False)
    reserved: int = 0
    stored: Mapping[bytes, int] = field(default_factory=dict)
    """How many bytes more are held under each lease, once it is planned."""
    fault: XscError | None = None
    begun: bool = False
    """It is no longer waiting for others."""
    done: bool = False

    def __post_init__(self) -> None:
        """Collect keys and owner."""
        self.keys = [body.index_key for body in self.bodies]
        owners = {(body.locate, body.customer) for body in self.bodies}
        assert len(set(self.keys)) == len(self.keys)
        assert len(owners) == 1
        self.owner = owners.pop()


class ShardWriter:
    """Stores writes, and never more than the capacity."""

    def __init__(
        self,
        *,
        capacity_bytes: int,
        index: ShardIndex,
        damaged: DamagedBodies,
        access: WriteAccess,
        committer: Committer,
        compactor: Compactor,
        tombstones: Tombstones,
        executor: Executor,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self._index = index
        self._damaged = damaged
        self._access = access
        self._committer = committer
        self._compactor = compactor
        self._tombstones = tombstones
        self._executor = executor
        self.reserved_bytes = 0
        """Bytes that are being written."""

    @property
    def free_bytes(self) -> int:
        """Bytes that can still be stored."""
        return max(0, self.capacity_bytes - self._index.used_bytes - self.reserved_bytes)

    async def store_together(self, writes: Sequence[Write]) -> list[Mapping[bytes, int] | XscError]:
        """Store several writes in one commit; see `StorageNode.store_together`."""
        ready: list[Write] = []
        later: list[Write] = []
        for write in writes:
            # Before anything is awaited: what is free is never shown to two writers.
            write.reserved = min(self.free_bytes, sum(body.held_bytes for body in write.bodies))
            self.reserved_bytes += write.reserved
            if self._access.may_write(write.owner, write.keys):
                self._begin(write)
                ready.append(write)
            else:
                later.append(write)
        begun = self._access.finish(asyncio.create_task(self._written(ready)))
        if later:
            await asyncio.gather(begun, *map(self._later, later))
        else:
            await begun
        return [write.stored if write.fault is None else write.fault for write in writes]

    def _begin(self, write: Write) -> None:
        write.begun = True
        self._access.begin_write(write.owner, write.keys)
        if self._tombstones.has(*write.owner):
            write.fault = NotAllowed("that object was deleted here meanwhile")

    def _later(self, write: Write) -> asyncio.Task[None]:
        """Store one that must wait for others to end."""

        async def run() -> None:
            await self._access.until(lambda: self._access.may_write(write.owner, write.keys))
            self._begin(write)
            await self._access.finish(asyncio.create_task(self._written([write])))

        def give_up(_: asyncio.Task[None]) -> None:
            if not write.begun:
                self.reserved_bytes -= write.reserved
                write.told({})

        task = asyncio.create_task(run())
        # Not in the task itself: one that is cancelled before its first step runs nothing.
        task.add_done_callback(give_up)
        return task

    async def _written(self, writes: Sequence[Write]) -> None:
        """Store what has begun; afterwards free its places and tell its customers."""
        try:
            await self._store([write for write in writes if write.fault is None])
        finally:
            for write in writes:
                self.reserved_bytes -= write.reserved
                self._access.end_write(write.owner, write.keys)
            self._access.release()
            for write in writes:
                write.told(write.stored if write.done else {})

    async def _store(self, writes: Sequence[Write]) -> None:
        committer = self._committer
        try:
            await committer.catch_up()
            # By what is read, not by what is stored: an entry has some 100 bytes.
            keys = [key for write in writes for key in write.keys]
            held = await run_sized(self._executor, len(keys) * KIB, self._index.entries, keys)
            fresh: list[Body] = []
            replaced: list[IndexEntry] = []
            growing: list[Write] = []
            for write in writes:
                plan = self._plan(write, held)
                if plan is not None and plan.fresh:
                    growing.append(write)
                    fresh += plan.fresh
                    replaced += plan.replaced
            writes = growing
            if not writes:
                return
            sequences = committer.take_sequences(len(fresh))
            size = sum(body.size_bytes for body in fresh)
            changes = await run_sized(self._executor, size, changes_of, fresh, sequences, replaced)
            await committer.commit(sequences, changes)
            puts = [
                (body.index_key, formats.entry_of(body, sequence))
                for body, sequence in zip(fresh, sequences, strict=True)
            ]
            await committer.index(sequences, puts, [])
            for write in writes:
                write.done = True
        except XscError as fault:
            for write in writes:
                write.fault = write.fault or type(fault)(fault.message, hint=fault.hint)
            return
        notes = self._damaged.forget([old.sequence for old in replaced])
        if notes:
            await self._executor.run(self._damaged.drop_notes, notes)
        self._compactor.note_dead(replaced)

    def _plan(self, write: Write, held: Mapping[bytes, IndexEntry]) -> WritePlan | None:
        """Plan a write and reserve the room that it takes; None where it is refused."""
        free = self.free_bytes + write.reserved
        self.reserved_bytes -= write.reserved
        write.reserved = 0
        try:
            plan = plan_write(
                write.bodies,
                held,
                self._damaged,
                free_bytes=free,
                capacity_bytes=self.capacity_bytes,
            )
        except XscError as fault:
            write.fault = fault
            return None
        write.stored = plan.growth
        write.reserved = max(0, plan.growth.total())
        self.reserved_bytes += write.reserved
        return plan
