"""The shard store of one host: what it holds, for whom, and never more than it may.

Laws (tests/unit/storage/shardstore/test_store.py):

- what `store` returned for is synced, and survives a power loss;
- used and reserved bytes never pass the capacity; both are known exactly;
- the index is disposable: rebuilt from the bodies it says the same;
- `get` gives the bytes of the root that was asked for, or says why not;
- only the customer that stored a body can replace or delete it.

Bodies are appended and synced by the commit port, which concurrent writers
share; the index follows unsynced and is caught up from its high-water mark at
the start. Formats: `xsc.storage.shardstore.bodies`. docs/design/storage.md.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from xsc.base.clock import Executor, run_sized
from xsc.base.errors import (
    NotAllowed,
    ShardMismatch,
    SpaceExhausted,
    StoreDamaged,
    TooLarge,
    XscError,
)
from xsc.base.gather import Gather
from xsc.base.ids import ID_BYTES
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.limits import (
    DAMAGED_TOLD_MAX,
    GONE_BYTES_MAX,
    KIB,
    PEER_BODY_BYTES_MAX,
    STAT_READ_BYTES_MAX,
    STAT_ROWS_MAX,
)
from xsc.base.log import Log
from xsc.storage.object.erasure import Buffer
from xsc.storage.object.inventory import (
    ColumnPresence,
    FoundShard,
    HeldColumn,
    HeldObject,
    HeldRecord,
    HeldState,
    Span,
    Wanted,
    cut_found,
)
from xsc.storage.object.manifest import column_digest, hash_of
from xsc.storage.ports import Commit
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Body, IndexEntry, RecordBody, ShardBody
from xsc.storage.shardstore.fsck import Damage, StoreAudit, compare, scan_bodies
from xsc.storage.shardstore.reclaim import DeadSpace, Slice, live_by_bucket
from xsc.storage.shardstore.scan import SEQUENCE_MAX, Gaps, readable
from xsc.storage.shardstore.tombstones import Tombstones

T = TypeVar("T")
Choose: TypeAlias = Callable[[bytes, IndexEntry], bool]
"""Says of an entry whether it is meant."""

DELETE_BATCH = 512
"""Bodies deleted in one write."""
REBUILD_BATCH = 256
"""Bodies indexed in one write."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a start did to bring the index up to date."""

    rebuilt: bool
    replayed: int
    damaged: int
    """Bodies that could not be read; whoever stored them finds out by stat."""


@dataclass(frozen=True, slots=True, eq=False)
class _Settling:
    """Bodies on the disk that the index does not know yet."""

    sequences: Sequence[int]
    puts: Sequence[tuple[bytes, IndexEntry]]
    drops: Sequence[tuple[bytes, int]]


@dataclass(slots=True, eq=False)
class Write:
    """Bodies of one object and customer that are to be stored, all or none."""

    bodies: Sequence[Body]
    told: Callable[[Mapping[bytes, int]], None] = lambda _: None
    """Hears once what was stored, also where the call was cancelled; where nothing was, nothing."""
    keys: list[bytes] = field(init=False)
    owner: tuple[bytes, bytes] = field(init=False)
    reserved: int = 0
    fresh: list[Body] = field(default_factory=list)
    """What must be written, for there is none of it."""
    replaced: list[IndexEntry] = field(default_factory=list)
    held: Counter[bytes] = field(default_factory=Counter)
    fault: XscError | None = None
    begun: bool = False
    """It is no longer waiting for others."""
    done: bool = False

    def __post_init__(self) -> None:
        """Look at what there is."""
        self.keys = [body.index_key for body in self.bodies]
        owners = {(body.locate, body.customer) for body in self.bodies}
        assert len(set(self.keys)) == len(self.keys)
        assert len(owners) == 1
        self.owner = owners.pop()


def _of_columns(columns: frozenset[int]) -> Choose:
    """Return what chooses the shards of some columns."""

    def chosen(key: bytes, _: IndexEntry) -> bool:
        return key.startswith(formats.SHARDS) and formats.column_of_key(key)[1] in columns

    return chosen


class StorageNode:
    """Stores shards and object records for customers, this node among them.

    `start` must have returned before anything else is called.
    """

    def __init__(
        self,
        *,
        capacity_bytes: int,
        bodies: KeyValue,
        index: KeyValue,
        commit: Commit,
        executor: Executor,
        log: Log,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self._bodies = bodies
        self._index = index
        self._commit = commit
        self._executor = executor
        self._log = log
        self._used = 0
        self._reserved = 0
        self._usage: dict[bytes, int] = {}
        self._next = 1
        self._open: set[int] = set()
        self._damaged: dict[int, Damage] = {}
        self._unsettled: list[_Settling] = []
        self._pausing = False
        self._writing: set[bytes] = set()
        self._writers: dict[tuple[bytes, bytes], int] = {}
        self._deleting: set[tuple[bytes, bytes]] = set()
        self._freed = asyncio.Event()
        self._tombstones = Tombstones()
        self._settling: Gather[None, _Settling, None] = Gather(self._settle_all, all_run=True)
        self._indexing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._dead = DeadSpace()
        self._started = False
        self._gone_bytes = 0
        self._missing = range(0)
        self._replaced: list[int] | None = None
        """While an index is made anew: bodies of which a later one takes the place."""

    @property
    def used_bytes(self) -> int:
        """What the shards and object records held count for."""
        return self._used

    @property
    def reserved_bytes(self) -> int:
        """Bytes that are being written."""
        return self._reserved

    @property
    def free_bytes(self) -> int:
        """Bytes that can still be stored."""
        return max(0, self.capacity_bytes - self._used - self._reserved)

    @property
    def usage(self) -> Mapping[bytes, int]:
        """Bytes held under each lease."""
        return MappingProxyType(self._usage)

    # Starting

    async def start(self, *, rebuild: bool = False) -> Recovery:
        """Bring the index up to date with the bodies, or make it anew.

        Raises:
            StoreDamaged: the bodies cannot be read, or the index not even be emptied.
        """
        recovery = await self._executor.run(self._load, rebuild)
        self._started = True
        self._log.info(
            "storage.started",
            rebuilt=recovery.rebuilt,
            replayed=recovery.replayed,
            damaged=recovery.damaged,
            used_bytes=self._used,
        )
        return recovery

    def _load(self, rebuild: bool) -> Recovery:
        found = None if rebuild or not self._notes_whole() else self._read_index()
        known = 0
        if found is None:
            known = self._known()
            self._empty_index()
            self._replaced = []
        mark = found or 0
        replayed, damaged = self._replay(mark, known)
        replaced, self._replaced = self._replaced or [], None
        # Only once the index is on the disk may the notes of deletions go.
        mark = self._next - 1
        self._index.write(
            [(formats.MARK, formats.encode_number(mark)), (formats.CLOSED, None)], sync=True
        )
        # The index never knows more than the bodies, unless they have lost the end of a log.
        last = max(self._last_body(), *self._damaged, 0)
        self._missing = range(last + 1, self._next)
        gone = readable(self._bodies, formats.GONE, 0, Gaps())
        notes: list[Change] = [(key, None) for _, key, _ in gone]
        # Salvage brings back what was deleted: it has no entry, and never would have one.
        notes += [(formats.sequenced(formats.BODIES, number), None) for number in replaced]
        if notes:
            self._bodies.write(notes, sync=False)
        return Recovery(found is None, replayed, damaged)

    def _last_body(self) -> int:
        """Return the highest sequence of a body; where it cannot be read, as if none was lost."""
        try:
            for key, _ in self._bodies.scan(
                formats.BODIES, prefix_end(formats.BODIES), reverse=True
            ):
                return formats.sequence_of(key)
        except StoreDamaged:
            return self._next - 1
        return 0

    async def close(self) -> None:
        """Note that the index is whole: the next start need not go through all of it.

        Raises:
            SpaceExhausted, StoreDamaged: it cannot be noted.
        """
        if not self._started:
            return
        async with self._quiet():
            if not self._unsettled:
                await self._executor.run(self._note_closed)

    def _note_closed(self) -> None:
        mark = self._index.get(formats.MARK)
        if mark is not None:
            self._index.write([(formats.CLOSED, mark)], sync=True)

    def _notes_whole(self) -> bool:
        """Say whether every note of a deletion can be read: else the index may not be trusted."""
        gaps = Gaps()
        for _, _, value in readable(self._bodies, formats.GONE, 0, gaps):
            try:
                formats.decode_gone(value)
            except StoreDamaged:
                return False
        return not gaps.ranges

    def _read_index(self) -> int | None:
        """Read mark and usage; None where the index is missing or damaged."""
        try:
            raw = self._index.get(formats.MARK)
            if raw is None:
                return None
            mark = formats.decode_number(raw)
            end = prefix_end(formats.USAGE)
            self._usage = {
                key[1:]: formats.decode_number(value)
                for key, value in self._index.scan(formats.USAGE, end)
            }
            # The last write before the store was closed: where it is there, all of it is.
            if self._index.get(formats.CLOSED) != raw and self._sums() != self._usage:
                self._log.warning("storage.index_damaged", reason="it has lost entries")
                return None
        except StoreDamaged as fault:
            self._log.warning("storage.index_damaged", reason=fault.message)
            return None
        self._used = sum(self._usage.values())
        self._next = mark + 1
        return mark

    def _sums(self) -> dict[bytes, int]:
        """Return the bytes under each lease by the entries, as the totals should be."""
        sums: dict[bytes, int] = {}
        for prefix in (formats.SHARDS, formats.RECORDS):
            for _, raw in self._index.scan(prefix, prefix_end(prefix)):
                entry = formats.decode_entry(raw)
                sums[entry.lease_id] = sums.get(entry.lease_id, 0) + entry.held_bytes
        return sums

    def _empty_index(self) -> None:
        self._usage = {}
        self._used = 0
        self._next = 1
        batch: list[Change] = []
        for key, _ in self._index.scan(b""):
            batch.append((key, None))
            if len(batch) == DELETE_BATCH:
                self._index.write(batch, sync=False)
                batch = []
        if batch:
            self._index.write(batch, sync=False)

    def _known(self) -> int:
        """Return up to which sequence the index knows the bodies, where it can be read."""
        try:
            raw = self._index.get(formats.MARK)
            return 0 if raw is None else formats.decode_number(raw)
        except StoreDamaged:
            return 0

    def _replay(self, mark: int, known: int) -> tuple[int, int]:
        replayed = damaged = 0
        puts: list[tuple[bytes, IndexEntry]] = []
        drops: list[tuple[bytes, int]] = []
        gaps = Gaps()
        gone: set[int] = set()
        events = heapq.merge(
            readable(self._bodies, formats.BODIES, mark, gaps, known),
            readable(self._bodies, formats.GONE, mark, Gaps(), known),
        )
        for sequence, key, value in events:
            self._next = sequence + 1
            try:
                if key.startswith(formats.GONE):
                    drops.extend(formats.decode_gone(value))
                    gone.update(dropped for _, dropped in drops)
                else:
                    body = formats.decode_body(value)
                    puts.append((body.index_key, formats.entry_of(body, sequence)))
            except StoreDamaged as fault:
                damaged += 1
                self._log.error("storage.body_damaged", sequence=sequence, reason=fault.message)
            replayed += 1
            # A note must see what was put before it, and nothing that came later.
            if drops or len(puts) == REBUILD_BATCH:
                self._apply(puts, drops, sequence)
                puts, drops = [], []
        if puts:
            self._apply(puts, drops, self._next - 1)
        if gaps.ranges:
            self._next = max(self._next, known + 1)
        for first, last in gaps.ranges:
            damaged += 1
            self._log.error("storage.bodies_unreadable", first=first, last=last)
            if last < SEQUENCE_MAX:
                self._next = max(self._next, last + 1)
        self._recall(mark, gone, known)
        return replayed, damaged

    def _recall(self, mark: int, gone: set[int], known: int) -> None:
        """Read the notes of damage; what one is about keeps its place and its bytes.

        A note can have come to the disk beside the deletion of its body: what was deleted,
        by a note of that or by an index that knew it once, does not come back.
        """
        stale: list[Change] = []
        self._damaged = {}
        for sequence, note, value in readable(self._bodies, formats.DAMAGED, 0, Gaps(), known):
            self._next = max(self._next, sequence + 1)
            try:
                key, entry, reason = formats.decode_damaged(value)
            except StoreDamaged as fault:
                self._log.error("storage.note_damaged", sequence=sequence, reason=fault.message)
                stale.append((note, None))
                continue
            held = self._entry(key)
            if held is None and sequence > mark and sequence not in gone:
                self._apply([(key, entry)], [], self._next - 1)
                held = entry
            if held is not None and held.sequence == sequence:
                self._damaged[sequence] = Damage(key, entry, reason)
            else:
                stale.append((note, None))
        if stale:
            self._bodies.write(stale, sync=False)

    # The index. `_apply` runs in the executor, one at a time.

    def _entry(self, key: bytes) -> IndexEntry | None:
        raw = self._index.get(key)
        return None if raw is None else formats.decode_entry(raw)

    def _entries(self, keys: Sequence[bytes]) -> dict[bytes, IndexEntry]:
        found = ((key, self._entry(key)) for key in keys)
        return {key: entry for key, entry in found if entry is not None}

    def _apply(
        self,
        puts: Sequence[tuple[bytes, IndexEntry]],
        drops: Sequence[tuple[bytes, int]],
        mark: int,
    ) -> None:
        """Enter bodies that were written and forget those that are gone; applying twice is once."""
        usage: dict[bytes, int] = {}
        known: dict[bytes, IndexEntry | None] = {}

        def count(lease_id: bytes, delta_bytes: int) -> None:
            usage[lease_id] = usage.get(lease_id, self._usage.get(lease_id, 0)) + delta_bytes

        for key, entry in puts:
            old = known[key] if key in known else self._entry(key)
            if old is not None and old.sequence >= entry.sequence:
                continue
            if old is not None:
                count(old.lease_id, -old.held_bytes)
                if self._replaced is not None:
                    self._replaced.append(old.sequence)
            count(entry.lease_id, entry.held_bytes)
            known[key] = entry
        for key, sequence in drops:
            old = known[key] if key in known else self._entry(key)
            if old is None or old.sequence > sequence:
                continue
            count(old.lease_id, -old.held_bytes)
            known[key] = None
        changes: list[Change] = [
            (key, None if item is None else formats.encode_entry(item))
            for key, item in known.items()
        ]
        changes.extend(
            (formats.USAGE + lease_id, formats.encode_number(size) if size else None)
            for lease_id, size in usage.items()
        )
        changes.append((formats.MARK, formats.encode_number(mark)))
        self._index.write(changes, sync=False)
        for lease_id, size in usage.items():
            self._used += size - self._usage.get(lease_id, 0)
            if size:
                self._usage[lease_id] = size
            else:
                self._usage.pop(lease_id, None)

    async def _settle(
        self,
        sequences: Sequence[int],
        puts: Sequence[tuple[bytes, IndexEntry]],
        drops: Sequence[tuple[bytes, int]],
    ) -> None:
        """Bring the index up to these bodies, even if the caller is cancelled."""
        await self._settling.submit(None, _Settling(sequences, puts, drops))

    async def _settle_all(self, _key: None, group: Sequence[_Settling]) -> Sequence[None]:
        settled = {sequence for item in group for sequence in item.sequences}
        async with self._indexing:
            try:
                # A note drops by sequence, so puts may all come before all notes.
                await self._executor.run(
                    self._apply,
                    [put for item in group for put in item.puts],
                    [drop for item in group for drop in item.drops],
                    min(self._open - settled, default=self._next) - 1,
                )
            except BaseException:
                self._unsettled.extend(group)  # tried again before the next write
                raise
            self._open -= settled
        return [None] * len(group)

    async def _catch_up(self) -> None:
        """Enter what is written and could not be entered; nothing is stored or deleted before.

        Else a shard could pass for held whose body is gone, or be written a second time.

        Raises:
            SpaceExhausted, StoreDamaged: the index still cannot be written.
        """
        while self._unsettled:
            async with self._indexing:
                for item in list(self._unsettled):
                    mark = min(self._open.difference(item.sequences), default=self._next) - 1
                    await self._executor.run(self._apply, item.puts, item.drops, mark)
                    self._open.difference_update(item.sequences)
                    self._unsettled.remove(item)

    def _take_sequences(self, count: int) -> list[int]:
        taken = list(range(self._next, self._next + count))
        self._next += count
        self._open.update(taken)
        return taken

    # Turns: writers of one body wait for each other, a deletion waits for all of its object.

    async def _turn(self, free: Callable[[], bool]) -> None:
        while not free():
            await self._freed.wait()

    def _release(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()

    # Storing

    async def store(self, bodies: Sequence[Body]) -> int:
        """Store as `store_together`; return how many bytes more are held in all."""
        (held,) = await self.store_together([Write(bodies)])
        if isinstance(held, XscError):
            raise held
        return sum(held.values())

    async def store_together(self, writes: Sequence[Write]) -> list[Mapping[bytes, int] | XscError]:
        """Store several writes, each all or none, in one write to the disk.

        Returns for each, in order, how many bytes more are held under each lease: what was
        held already counts nothing, and what takes the place of another leaves less under the
        lease of that. Or why it was not stored, as one of these errors. Once begun, a cancelled
        call goes on.

            ShardMismatch: another shard or manifest is held in that place.
            NotAllowed: the customer has deleted the object for good.
            SpaceExhausted: no room; nothing of it was written.
            StoreDamaged: the disk does not take it.
        """
        ready: list[Write] = []
        later: list[Write] = []
        for write in writes:
            # Before anything is awaited: what is free is never shown to two writers.
            write.reserved = min(self.free_bytes, sum(body.held_bytes for body in write.bodies))
            self._reserved += write.reserved
            if self._may_begin(write):
                self._begin(write)
                ready.append(write)
            else:
                later.append(write)
        begun = self._finish(asyncio.create_task(self._written(ready)))
        if later:
            await asyncio.gather(begun, *map(self._later, later))
        else:
            await begun
        return [write.held if write.fault is None else write.fault for write in writes]

    def _may_begin(self, write: Write) -> bool:
        return (
            not self._pausing
            and write.owner not in self._deleting
            and self._writing.isdisjoint(write.keys)
        )

    def _begin(self, write: Write) -> None:
        write.begun = True
        self._writing.update(write.keys)
        self._writers[write.owner] = self._writers.get(write.owner, 0) + 1
        if self._tombstones.has(*write.owner):
            write.fault = NotAllowed("that object was deleted here meanwhile")

    def _later(self, write: Write) -> asyncio.Task[None]:
        """Store one that must wait for others to end."""

        async def run() -> None:
            await self._turn(lambda: self._may_begin(write))
            self._begin(write)
            await self._finish(asyncio.create_task(self._written([write])))

        def give_up(_: asyncio.Task[None]) -> None:
            if not write.begun:
                self._reserved -= write.reserved
                write.told({})

        task = asyncio.create_task(run())
        # Not in the task itself: one that is cancelled before its first step runs nothing.
        task.add_done_callback(give_up)
        return task

    def _finish(self, task: asyncio.Task[T]) -> asyncio.Future[T]:
        """Return what waits for a task, which goes on where the waiting is cancelled."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asyncio.shield(task)

    async def _written(self, writes: Sequence[Write]) -> None:
        """Store what has begun; afterwards its places are free and its customers told."""
        try:
            await self._store([write for write in writes if write.fault is None])
        finally:
            for write in writes:
                self._reserved -= write.reserved
                self._writing.difference_update(write.keys)
                self._writers[write.owner] -= 1
                if not self._writers[write.owner]:
                    del self._writers[write.owner]
            self._release()
            for write in writes:
                write.told(write.held if write.done else {})

    async def _store(self, writes: Sequence[Write]) -> None:
        try:
            await self._catch_up()
            # By what is read, not by what is stored: an entry has some 100 bytes.
            keys = [key for write in writes for key in write.keys]
            held = await run_sized(self._executor, len(keys) * KIB, self._entries, keys)
            for write in writes:
                self._weigh(write, held)
            writes = [write for write in writes if write.fresh and write.fault is None]
            if not writes:
                return
            fresh = [body for write in writes for body in write.fresh]
            replaced = [old for write in writes for old in write.replaced]
            sequences = self._take_sequences(len(fresh))
            size = sum(body.size_bytes for body in fresh)
            changes = await run_sized(
                self._executor, size, self._changes, fresh, sequences, replaced
            )
            await self._committed(sequences, changes)
            puts = [
                (body.index_key, formats.entry_of(body, sequence))
                for body, sequence in zip(fresh, sequences, strict=True)
            ]
            await self._settle(sequences, puts, [])
            for write in writes:
                write.done = True
        except XscError as fault:
            for write in writes:
                write.fault = write.fault or type(fault)(fault.message, hint=fault.hint)
            return
        await self._forget_damage([old.sequence for old in replaced])
        self._bury(replaced)

    def _weigh(self, write: Write, held: Mapping[bytes, IndexEntry]) -> None:
        """Find out what must be written, and take the room for it."""
        free = self.free_bytes + write.reserved
        self._reserved -= write.reserved
        write.reserved = 0
        try:
            for body in write.bodies:
                old = held.get(body.index_key)
                if old is not None:
                    if not self._replaces(body, old):
                        continue
                    write.replaced.append(old)
                write.fresh.append(body)
        except XscError as fault:
            write.fault = fault
            return
        for body in write.fresh:
            write.held[body.lease_id] += body.held_bytes
        for old in write.replaced:
            write.held[old.lease_id] -= old.held_bytes
        growth = write.held.total()
        if growth > free:
            write.fault = SpaceExhausted(
                f"no room for {growth} bytes: {free} of {self.capacity_bytes} are free"
            )
            return
        write.reserved = max(0, growth)
        self._reserved += write.reserved

    async def _committed(self, sequences: Sequence[int], changes: list[Change]) -> None:
        """Commit; a write that failed has changed nothing, and its sequences are of nobody."""
        try:
            await self._commit(changes)
        except XscError:
            self._open.difference_update(sequences)
            raise

    def _replaces(self, body: Body, old: IndexEntry) -> bool:
        """Say whether a body must be written although there is an entry in its place."""
        if body.proof != old.proof:
            what = "shard" if isinstance(body, ShardBody) else "manifest"
            raise ShardMismatch(f"another {what} is held in that place already")
        return old.sequence in self._damaged

    @staticmethod
    def _changes(
        fresh: Sequence[Body], sequences: Sequence[int], replaced: Sequence[IndexEntry]
    ) -> list[Change]:
        changes: list[Change] = [
            (formats.sequenced(formats.BODIES, sequence), formats.encode_body(body))
            for body, sequence in zip(fresh, sequences, strict=True)
        ]
        for old in replaced:
            changes.append((formats.sequenced(formats.BODIES, old.sequence), None))
            changes.append((formats.sequenced(formats.DAMAGED, old.sequence), None))
        return changes

    # Reading

    async def get(
        self,
        locate: bytes,
        generation: int,
        wanted: Sequence[Wanted],
        *,
        size_max: int = PEER_BODY_BYTES_MAX,
    ) -> list[FoundShard]:
        """Return the shards that were asked for, each verified against its root.

        Raises:
            TooLarge: together they have more than `size_max` bytes; none was read.
        """
        return await self._executor.run(self._get, locate, generation, wanted, size_max)

    def _get(
        self, locate: bytes, generation: int, wanted: Sequence[Wanted], size_max: int
    ) -> list[FoundShard]:
        held = [self._wanted(locate, generation, want) for want in wanted]
        size = sum(item[1].size_bytes for item in held if item is not None)
        if size > size_max:
            raise TooLarge(f"{size} bytes were asked for at once, at most {size_max} are given")
        return [
            FoundShard("missing") if item is None else self._read_shard(*item, want.span)
            for item, want in zip(held, wanted, strict=True)
        ]

    def _wanted(
        self, locate: bytes, generation: int, want: Wanted
    ) -> tuple[bytes, IndexEntry] | None:
        prefix = formats.shards_prefix(locate, generation, want.segment) + bytes([want.column])
        for key, raw in self._index.scan(prefix, prefix_end(prefix)):
            entry = formats.decode_entry(raw)
            if entry.proof == want.root:
                return key, entry
        return None

    def _body(self, entry: IndexEntry) -> Body | None:
        """Return the body of an entry, unverified; None where it is gone or cannot be read."""
        try:
            # Whoever asks holds it against the entry's hash, which is more than sums can say.
            key = formats.sequenced(formats.BODIES, entry.sequence)
            raw = self._bodies.get(key, verify=False)
            return None if raw is None else formats.decode_body(raw)
        except StoreDamaged as fault:
            self._log.error("storage.body_damaged", sequence=entry.sequence, reason=fault.message)
            return None

    def _read_shard(self, key: bytes, entry: IndexEntry, span: Span | None = None) -> FoundShard:
        body = self._body(entry)
        if isinstance(body, ShardBody):
            found = cut_found(body.data, entry.proof, span)
            if found is not None:
                return found
        self._note_damage(Damage(key, entry, "unreadable" if body is None else "mismatch"))
        return FoundShard("corrupt")

    async def held_shards(
        self,
        locate: bytes,
        generation: int,
        customer: bytes,
        lease_id: bytes,
        wanted: Sequence[Wanted],
    ) -> list[tuple[Wanted, int]]:
        """Return those shards that a customer has under a lease, readable, and their sizes.

        Waits for those that are being written; reads at most STAT_READ_BYTES_MAX, and says
        nothing of what lies beyond that.
        """
        prefixes = [
            formats.shards_prefix(locate, generation, want.segment) + bytes([want.column])
            for want in wanted
        ]
        keys = [prefix + customer for prefix in prefixes]
        await self._turn(lambda: self._writing.isdisjoint(keys))
        return await self._executor.run(self._held_shards, keys, lease_id, wanted)

    def _held_shards(
        self, keys: Sequence[bytes], lease_id: bytes, wanted: Sequence[Wanted]
    ) -> list[tuple[Wanted, int]]:
        found: list[tuple[Wanted, int]] = []
        budget = STAT_READ_BYTES_MAX
        for key, want in zip(keys, wanted, strict=True):
            entry = self._entry(key)
            if entry is None or (entry.lease_id, entry.proof) != (lease_id, want.root):
                continue
            budget -= entry.size_bytes
            if budget < 0:
                break
            if self._read_shard(key, entry).state == "ok":
                found.append((want, entry.size_bytes))
        return found

    async def find(self, locate: bytes, manifest_hash: bytes) -> Buffer | None:
        """Return a sealed manifest, or None where it is not held whole."""
        return await self._executor.run(self._find, locate, manifest_hash)

    async def holds(
        self, locate: bytes, generation: int, manifest_hash: bytes, roots: Sequence[bytes]
    ) -> ColumnPresence:
        """Return which columns are held of which the first segment has these roots.

        Whoever stored them: another customer can neither add to the answer nor hide a column.
        """
        return await self._executor.run(self._holds, locate, generation, manifest_hash, roots)

    def _holds(
        self, locate: bytes, generation: int, manifest_hash: bytes, roots: Sequence[bytes]
    ) -> ColumnPresence:
        first = formats.shards_prefix(locate, generation, 0)

        def entries(column: int) -> Iterator[IndexEntry]:
            prefix = first + bytes([column])
            for _, raw in self._index.scan(prefix, prefix_end(prefix)):
                yield formats.decode_entry(raw)

        columns = frozenset(
            column
            for column, root in enumerate(roots)
            if any(entry.proof == root for entry in entries(column))
        )
        record = any(entry.proof == manifest_hash for _, entry in self._records(locate))
        return ColumnPresence(columns, record)

    def _records(self, locate: bytes) -> Iterator[tuple[bytes, IndexEntry]]:
        prefix = formats.RECORDS + locate
        for key, raw in self._index.scan(prefix, prefix_end(prefix)):
            yield key, formats.decode_entry(raw)

    def _read_record(self, key: bytes, entry: IndexEntry) -> RecordBody | None:
        body = self._body(entry)
        if isinstance(body, RecordBody) and hash_of(body.sealed) == entry.proof:
            return body
        self._note_damage(Damage(key, entry, "unreadable" if body is None else "mismatch"))
        return None

    def _find(self, locate: bytes, manifest_hash: bytes) -> Buffer | None:
        for key, entry in self._records(locate):
            if entry.proof == manifest_hash:
                body = self._read_record(key, entry)
                if body is not None:
                    return body.sealed
        return None

    async def stat(
        self, locate: bytes, generation: int, manifest_hash: bytes, after: bytes = b""
    ) -> HeldObject:
        """Return what is held of an object, STAT_ROWS_MAX shards of it.

        Damage is looked for up to STAT_READ_BYTES_MAX.

        Args:
            locate, generation, manifest_hash: of the object.
            after: the place where the page before ended; records stand in the first.
        """
        return await self._executor.run(self._stat, locate, generation, manifest_hash, after)

    def _stat(
        self, locate: bytes, generation: int, manifest_hash: bytes, after: bytes
    ) -> HeldObject:
        roots: dict[tuple[bytes, int], list[tuple[int, bytes]]] = {}
        damaged: dict[tuple[bytes, int], list[int]] = {}
        leases: dict[tuple[bytes, int], set[bytes]] = {}
        sizes: Counter[tuple[bytes, bytes]] = Counter()
        budget = STAT_READ_BYTES_MAX
        prefix = formats.generation_prefix(locate, generation)
        start = prefix + after + b"\0" if after else prefix
        rows = 0
        last = until = b""
        for key, raw in self._index.scan(start, prefix_end(prefix)):
            if rows == STAT_ROWS_MAX:
                until = last.removeprefix(prefix)
                break
            rows, last = rows + 1, key
            segment, column, customer = formats.column_of_key(key)
            entry = formats.decode_entry(raw)
            group = (customer, column)
            roots.setdefault(group, []).append((segment, entry.proof))
            leases.setdefault(group, set()).add(entry.lease_id)
            sizes[customer, entry.lease_id] += entry.held_bytes
            if entry.sequence not in self._damaged and entry.size_bytes <= budget:
                budget -= entry.size_bytes
                self._read_shard(key, entry)
            if entry.sequence in self._damaged:
                damaged.setdefault(group, []).append(segment)
        columns = tuple(
            HeldColumn(
                customer,
                column,
                len(held),
                column_digest(held),
                len(damaged.get(group, ())),
                leases=frozenset(leases[group]),
                bad=tuple(damaged.get(group, ())[:DAMAGED_TOLD_MAX]),
            )
            for group, held in sorted(roots.items())
            for customer, column in [group]
        )
        state: HeldState = "missing"
        records = []
        for key, entry in () if after else self._records(locate):
            if entry.proof != manifest_hash:
                continue
            customer = key[-ID_BYTES:]
            sizes[customer, entry.lease_id] += entry.held_bytes
            if self._read_record(key, entry) is not None:
                state = "ok"
                records.append(HeldRecord(customer, lease_id=entry.lease_id))
            elif state == "missing":
                state = "corrupt"
        by_lease = tuple((*place, size) for place, size in sorted(sizes.items()))
        return HeldObject(columns, state, tuple(records), by_lease, until=until)

    # Deleting

    async def delete(
        self, locate: bytes, customer: bytes, *, final: bool = False
    ) -> dict[bytes, int]:
        """Delete all that a customer has of an object; return the bytes freed under each lease.

        Nothing to delete is no error: deleting twice is once, and what others have stays.

        Args:
            locate: of the object.
            customer: whose part of it.
            final: what was under way when this came is not stored afterwards, either.
        """
        if final:
            self._tombstones.note(locate, customer)
        return await self._alone(locate, customer, lambda: self._delete(locate, customer))

    async def trim(
        self, locate: bytes, customer: bytes, columns: frozenset[int]
    ) -> dict[bytes, int]:
        """Delete what a customer has of some columns of an object; return as `delete`."""
        chosen = _of_columns(columns)
        return await self._alone(locate, customer, lambda: self._delete(locate, customer, chosen))

    async def drop(
        self, locate: bytes, customer: bytes, leases: frozenset[bytes]
    ) -> dict[bytes, int]:
        """Delete what a customer has of an object under some leases; return as `delete`."""
        return await self._alone(
            locate,
            customer,
            lambda: self._delete(locate, customer, lambda _, entry: entry.lease_id in leases),
        )

    async def drop_leftover(self, locate: bytes, customer: bytes, before: int) -> dict[bytes, int]:
        """Delete what a customer has of an object that never came whole; return as `delete`.

        Nothing is deleted where a record of the object is held, or a shard of that customer
        of the sequence `before` or above.
        """

        async def run() -> dict[bytes, int]:
            if not await self._executor.run(self._is_leftover, locate, customer, before):
                return {}
            return await self._delete(locate, customer, lambda _key, _entry: True)

        return await self._alone(locate, customer, run)

    def _is_leftover(self, locate: bytes, customer: bytes, before: int) -> bool:
        if any(True for _ in self._records(locate)):
            return False
        prefix = formats.locate_prefix(locate)
        return all(
            formats.decode_entry(raw).sequence < before
            for key, raw in self._index.scan(prefix, prefix_end(prefix))
            if key.endswith(customer)
        )

    async def _alone(
        self, locate: bytes, customer: bytes, work: Callable[[], Awaitable[dict[bytes, int]]]
    ) -> dict[bytes, int]:
        """Do something to what a customer has of an object while nobody else does."""
        owner = (locate, customer)
        await self._turn(
            lambda: not self._pausing and owner not in self._deleting and owner not in self._writers
        )
        self._deleting.add(owner)

        async def run() -> dict[bytes, int]:
            try:
                return await work()
            finally:
                self._deleting.discard(owner)
                self._release()

        return await self._finish(asyncio.create_task(run()))

    async def _delete(
        self, locate: bytes, customer: bytes, chosen: Choose | None = None
    ) -> dict[bytes, int]:
        freed: dict[bytes, int] = {}
        while True:
            await self._catch_up()
            mine = await self._executor.run(self._held, locate, customer, chosen)
            if not mine:
                return freed
            (note,) = self._take_sequences(1)
            drops = [(key, entry.sequence) for key, entry in mine]
            changes: list[Change] = [
                (formats.sequenced(prefix, entry.sequence), None)
                for prefix in (formats.BODIES, formats.DAMAGED)
                for _, entry in mine
                if prefix == formats.BODIES or entry.sequence in self._damaged
            ]
            gone = formats.encode_gone(drops)
            changes.append((formats.sequenced(formats.GONE, note), gone))
            await self._committed([note], changes)
            self._gone_bytes += len(gone)
            await self._settle([note], [], drops)
            for _, entry in mine:
                freed[entry.lease_id] = freed.get(entry.lease_id, 0) + entry.held_bytes
            await self._forget_damage([entry.sequence for _, entry in mine])
            self._bury([entry for _, entry in mine])

    async def has_any(
        self, locate: bytes, customer: bytes, columns: frozenset[int] = frozenset()
    ) -> bool:
        """Say whether a customer has anything of an object here, or of some columns of it."""
        chosen = _of_columns(columns) if columns else None
        return bool(await self._executor.run(self._held, locate, customer, chosen))

    def _held(
        self, locate: bytes, customer: bytes, chosen: Choose | None
    ) -> list[tuple[bytes, IndexEntry]]:
        """Return up to DELETE_BATCH entries of a customer."""
        mine: list[tuple[bytes, IndexEntry]] = []
        for prefix in (formats.locate_prefix(locate), formats.RECORDS + locate):
            for key, raw in self._index.scan(prefix, prefix_end(prefix)):
                if not key.endswith(customer):
                    continue
                entry = formats.decode_entry(raw)
                if chosen is not None and not chosen(key, entry):
                    continue
                if len(mine) == DELETE_BATCH:
                    return mine
                mine.append((key, entry))
        return mine

    # Going through all of it

    @property
    def next_sequence(self) -> int:
        """The sequence of the next body: all that are held have lower ones."""
        return self._next

    async def entries(self, after: bytes, most: int) -> list[tuple[bytes, IndexEntry]]:
        """Return up to so many entries of the index behind a key, in order of keys."""
        return await self._executor.run(self._entries_after, after, most)

    def _entries_after(self, after: bytes, most: int) -> list[tuple[bytes, IndexEntry]]:
        found: list[tuple[bytes, IndexEntry]] = []
        for prefix in (formats.RECORDS, formats.SHARDS):
            for key, raw in self._index.scan(max(prefix, after + b"\0"), prefix_end(prefix)):
                if len(found) == most:
                    return found
                found.append((key, formats.decode_entry(raw)))
        return found

    async def between(self, start: bytes, stop: bytes) -> list[tuple[bytes, IndexEntry]]:
        """Return the entries of the index from one key up to another: few enough for a list."""
        return await self._executor.run(self._between, start, stop)

    def _between(self, start: bytes, stop: bytes) -> list[tuple[bytes, IndexEntry]]:
        return [(key, formats.decode_entry(raw)) for key, raw in self._index.scan(start, stop)]

    # Damage

    @property
    def damaged(self) -> Sequence[Damage]:
        """Bodies known not to be readable any more, until they are stored anew or deleted."""
        return tuple(self._damaged.values())

    def _note_damage(self, damage: Damage) -> None:
        sequence = damage.entry.sequence
        if sequence in self._damaged:
            return
        self._damaged[sequence] = damage
        note = formats.encode_damaged(damage.key, damage.entry, damage.reason)
        self._log.error("storage.damage_found", sequence=sequence, reason=damage.reason)
        try:
            self._bodies.write([(formats.sequenced(formats.DAMAGED, sequence), note)], sync=False)
        except XscError as fault:
            # It is known until the end of this process, and found again by the next.
            self._log.warning("storage.note_failed", sequence=sequence, reason=fault.message)

    async def _forget_damage(self, sequences: Sequence[int]) -> None:
        """Drop notes of what is gone, those included that were written meanwhile."""
        known = [sequence for sequence in sequences if sequence in self._damaged]
        if not known:
            return
        for sequence in known:
            del self._damaged[sequence]
        notes: list[Change] = [
            (formats.sequenced(formats.DAMAGED, sequence), None) for sequence in known
        ]
        await self._executor.run(self._drop_notes, notes)

    def _drop_notes(self, notes: list[Change]) -> None:
        try:
            self._bodies.write(notes, sync=False)
        except XscError as fault:
            # The next start drops them; what was stored or deleted is on the disk.
            self._log.warning("storage.note_failed", notes=len(notes), reason=fault.message)

    async def audit(self, *, deep: bool = False) -> StoreAudit:
        """Compare index and totals with all bodies; what is damaged is noted for its owner.

        Args:
            deep: also check every root and hash.

        Raises:
            StoreDamaged: the index cannot be read; a start rebuilds it.
        """
        async with self._quiet():
            before, usage = self._next, dict(self._usage)
            entries = [
                self._index.scan(prefix, prefix_end(prefix))
                for prefix in (formats.SHARDS, formats.RECORDS)
            ]
        audit = await self._executor.run(self._audit, before, usage, entries, deep)
        async with self._quiet():
            # What was deleted or stored anew since the scan of the index is no damage.
            damaged = await self._executor.run(self._still_held, audit.damaged)
            for damage in damaged:
                await self._executor.run(self._note_damage, damage)
        return replace(audit, damaged=damaged)

    @asynccontextmanager
    async def _quiet(self) -> AsyncIterator[None]:
        """Wait until nobody writes, and let nobody begin meanwhile: for a moment only."""
        await self._turn(lambda: not self._pausing)
        self._pausing = True
        try:
            await self._turn(lambda: not (self._writing or self._deleting))
            yield
        finally:
            self._pausing = False
            self._release()

    def _still_held(self, damaged: Sequence[Damage]) -> tuple[Damage, ...]:
        # Of what is on the disk and could not be entered yet, the index still says the old.
        changed = {key for item in self._unsettled for key, _ in (*item.puts, *item.drops)}
        return tuple(
            item
            for item in damaged
            if item.key not in changed and self._entry(item.key) == item.entry
        )

    def _audit(
        self,
        before: int,
        usage: dict[bytes, int],
        entries: Sequence[Iterator[tuple[bytes, bytes]]],
        deep: bool,
    ) -> StoreAudit:
        scanned = scan_bodies(self._bodies, before, deep=deep)
        decoded = ((key, formats.decode_entry(raw)) for scan in entries for key, raw in scan)
        return compare(scanned, decoded, usage)

    # Reclaiming

    def _bury(self, entries: Sequence[IndexEntry]) -> None:
        for entry in entries:
            self._dead.bury(entry.sequence, entry.held_bytes)

    def _disk_bytes(self, low: int, high: int) -> int:
        prefix = formats.BODIES
        start, stop = formats.sequenced(prefix, low), formats.sequenced(prefix, high)
        return self._bodies.disk_bytes(start, stop)

    async def survey(self) -> int:
        """Find what was deleted and not reclaimed before this start; return all dead bytes."""
        await self._executor.run(self._survey)
        return self._dead.size_bytes

    def _survey(self) -> None:
        lost: list[Damage] = []

        def entries() -> Iterator[tuple[int, int]]:
            for prefix in (formats.SHARDS, formats.RECORDS):
                for key, raw in self._index.scan(prefix, prefix_end(prefix)):
                    entry = formats.decode_entry(raw)
                    if entry.sequence in self._missing:
                        lost.append(Damage(key, entry, "gone"))
                    yield entry.sequence, entry.size_bytes

        self._dead.survey(live_by_bucket(entries()), self._disk_bytes)
        for damage in self._still_held(lost):
            self._note_damage(damage)

    async def compact(
        self, pause: Callable[[], Awaitable[None]] | None = None, *, everything: bool = False
    ) -> int:
        """Return the space of deleted bodies to the disk, beside all else; return the slices.

        Args:
            pause: awaited between two slices, so that writers come first.
            everything: also where little is dead.
        """
        if self._gone_bytes > GONE_BYTES_MAX:
            before, self._gone_bytes = self._gone_bytes, 0
            if not await self._executor.run(self._forget_gone):
                self._gone_bytes += before
        planned = await self._executor.run(self._plan, everything)
        for number, piece in enumerate(planned):
            if number and pause is not None:
                await pause()
            # What is deleted in there from now on is for the next round.
            self._dead.done(piece)
            try:
                await self._executor.run(
                    self._bodies.compact,
                    formats.sequenced(formats.BODIES, piece.low),
                    formats.sequenced(formats.BODIES, piece.high),
                )
            except (StoreDamaged, SpaceExhausted) as fault:
                # As where a block in there cannot be read: what is dead beside it keeps its room.
                self._log.error("storage.not_reclaimed", low=piece.low, reason=fault.message)
        return len(planned)

    def _forget_gone(self) -> bool:
        """Drop the notes of deletions that the index on the disk knows of; return whether it could.

        Else who stores and deletes again and again would fill the disk, and pay for nothing.
        """
        try:
            raw = self._index.get(formats.MARK)
            assert raw is not None, "the start wrote it"
            stop = formats.sequenced(formats.GONE, formats.decode_number(raw) + 1)
            # All that the mark speaks of, and the mark itself.
            self._index.write([], sync=True)
            batch: list[Change] = []
            for key, _ in self._bodies.scan(formats.GONE, stop):
                batch.append((key, None))
                if len(batch) == DELETE_BATCH:
                    self._bodies.write(batch, sync=False)
                    batch = []
            if batch:
                self._bodies.write(batch, sync=False)
            self._bodies.compact(formats.GONE, stop)
        except (StoreDamaged, SpaceExhausted) as fault:
            # They are dropped the next time, or by the next start.
            self._log.error("storage.notes_not_dropped", reason=fault.message)
            return False
        return True

    def _plan(self, everything: bool) -> list[Slice]:
        return self._dead.plan(self._disk_bytes, everything=everything)
