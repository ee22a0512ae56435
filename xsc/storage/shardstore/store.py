"""The shard store of one host: what it holds, for whom, and never more than it may.

Laws (tests/unit/storage/shardstore/test_store.py):

- what `store` returned for is synced, and survives a power loss;
- used bytes never pass the capacity, and are known exactly;
- the index is disposable: rebuilt from the bodies it says the same;
- `get` gives the bytes of the root that was asked for, or says why not;
- only the customer that stored a body can replace or delete it.

Bodies are appended and synced, in batches; the index follows unsynced and is caught up
from its high-water mark at the start. Formats: `xsc.storage.shardstore.bodies`.
docs/design/storage.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import ParamSpec, TypeAlias, TypeVar

from xsc.base import clock, ids, keyvalue, limits
from xsc.base.errors import StoreDamaged, TooLarge, XscError
from xsc.base.log import Log
from xsc.base.progress import Progress, ignore_progress
from xsc.storage.object import erasure, manifest
from xsc.storage.object.inventory import (
    ColumnPresence,
    FoundShard,
    HeldColumn,
    HeldObject,
    HeldRecord,
    HeldState,
    Wanted,
    cut_found,
)
from xsc.storage.object.segment import Span
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore import compactor, fsck, writer
from xsc.storage.shardstore.bodies import Body, Damage, IndexEntry
from xsc.storage.shardstore.index import Put, ShardIndex, in_columns
from xsc.storage.shardstore.replay import Recovery, Replay

PASSED_BYTES = 12 * limits.KIB
"""What it costs to pass over an entry, once to look for it and once to delete it: as much as
reading so much."""
STAT_ROWS_MAX = 1_024
"""Shards that one answer to a stat speaks of; it takes some 45 ms, and a longer one goes on from
the place where the last ended."""

P = ParamSpec("P")
T = TypeVar("T")

Charge: TypeAlias = Callable[[int], None]
"""Told how many bytes are to be read, before the first is; raises to refuse it."""


def free(size_bytes: int) -> None:
    """Charge nothing: what reads for itself."""
    del size_bytes


def size_of(held: Iterable[Put | None]) -> int:
    """Return how many bytes the bodies of some entries have together."""
    return sum(put[1].size_bytes for put in held if put is not None)


class ShardReader:
    """Reads bodies by their entries, verifies them, and says what damage it met.

    All of it runs in the executor.
    """

    def __init__(
        self, bodies: keyvalue.KeyValue, index: ShardIndex, damaged: Container[int], log: Log
    ) -> None:
        self._bodies = bodies
        self._index = index
        self._damaged = damaged
        self._log = log
        self.met: list[Damage] = []
        """Damage that reads met and that is not noted yet."""

    def wanted(self, locate: bytes, generation: int, wanted: Sequence[Wanted]) -> list[Put | None]:
        """Return the entries of shards, None of those that are not here."""
        return [self._wanted(locate, generation, want) for want in wanted]

    def get(self, held: Sequence[Put | None], wanted: Sequence[Wanted]) -> list[FoundShard]:
        """Return the shards of entries, each verified against its root."""
        return [
            FoundShard("missing") if item is None else self._read(*item, want.span)
            for item, want in zip(held, wanted, strict=True)
        ]

    def _wanted(self, locate: bytes, generation: int, want: Wanted) -> Put | None:
        for key, entry in self._index.under(
            formats.column_prefix(locate, generation, want.segment, want.column)
        ):
            if entry.proof == want.root:
                return key, entry
        return None

    def _read(self, key: bytes, entry: IndexEntry, span: Span | None = None) -> FoundShard:
        """Return the data of a body, or a span of a shard, verified; or what is wrong."""
        try:
            # The entry's root or hash is stronger than the store's sums.
            body = self._bodies.get(formats.sequenced(formats.BODIES, entry.sequence), verify=False)
            data = None if body is None else formats.decode_body(body).data
        except StoreDamaged as fault:
            self._log.error("storage.body_damaged", sequence=entry.sequence, reason=fault.message)
            data = None
        if data is not None:
            if key.startswith(formats.SHARDS):
                found = cut_found(data, entry.proof, span)
                if found is not None:
                    return found
            elif manifest.hash_of(data) == entry.proof:
                return FoundShard("ok", data)
        if self._index.entry(key) != entry:
            return FoundShard("missing")  # It was deleted since its entry was read.
        self.met.append(Damage(key, entry, "unreadable" if data is None else "mismatch"))
        return FoundShard("corrupt")

    def under_lease(
        self, keys: Sequence[bytes], lease_id: bytes, wanted: Sequence[Wanted]
    ) -> list[tuple[Wanted, Put]]:
        """Return the entries that have these keys under a lease.

        They have at most STAT_READ_BYTES_MAX together; what is behind that is left out.
        """
        found: list[tuple[Wanted, Put]] = []
        budget = limits.STAT_READ_BYTES_MAX
        for key, want in zip(keys, wanted, strict=True):
            entry = self._index.entry(key)
            if entry is None or (entry.lease_id, entry.proof) != (lease_id, want.root):
                continue
            budget -= entry.size_bytes
            if budget < 0:
                break
            found.append((want, (key, entry)))
        return found

    def readable(self, held: Sequence[tuple[Wanted, Put]]) -> list[tuple[Wanted, int]]:
        """Return those shards of entries that can be read, and their sizes."""
        return [(want, put[1].size_bytes) for want, put in held if self._read(*put).state == "ok"]

    def find(self, locate: bytes, manifest_hash: bytes, size_max: int) -> erasure.Buffer | None:
        """Return a sealed manifest, or None where no readable record has it.

        Raises:
            TooLarge: it has more than `size_max` bytes.
        """
        for key, entry in self._index.under(formats.RECORDS + locate):
            if entry.proof == manifest_hash:
                if entry.size_bytes > size_max:
                    raise TooLarge(f"the manifest has more than {size_max} bytes")
                found = self._read(key, entry)
                if found.state == "ok":
                    return found.data
        return None

    def holds(
        self, locate: bytes, generation: int, manifest_hash: bytes, roots: Sequence[bytes]
    ) -> ColumnPresence:
        """Return which columns are held of which the first segment has these roots."""
        columns = frozenset(
            column
            for column, root in enumerate(roots)
            if any(
                entry.proof == root
                for _, entry in self._index.under(
                    formats.column_prefix(locate, generation, 0, column)
                )
            )
        )
        record = any(
            entry.proof == manifest_hash for _, entry in self._index.under(formats.RECORDS + locate)
        )
        return ColumnPresence(columns, record)

    def page(
        self, locate: bytes, generation: int, manifest_hash: bytes, after: bytes
    ) -> tuple[list[Put], list[Put], bytes]:
        """Return the entries of one page: of shards, of records, and where it ends."""
        prefix = formats.generation_prefix(locate, generation)
        start = prefix + after + b"\0" if after else prefix
        held = self._index.between(start, keyvalue.prefix_end(prefix))
        shards = list(islice(held, STAT_ROWS_MAX + 1))
        until = b""
        if len(shards) > STAT_ROWS_MAX:
            shards.pop()
            until = shards[-1][0].removeprefix(prefix)
        records = () if after else self._index.under(formats.RECORDS + locate)
        return shards, [put for put in records if put[1].proof == manifest_hash], until

    def stat(self, shards: Sequence[Put], held_records: Sequence[Put], until: bytes) -> HeldObject:
        """Return what is held of an object by a page; see `StorageNode.stat`."""
        roots: dict[tuple[bytes, int], list[tuple[int, bytes]]] = {}
        damaged: dict[tuple[bytes, int], list[int]] = {}
        leases: dict[tuple[bytes, int], set[bytes]] = {}
        sizes: Counter[tuple[bytes, bytes]] = Counter()
        budget = limits.STAT_READ_BYTES_MAX
        for key, entry in shards:
            segment, column, customer = formats.column_of_key(key)
            group = (customer, column)
            roots.setdefault(group, []).append((segment, entry.proof))
            leases.setdefault(group, set()).add(entry.lease_id)
            sizes[customer, entry.lease_id] += entry.held_bytes
            bad = entry.sequence in self._damaged
            if not bad and entry.size_bytes <= budget:
                budget -= entry.size_bytes
                bad = self._read(key, entry).state == "corrupt"
            if bad:
                damaged.setdefault(group, []).append(segment)
        columns = tuple(
            HeldColumn(
                customer,
                column,
                len(held),
                manifest.column_digest(held),
                len(damaged.get(group, ())),
                leases=frozenset(leases[group]),
                bad=tuple(damaged.get(group, ())[: limits.DAMAGED_TOLD_MAX]),
            )
            for group, held in sorted(roots.items())
            for customer, column in [group]
        )
        state: HeldState = "missing"
        records = []
        for key, entry in held_records:
            customer = key[-ids.ID_BYTES :]
            sizes[customer, entry.lease_id] += entry.held_bytes
            found = self._read(key, entry).state
            if found == "ok":
                records.append(HeldRecord(customer, lease_id=entry.lease_id))
            if state != "ok" and found != "missing":
                state = found
        by_lease = tuple((*place, size) for place, size in sorted(sizes.items()))
        return HeldObject(columns, state, tuple(records), by_lease, until=until)


class StorageNode:
    """Stores shards and object records for customers, this node among them."""

    def __init__(
        self,
        *,
        capacity_bytes: int,
        bodies: keyvalue.KeyValue,
        index: keyvalue.KeyValue,
        executor: clock.Executor,
        log: Log,
    ) -> None:
        self._bodies = bodies
        self._executor = executor
        self._log = log
        self._index = ShardIndex(index, log)
        self._damaged: dict[int, Damage] = {}
        self._reader = ShardReader(bodies, self._index, self._damaged, log)
        dead = compactor.DeadSpace()
        self.writer = writer.ShardWriter(
            capacity_bytes=capacity_bytes,
            bodies=bodies,
            index=self._index,
            damaged=self._damaged,
            bury=dead.bury,
            executor=executor,
            log=log,
        )
        self.compactor = compactor.Compactor(
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
    def used_ppm(self) -> int:
        """The share of the capacity that is held."""
        return self.used_bytes * limits.PPM // max(1, self.writer.capacity_bytes)

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
        (held,) = await self.writer.store_together([writer.Write(bodies)])
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
        size_max: int = limits.PEER_BODY_BYTES_MAX,
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
        self, locate: bytes, manifest_hash: bytes, size_max: int = limits.PEER_BODY_BYTES_MAX
    ) -> erasure.Buffer | None:
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
        charge(min(size_of(shards), limits.STAT_READ_BYTES_MAX) + size_of(records))
        return await self._read(self._reader.stat, *page)

    async def has_any(
        self, locate: bytes, customer: bytes, columns: frozenset[int]
    ) -> tuple[bool, int]:
        """Return whether a customer has anything of an object here, or of some columns of it.

        Return also as how much it counts to have looked, and to delete what is there.
        """
        found, passed = await self._executor.run(
            self._index.first_of, (locate, customer), in_columns(columns)
        )
        return found, passed * PASSED_BYTES

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

    # Enumerating

    async def entries(self, after: bytes, most: int) -> list[Put]:
        """Return up to `most` entries of the index behind a key, in order of keys."""
        return await self._executor.run(lambda: list(islice(self._index.behind(after), most)))

    async def between(self, start: bytes, stop: bytes) -> list[Put]:
        """Return the entries of the index from one key up to another: few enough for a list."""
        return await self._executor.run(lambda: list(self._index.between(start, stop)))

    # Damage

    @property
    def damaged(self) -> Sequence[Damage]:
        """Bodies known not to be readable any more, until they are stored anew or deleted."""
        return tuple(self._damaged.values())

    async def audit(
        self, *, deep: bool = False, progress: Progress = ignore_progress
    ) -> fsck.StoreAudit:
        """Compare index and totals with all bodies; what is damaged is noted for its owner.

        Args:
            deep: also check every root and hash.
            progress: told of the bytes that were read, in any thread.

        Raises:
            StoreDamaged: the index cannot be read; a start rebuilds it.
        """
        before, usage, entries = await self.writer.look(
            lambda: (self.writer.next_sequence, dict(self.usage), self._index.behind(b""))
        )
        audit = await self._executor.run(
            lambda: fsck.compare(
                fsck.scan_bodies(self._bodies, before, deep=deep, progress=progress),
                entries,
                usage,
            )
        )
        # What was deleted or stored anew since the scan of the index is no damage.
        damaged = await self.writer.look(self.writer.note_damage, audit.damaged)
        return replace(audit, damaged=damaged)
