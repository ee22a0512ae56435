"""Reads shards and records of a shard store, verifies them, and notes damage.

All of it runs in the executor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from xsc.base.errors import StoreDamaged, TooLarge
from xsc.base.ids import ID_BYTES
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.base.limits import DAMAGED_TOLD_MAX, STAT_READ_BYTES_MAX
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
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Body, IndexEntry, RecordBody, ShardBody
from xsc.storage.shardstore.damage import DamagedBodies
from xsc.storage.shardstore.fsck import Damage
from xsc.storage.shardstore.index import Put, ShardIndex

STAT_ROWS_MAX = 1_024
"""Shards that one answer to a stat speaks of; it takes some 45 ms, and a longer one goes on from
the place where the last ended."""


def size_of(held: Iterable[Put | None]) -> int:
    """Return how many bytes the bodies of some entries have together."""
    return sum(put[1].size_bytes for put in held if put is not None)


class ShardReader:
    """Reads bodies by their entries."""

    def __init__(
        self, bodies: KeyValue, index: ShardIndex, damaged: DamagedBodies, log: Log
    ) -> None:
        self._bodies = bodies
        self._index = index
        self._damaged = damaged
        self._log = log

    def wanted(self, locate: bytes, generation: int, wanted: Sequence[Wanted]) -> list[Put | None]:
        """Return the entries of shards, None of those that are not here."""
        return [self._wanted(locate, generation, want) for want in wanted]

    def get(self, held: Sequence[Put | None], wanted: Sequence[Wanted]) -> list[FoundShard]:
        """Return the shards of entries, each verified against its root."""
        return [
            FoundShard("missing") if item is None else self._read_shard(*item, want.span)
            for item, want in zip(held, wanted, strict=True)
        ]

    def _wanted(self, locate: bytes, generation: int, want: Wanted) -> Put | None:
        for key, entry in self._index.column(locate, generation, want.segment, want.column):
            if entry.proof == want.root:
                return key, entry
        return None

    def _body(self, entry: IndexEntry) -> Body | None:
        """Return the body of an entry, unverified; None where it is gone or cannot be read."""
        try:
            # The caller checks the entry's hash, which is stronger than the store's sums.
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
        return FoundShard("corrupt" if self._is_damage(key, entry, body) else "missing")

    def _read_record(self, key: bytes, entry: IndexEntry) -> RecordBody | None:
        body = self._body(entry)
        if isinstance(body, RecordBody) and hash_of(body.sealed) == entry.proof:
            return body
        self._is_damage(key, entry, body)
        return None

    def _is_damage(self, key: bytes, entry: IndexEntry, body: Body | None) -> bool:
        """Note that a body is damaged; False where it was deleted since its entry was read."""
        if self._index.entry(key) != entry:
            return False
        self._damaged.note(Damage(key, entry, "unreadable" if body is None else "mismatch"))
        return True

    def under_lease(
        self, keys: Sequence[bytes], lease_id: bytes, wanted: Sequence[Wanted]
    ) -> list[tuple[Wanted, Put]]:
        """Return the entries that have these keys under a lease.

        They have at most STAT_READ_BYTES_MAX together; what is behind that is left out.
        """
        found: list[tuple[Wanted, Put]] = []
        budget = STAT_READ_BYTES_MAX
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
        return [
            (want, put[1].size_bytes) for want, put in held if self._read_shard(*put).state == "ok"
        ]

    def find(self, locate: bytes, manifest_hash: bytes, size_max: int) -> Buffer | None:
        """Return a sealed manifest, or None where no readable record has it.

        Raises:
            TooLarge: it has more than `size_max` bytes.
        """
        for key, entry in self._index.records(locate):
            if entry.proof == manifest_hash:
                if entry.size_bytes > size_max:
                    raise TooLarge(f"the manifest has more than {size_max} bytes")
                body = self._read_record(key, entry)
                if body is not None:
                    return body.sealed
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
                for _, entry in self._index.column(locate, generation, 0, column)
            )
        )
        record = any(entry.proof == manifest_hash for _, entry in self._index.records(locate))
        return ColumnPresence(columns, record)

    def page(
        self, locate: bytes, generation: int, manifest_hash: bytes, after: bytes
    ) -> tuple[list[Put], list[Put], bytes]:
        """Return the entries of one page: of shards, of records, and where it ends."""
        prefix = formats.generation_prefix(locate, generation)
        start = prefix + after + b"\0" if after else prefix
        held = self._index.between(start, prefix_end(prefix))
        shards = list(islice(held, STAT_ROWS_MAX + 1))
        until = b""
        if len(shards) > STAT_ROWS_MAX:
            shards.pop()
            until = shards[-1][0].removeprefix(prefix)
        records = () if after else self._index.records(locate)
        return shards, [put for put in records if put[1].proof == manifest_hash], until

    def stat(self, shards: Sequence[Put], held_records: Sequence[Put], until: bytes) -> HeldObject:
        """Return what is held of an object by a page; see `StorageNode.stat`."""
        roots: dict[tuple[bytes, int], list[tuple[int, bytes]]] = {}
        damaged: dict[tuple[bytes, int], list[int]] = {}
        leases: dict[tuple[bytes, int], set[bytes]] = {}
        sizes: Counter[tuple[bytes, bytes]] = Counter()
        budget = STAT_READ_BYTES_MAX
        for key, entry in shards:
            segment, column, customer = formats.column_of_key(key)
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
        for key, entry in held_records:
            customer = key[-ID_BYTES:]
            sizes[customer, entry.lease_id] += entry.held_bytes
            if self._read_record(key, entry) is not None:
                state = "ok"
                records.append(HeldRecord(customer, lease_id=entry.lease_id))
            elif state == "missing" and entry.sequence in self._damaged:
                state = "corrupt"
        by_lease = tuple((*place, size) for place, size in sorted(sizes.items()))
        return HeldObject(columns, state, tuple(records), by_lease, until=until)
