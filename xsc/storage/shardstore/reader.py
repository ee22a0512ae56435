"""Reads shards and records of a shard store, verifies them, and notes damage.

All of it runs in the executor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
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
from xsc.storage.shardstore.bodies import Damage, IndexEntry
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
        self, bodies: KeyValue, index: ShardIndex, damaged: Container[int], log: Log
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
        for key, entry in self._index.column(locate, generation, want.segment, want.column):
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
            elif hash_of(data) == entry.proof:
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
        return [(want, put[1].size_bytes) for want, put in held if self._read(*put).state == "ok"]

    def find(self, locate: bytes, manifest_hash: bytes, size_max: int) -> Buffer | None:
        """Return a sealed manifest, or None where no readable record has it.

        Raises:
            TooLarge: it has more than `size_max` bytes.
        """
        for key, entry in self._index.records(locate):
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
            found = self._read(key, entry).state
            if found == "ok":
                records.append(HeldRecord(customer, lease_id=entry.lease_id))
            if state != "ok" and found != "missing":
                state = found
        by_lease = tuple((*place, size) for place, size in sorted(sizes.items()))
        return HeldObject(columns, state, tuple(records), by_lease, until=until)
