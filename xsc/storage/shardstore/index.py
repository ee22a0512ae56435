"""The index of a shard store: where each shard and record is, and the bytes under each lease.

It can be lost: a start makes it anew from the bodies. It is written without a sync, and
the mark says up to which sequence it knows them. All of it runs in the executor; `apply`
runs once at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from xsc.base import errors, keyvalue
from xsc.base.log import Log
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import IndexEntry, Owner

Choose: TypeAlias = Callable[[bytes, IndexEntry], bool]
"""Says of a key and its entry whether it is selected."""
Put: TypeAlias = tuple[bytes, IndexEntry]
"""A key and the entry that it gets."""
Drop: TypeAlias = tuple[bytes, int]
"""A key, and the sequence up to which its entry is dropped."""

DELETE_BATCH = 512
"""Bodies deleted in one write."""


def in_columns(columns: frozenset[int]) -> Choose:
    """Return what selects the shards of some columns; with none, everything."""

    def chosen(key: bytes, _: IndexEntry) -> bool:
        return not columns or (
            key.startswith(formats.SHARDS) and formats.column_of_key(key)[1] in columns
        )

    return chosen


def drop_in_batches(store: keyvalue.KeyValue, start: bytes, stop: bytes | None) -> None:
    """Drop a range of keys, DELETE_BATCH in one write, without a sync."""
    batch: list[keyvalue.Change] = []
    for key, _ in store.scan(start, stop):
        batch.append((key, None))
        if len(batch) == DELETE_BATCH:
            store.write(batch, sync=False)
            batch = []
    if batch:
        store.write(batch, sync=False)


class ShardIndex:
    """Entries by key, and the bytes held under each lease.

    Any of its methods raises StoreDamaged where the store cannot be read.
    """

    def __init__(self, store: keyvalue.KeyValue, log: Log) -> None:
        self._store = store
        self._log = log
        self.usage: dict[bytes, int] = {}
        """Bytes held under each lease."""
        self.used_bytes = 0
        """Their sum."""

    # Starting

    def load(self) -> int | None:
        """Read mark and usage; return the mark, None where the index is missing or damaged."""
        try:
            mark = self.mark()
            if mark is None:
                return None
            end = keyvalue.prefix_end(formats.USAGE)
            self.usage = {
                key[1:]: formats.decode_number(value)
                for key, value in self._store.scan(formats.USAGE, end)
            }
            # The last write before the store was closed: where it is there, all of it is.
            closed = self._store.get(formats.CLOSED) == formats.encode_number(mark)
            if not closed and self._sums() != self.usage:
                self._log.warning("storage.index_damaged", reason="it has lost entries")
                return None
        except errors.StoreDamaged as fault:
            self._log.warning("storage.index_damaged", reason=fault.message)
            return None
        self.used_bytes = sum(self.usage.values())
        return mark

    def _sums(self) -> dict[bytes, int]:
        """Return the bytes under each lease by the entries, as the totals should be."""
        sums: dict[bytes, int] = {}
        for _, entry in self.behind(b""):
            sums[entry.lease_id] = sums.get(entry.lease_id, 0) + entry.held_bytes
        return sums

    def mark(self) -> int | None:
        """Return up to which sequence the index knows the bodies; None where it has no mark."""
        raw = self._store.get(formats.MARK)
        return None if raw is None else formats.decode_number(raw)

    def clear(self) -> None:
        """Drop every entry, the totals and the mark."""
        self.usage = {}
        self.used_bytes = 0
        drop_in_batches(self._store, b"", None)

    def sync_at(self, mark: int) -> None:
        """Write the mark and sync the index with all that was written to it."""
        number = formats.encode_number(mark)
        self._store.write([(formats.MARK, number), (formats.CLOSED, None)], sync=True)

    def note_closed(self) -> None:
        """Note that the index is whole: the next start need not go through all of it."""
        mark = self.mark()
        assert mark is not None, "the start wrote it"
        self._store.write([(formats.CLOSED, formats.encode_number(mark))], sync=True)

    # Entries

    def entry(self, key: bytes) -> IndexEntry | None:
        """Return the entry of a key."""
        raw = self._store.get(key)
        return None if raw is None else formats.decode_entry(raw)

    def entries(self, keys: Sequence[bytes]) -> dict[bytes, IndexEntry]:
        """Return the entries of those keys that have one."""
        found = ((key, self.entry(key)) for key in keys)
        return {key: entry for key, entry in found if entry is not None}

    def between(self, start: bytes, stop: bytes | None) -> Iterator[Put]:
        """Yield key and entry from one key up to another, in order, as they are at the call."""
        found = self._store.scan(start, stop)
        return ((key, formats.decode_entry(raw)) for key, raw in found)

    def under(self, prefix: bytes) -> Iterator[Put]:
        """Yield key and entry of all keys with a prefix, in order."""
        return self.between(prefix, keyvalue.prefix_end(prefix))

    def behind(self, key: bytes) -> Iterator[Put]:
        """Yield key and entry of every record and then of every shard, behind a key."""
        return self.between(max(formats.RECORDS, key + b"\0"), keyvalue.prefix_end(formats.SHARDS))

    def of_object(self, locate: bytes, after: bytes = b"") -> Iterator[Put]:
        """Yield the records of an object and then its shards, whoever stored them, behind a key."""
        for prefix in (formats.RECORDS + locate, formats.SHARDS + locate):
            yield from self.between(max(prefix, after + b"\0"), keyvalue.prefix_end(prefix))

    def owned(
        self, owner: Owner, chosen: Choose, after: bytes, passed_max: int
    ) -> tuple[list[Put], bytes]:
        """Return entries of a customer of an object, those that are chosen, behind a key.

        They are DELETE_BATCH at most, of `passed_max` entries of the object. Return also the key
        behind which it is to be gone on, empty where nothing is left.
        """
        mine: list[Put] = []
        for number, (key, entry) in enumerate(self.of_object(owner[0], after), 1):
            if formats.owner_of(key) == owner and chosen(key, entry):
                mine.append((key, entry))
            if len(mine) == DELETE_BATCH or number == passed_max:
                return mine, key
        return mine, b""

    def first_of(self, owner: Owner, chosen: Choose) -> tuple[bool, int]:
        """Return whether a customer has an entry of an object that is chosen.

        Return also how many entries the object has: a deletion passes all of them.
        """
        found, passed = False, 0
        for key, entry in self.of_object(owner[0]):
            passed += 1
            found = found or (formats.owner_of(key) == owner and chosen(key, entry))
        return found, passed

    # Changes

    def apply(self, puts: Sequence[Put], drops: Sequence[Drop], mark: int) -> list[int]:
        """Enter bodies that were written and drop those that are gone; idempotent.

        Returns:
            The sequences of the bodies that a later one has replaced.
        """
        usage: dict[bytes, int] = {}
        known: dict[bytes, IndexEntry | None] = {}
        replaced: list[int] = []

        def count(lease_id: bytes, delta_bytes: int) -> None:
            usage[lease_id] = usage.get(lease_id, self.usage.get(lease_id, 0)) + delta_bytes

        for key, entry in puts:
            old = known[key] if key in known else self.entry(key)
            if old is not None and old.sequence >= entry.sequence:
                continue
            if old is not None:
                count(old.lease_id, -old.held_bytes)
                replaced.append(old.sequence)
            count(entry.lease_id, entry.held_bytes)
            known[key] = entry
        for key, sequence in drops:
            old = known[key] if key in known else self.entry(key)
            if old is None or old.sequence > sequence:
                continue
            count(old.lease_id, -old.held_bytes)
            known[key] = None
        changes: list[keyvalue.Change] = [
            (key, None if item is None else formats.encode_entry(item))
            for key, item in known.items()
        ]
        changes.extend(
            (formats.USAGE + lease_id, formats.encode_number(size) if size else None)
            for lease_id, size in usage.items()
        )
        changes.append((formats.MARK, formats.encode_number(mark)))
        self._store.write(changes, sync=False)
        for lease_id, size in usage.items():
            self.used_bytes += size - self.usage.get(lease_id, 0)
            if size:
                self.usage[lease_id] = size
            else:
                self.usage.pop(lease_id, None)
        return replaced
