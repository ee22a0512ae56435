"""The shard store of one host: what it holds, for whom, and never more than it may.

Laws (tests/unit/storage/shardstore/test_store.py):

- what `store` returned for is synced, and survives a power loss;
- used and reserved bytes never pass the capacity; both are known exactly;
- the index is disposable: rebuilt from the bodies it says the same;
- `get` gives the bytes of the root that was asked for, or says why not;
- only the customer that stored a body can replace or delete it.

Bodies are appended and synced, in batches; the index follows unsynced and is caught up
from its high-water mark at the start. Formats: `xsc.storage.shardstore.bodies`.
docs/design/storage.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import ParamSpec, TypeAlias, TypeVar

from xsc.base.clock import Executor
from xsc.base.errors import TooLarge, XscError
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import KIB, PEER_BODY_BYTES_MAX, STAT_READ_BYTES_MAX
from xsc.base.log import Log
from xsc.storage.object.erasure import Buffer
from xsc.storage.object.inventory import ColumnPresence, FoundShard, HeldObject, Wanted
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Body, Damage
from xsc.storage.shardstore.compactor import Compactor
from xsc.storage.shardstore.fsck import StoreAudit, compare, scan_bodies
from xsc.storage.shardstore.index import Put, ShardIndex, in_columns
from xsc.storage.shardstore.reader import ShardReader, size_of
from xsc.storage.shardstore.reclaim import DeadSpace
from xsc.storage.shardstore.replay import Recovery, Replay
from xsc.storage.shardstore.writer import ShardWriter, Write

PASSED_BYTES = 12 * KIB
"""What it costs to pass over an entry, once to look for it and once to delete it: as much as
reading so much."""
P = ParamSpec("P")
T = TypeVar("T")

Charge: TypeAlias = Callable[[int], None]
"""Told how many bytes are to be read, before the first is; raises to refuse it."""


def free(size_bytes: int) -> None:
    """Charge nothing: what reads for itself."""
    del size_bytes


class StorageNode:
    """Stores shards and object records for customers, this node among them."""

    def __init__(
        self,
        *,
        capacity_bytes: int,
        bodies: KeyValue,
        index: KeyValue,
        executor: Executor,
        log: Log,
    ) -> None:
        self._bodies = bodies
        self._executor = executor
        self._log = log
        self._index = ShardIndex(index, log)
        self._damaged: dict[int, Damage] = {}
        self._reader = ShardReader(bodies, self._index, self._damaged, log)
        dead = DeadSpace()
        self.writer = ShardWriter(
            capacity_bytes=capacity_bytes,
            bodies=bodies,
            index=self._index,
            damaged=self._damaged,
            dead=dead,
            executor=executor,
            log=log,
        )
        self.compactor = Compactor(
            bodies=bodies,
            index=self._index,
            dead=dead,
            writer=self.writer,
            executor=executor,
            log=log,
        )
        self._started = False

    @property
    def used_bytes(self) -> int:
        """Bytes that the shards and object records held count for."""
        return self._index.used_bytes

    @property
    def usage(self) -> Mapping[bytes, int]:
        """Bytes held under each lease."""
        return MappingProxyType(self._index.usage)

    async def start(self, *, rebuild: bool = False) -> Recovery:
        """Bring the index up to date with the bodies, or make it anew.

        Raises:
            StoreDamaged: the bodies cannot be read, or the index not even be emptied.
        """
        replay = Replay(self._bodies, self._index, self._damaged, self._log)
        recovery = await self._executor.run(lambda: replay.run(rebuild=rebuild))
        self.writer.next_sequence = recovery.next_sequence
        self.compactor.missing = recovery.missing
        self._started = True
        self._log.info(
            "storage.started",
            rebuilt=recovery.rebuilt,
            replayed=recovery.replayed,
            damaged=recovery.damaged,
            used_bytes=self.used_bytes,
        )
        return recovery

    async def close(self) -> None:
        """Wait for what is being written, and note that the index is whole.

        The next start need not go through all of it then.

        Raises:
            SpaceExhausted, StoreDamaged: it cannot be noted.
        """
        if self._started:
            await self.writer.look(self.writer.note_closed)

    async def store(self, bodies: Sequence[Body]) -> int:
        """Store bodies of one object and customer; return how many bytes more are held in all.

        Raises:
            XscError: as `ShardWriter.store_together`.
        """
        (held,) = await self.writer.store_together([Write(bodies)])
        if isinstance(held, XscError):
            raise held
        return sum(held.values())

    # Reading

    async def get(
        self,
        locate: bytes,
        generation: int,
        wanted: Sequence[Wanted],
        *,
        size_max: int = PEER_BODY_BYTES_MAX,
        charge: Charge = free,
    ) -> list[FoundShard]:
        """Return the shards that were asked for, each verified against its root.

        Raises:
            TooLarge: together they have more than `size_max` bytes; none was read.
        """
        held = await self._executor.run(self._reader.wanted, locate, generation, wanted)
        size = size_of(held)
        if size > size_max:
            raise TooLarge(f"{size} bytes were asked for at once, at most {size_max} are given")
        charge(size)
        return await self._read(self._reader.get, held, wanted)

    async def _read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a read of bodies gives, once the damage that it met is noted."""
        found = await self._executor.run(function, *args, **kwargs)
        if self._reader.met:
            met, self._reader.met = self._reader.met, []
            await self.writer.look(self.writer.note_damage, met)
        return found

    async def held_shards(
        self,
        locate: bytes,
        generation: int,
        customer: bytes,
        lease_id: bytes,
        wanted: Sequence[Wanted],
        *,
        charge: Charge = free,
    ) -> list[tuple[Wanted, int]]:
        """Return those shards that a customer has under a lease, readable, and their sizes.

        Waits for those that are being written; reads at most STAT_READ_BYTES_MAX, and says
        nothing of what is behind that.
        """
        keys = [
            formats.shard_key(locate, generation, want.segment, want.column, customer)
            for want in wanted
        ]
        held = await self.writer.look(self._reader.under_lease, keys, lease_id, wanted)
        charge(size_of(put for _, put in held))
        return await self._read(self._reader.readable, held)

    async def find(
        self, locate: bytes, manifest_hash: bytes, size_max: int = PEER_BODY_BYTES_MAX
    ) -> Buffer | None:
        """Return a sealed manifest, or None where it is not held whole.

        Raises:
            TooLarge: it has more than `size_max` bytes, and was not read.
        """
        return await self._read(self._reader.find, locate, manifest_hash, size_max)

    async def holds(
        self, locate: bytes, generation: int, manifest_hash: bytes, roots: Sequence[bytes]
    ) -> ColumnPresence:
        """Return which columns are held of which the first segment has these roots.

        They may be any customer's: another one can neither add to the answer nor hide a column.
        """
        return await self._executor.run(
            self._reader.holds, locate, generation, manifest_hash, roots
        )

    async def stat(
        self,
        locate: bytes,
        generation: int,
        manifest_hash: bytes,
        after: bytes = b"",
        *,
        charge: Charge = free,
    ) -> HeldObject:
        """Return what is held of an object, STAT_ROWS_MAX shards of it.

        Damage is looked for up to STAT_READ_BYTES_MAX.

        Args:
            locate, generation, manifest_hash: of the object.
            after: where the page before ended; the first has the records.
            charge: as of `get`.
        """
        page = await self._executor.run(self._reader.page, locate, generation, manifest_hash, after)
        shards, records, _ = page
        charge(min(size_of(shards), STAT_READ_BYTES_MAX) + size_of(records))
        return await self._read(self._reader.stat, *page)

    async def has_any(
        self, locate: bytes, customer: bytes, columns: frozenset[int], *, charge: Charge = free
    ) -> bool:
        """Return whether a customer has anything of an object here, or of some columns of it."""
        found, passed = await self._executor.run(
            self._index.first_of, (locate, customer), in_columns(columns)
        )
        charge(passed * PASSED_BYTES)
        return found

    # Deleting

    async def delete(
        self,
        locate: bytes,
        customer: bytes,
        columns: frozenset[int] = frozenset(),
        *,
        final: bool = False,
    ) -> dict[bytes, int]:
        """Delete all that a customer has of an object, or of some columns of it.

        Return as `ShardWriter.delete`.
        """
        return await self.writer.delete(locate, customer, in_columns(columns), final=final)

    async def drop_leftover(self, locate: bytes, customer: bytes, before: int) -> dict[bytes, int]:
        """Delete what a customer has of an object that never came whole; return as `delete`.

        Nothing is deleted where a record of the object is held, or a shard of that customer
        of the sequence `before` or above.
        """
        return await self.writer.delete(
            locate,
            customer,
            lambda _, entry: entry.sequence < before,
            only_if=lambda: self._index.is_leftover((locate, customer), before),
        )

    # Enumerating

    @property
    def next_sequence(self) -> int:
        """The sequence of the next body: all that are held have lower ones."""
        return self.writer.next_sequence

    async def entries(self, after: bytes, most: int) -> list[Put]:
        """Return up to `most` entries of the index behind a key, in order of keys."""
        return await self._executor.run(self._index.after, after, most)

    async def between(self, start: bytes, stop: bytes) -> list[Put]:
        """Return the entries of the index from one key up to another: few enough for a list."""
        return await self._executor.run(lambda: list(self._index.between(start, stop)))

    # Damage

    @property
    def damaged(self) -> Sequence[Damage]:
        """Bodies known not to be readable any more, until they are stored anew or deleted."""
        return tuple(self._damaged.values())

    async def audit(self, *, deep: bool = False) -> StoreAudit:
        """Compare index and totals with all bodies; what is damaged is noted for its owner.

        Args:
            deep: also check every root and hash.

        Raises:
            StoreDamaged: the index cannot be read; a start rebuilds it.
        """
        before, usage, entries = await self.writer.look(
            lambda: (self.next_sequence, dict(self.usage), self._index.snapshot())
        )
        audit = await self._executor.run(_audited, self._bodies, before, usage, entries, deep)
        # What was deleted or stored anew since the scan of the index is no damage.
        damaged = await self.writer.look(self.writer.note_damage, audit.damaged)
        return replace(audit, damaged=damaged)


def _audited(
    bodies: KeyValue,
    before: int,
    usage: dict[bytes, int],
    entries: Sequence[Iterator[tuple[bytes, bytes]]],
    deep: bool,
) -> StoreAudit:
    scanned = scan_bodies(bodies, before, deep=deep)
    decoded = ((key, formats.decode_entry(raw)) for scan in entries for key, raw in scan)
    return compare(scanned, decoded, usage)
