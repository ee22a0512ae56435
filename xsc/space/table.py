"""The table of one owner's records: what a store does with the next record, and what is proven.

A replica takes a record in if it is newer than what it has at the path, and counts a section as
complete only where it matches a head of the owner. All of it is decided from the rows here;
`xsc.space.store` carries it out. docs/design/space.md, T1 to T9.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from xsc.base.errors import RecordInvalid, SpaceExhausted
from xsc.identity.envelope import Signed
from xsc.space import limits, paths
from xsc.space.record import SpaceHead, SpaceRecord, section_hash

_LAST = "\U0010ffff"
"""Sorts after every path."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a table knows of the newest record at a path."""

    section: str
    sequence: int
    id: bytes
    written_ms: int
    digest: bytes | None
    """Of the value; None for a tombstone."""
    size_bytes: int
    """Of path, stamp and value, and RECORD_BYTES for the rest."""

    @classmethod
    def of(cls, signed: Signed[SpaceRecord]) -> Row:
        """Return the row of a record."""
        record = signed.record
        size_bytes = limits.RECORD_BYTES + len(record.path) + len(record.stamp) + record.size_bytes
        return cls(
            paths.section_of(record.path),
            record.sequence,
            signed.id,
            record.written_ms,
            record.digest,
            size_bytes,
        )

    @property
    def deleted(self) -> bool:
        """Whether the record is a tombstone."""
        return self.digest is None

    def outranks(self, other: Row) -> bool:
        """Say whether this record replaces another at its path.

        Of two under one sequence the one with the smaller id holds, so that replicas agree.
        """
        return (self.sequence, other.id) > (other.sequence, self.id)


@dataclass(slots=True)
class Proven:
    """A head, and that what is held of a section is what it says."""

    head: Signed[SpaceHead]
    before: dict[str, bytes]
    """Ids of the records that were live at the head, of paths that have changed since."""


@dataclass(frozen=True, slots=True)
class Repair:
    """How a table comes to hold what a head says."""

    sequence: int
    """Of the head."""
    drop: list[str]
    """Live here, and deleted at the owner."""
    fetch: dict[str, bytes]
    """Paths that are live at the head, and the ids of records that are not held there."""


@dataclass(slots=True)
class OwnerTable:
    """The rows of one owner in memory, in the order of paths and of sequences."""

    rows: dict[str, Row] = field(default_factory=dict)
    proven: dict[str, Proven] = field(default_factory=dict)
    """By section, what can be shown to others."""
    cursors: dict[str, int] = field(default_factory=dict)
    """By section, the sequence up to which everything is known here."""
    head: Signed[SpaceHead] | None = None
    """The newest that was proven for any section."""
    last: int = 0
    """The highest sequence of a record that was put here."""
    introducer: str = ""
    """By whose word the owner is known: room is shared among those of one."""
    size_bytes: int = 0
    _orders: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """Of each section, sequences and paths in order."""
    _tombstones: list[tuple[int, str]] = field(default_factory=list)
    """Sequences and paths of all, in order."""

    @property
    def live(self) -> int:
        """How many records are live."""
        return len(self.rows) - len(self._tombstones)

    @property
    def head_sequence(self) -> int:
        """The sequence of the newest head that was proven; 0 without one."""
        return 0 if self.head is None else self.head.record.sequence

    # Records

    def takes(
        self,
        signed: Signed[SpaceRecord],
        *,
        listed: Repair | None = None,
        bytes_max: int | None = None,
    ) -> bool:
        """Say whether a record of this owner that was verified is taken.

        Args:
            signed: the record.
            listed: what a listing proves to be live: a record of it replaces others that are
                no newer than its head.
            bytes_max: of the records of this owner; OWNER_BYTES_MAX unless given.

        Raises:
            SpaceExhausted: the owner would have more than its quota.
        """
        path, row = signed.record.path, Row.of(signed)
        held = self.rows.get(path)
        if held is not None and held.id == row.id:
            return False
        proven = self.cursors.get(row.section, 0)
        is_listed = (
            listed is not None
            and listed.fetch.get(path) == row.id
            and proven < listed.sequence
            and (held is None or held.sequence <= listed.sequence)
        )
        if not is_listed and (
            row.sequence <= proven or (held is not None and not row.outranks(held))
        ):
            return False
        self._check_quota(row, held, limits.OWNER_BYTES_MAX if bytes_max is None else bytes_max)
        return True

    def oldest_tombstone(self, path: str) -> str | None:
        """Return the tombstone that goes for a new one at a path; None where there is room."""
        if len(self._tombstones) < limits.TOMBSTONES_MAX:
            return None
        return next((at for _, at in self._tombstones if at != path), None)

    def _check_quota(self, row: Row, held: Row | None, bytes_max: int) -> None:
        was_live = held is not None and not held.deleted
        if not row.deleted and not was_live and self.live >= limits.RECORDS_MAX:
            raise SpaceExhausted(f"an owner has at most {limits.RECORDS_MAX} records")
        more = row.size_bytes - (held.size_bytes if held else 0)
        if more > 0 and self.size_bytes + more > bytes_max:
            raise SpaceExhausted(f"this owner has at most {bytes_max} bytes of records here")

    def put(self, path: str, row: Row) -> None:
        """Take a row in, after the store has written its record."""
        held = self.rows.get(path)
        if held is not None:
            self._remove(path, held)
        proven = self.proven.get(row.section)
        if proven is not None and row.sequence <= proven.head.record.sequence:
            del self.proven[row.section]  # a newer head says that this was live, and it does not
        self.rows[path] = row
        self.last = max(self.last, row.sequence)
        insort(self._orders.setdefault(row.section, []), (row.sequence, path))
        if row.deleted:
            insort(self._tombstones, (row.sequence, path))
        self.size_bytes += row.size_bytes

    def forget(self, path: str) -> None:
        """Take a row out, after the store has deleted its record."""
        self._remove(path, self.rows.pop(path))

    def _remove(self, path: str, row: Row) -> None:
        order = self._orders[row.section]
        del order[bisect_left(order, (row.sequence, path))]
        if row.deleted:
            del self._tombstones[bisect_left(self._tombstones, (row.sequence, path))]
        self.size_bytes -= row.size_bytes
        proven = self.proven.get(row.section)
        if proven and not row.deleted and row.sequence <= proven.head.record.sequence:
            proven.before.setdefault(path, row.id)

    def after(self, section: str, sequence: int, count: int) -> list[str]:
        """Return the first paths of a section with a record above a sequence, in order."""
        order = self._orders.get(section, [])
        start = bisect_right(order, (sequence, _LAST))
        return [path for _, path in order[start : start + count]]

    def size_of(self, section: str) -> int:
        """Return how many records there are in a section."""
        return len(self._orders.get(section, ()))

    # Heads

    def live_at(self, section: str, sequence: int, before: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the live paths of a section at a sequence, with the ids of their records.

        Args:
            section: one of SECTIONS.
            sequence: of a head.
            before: what was live then at paths that have changed since.
        """
        order = self._orders.get(section, [])
        held = order[: bisect_right(order, (sequence, _LAST))]
        return {path: self.rows[path].id for _, path in held if not self.rows[path].deleted} | {
            **before
        }

    def hash_now(self, section: str) -> bytes | None:
        """Return the hash of what is live in a section now; None where that is nothing."""
        proven = self.proven.get(section)
        if proven and not proven.before:
            head = proven.head.record
            if not self.after(section, head.sequence, 1):
                return head.hash_of(section)
        return section_hash(self.live_at(section, self.last, {}))

    def prove(self, section: str, head: Signed[SpaceHead], before: Mapping[str, bytes]) -> bool:
        """Say whether what is held of a section is what a head says; if so, keep that.

        Args:
            section: that is subscribed to; its cursor may advance to the head.
            head: verified, of this owner.
            before: what a replica says of paths that changed since the head. Only such count
                of which a newer record is held here: a path that is not cannot be hidden so.

        A head over more than RECORDS_MAX records proves nothing: no answer could list them to
        others.
        """
        sequence, known = head.record.sequence, self.proven.get(section)
        if self.cursors.get(section, 0) > sequence:
            return False
        digest = head.record.hash_of(section)
        if (
            known is not None
            and known.head.record.hash_of(section) == digest
            and known.before.keys() <= self.rows.keys()
        ):
            between = self.after(section, known.head.record.sequence, 1)
            if not between or self.rows[between[0]].sequence > sequence:
                self.prove_as(section, replace(known, head=head))
                return True
        mine = {
            path: at
            for path, at in before.items()
            if (row := self.rows.get(path)) is not None
            and row.section == section
            and row.sequence > sequence
        }
        live = self.live_at(section, sequence, mine)
        if len(live) > limits.RECORDS_MAX or section_hash(live) != digest:
            return False
        self.prove_as(section, Proven(head, mine))
        return True

    def prove_as(self, section: str, proven: Proven) -> None:
        """Take over that a head is proven for a section."""
        self.proven[section] = proven
        self.cursors[section] = proven.head.record.sequence
        if self.head is None or self.head.record.place < proven.head.record.place:
            self.head = proven.head

    def show(self, section: str, above: tuple[int, int] = (-1, 0)) -> Proven | None:
        """Return the newest head for which all of a section is here, and what changed since.

        None where its sequence and date are not `above` those that are known.
        """
        proven = self.proven.get(section)
        if proven is None or proven.head.record.place <= above:
            return None
        return Proven(proven.head, dict(proven.before))

    def repair(
        self, section: str, head: Signed[SpaceHead], listed: Iterable[tuple[str, bytes]]
    ) -> Repair:
        """Return what to drop and to fetch, so that the head can be proven for a section.

        What a newer head covers is not decided by an older one.

        Raises:
            RecordInvalid: the listing is not what the head says.
        """
        ids = dict(listed)
        if {paths.section_of(path) for path in ids} - {section} or (
            section_hash(ids) != head.record.hash_of(section)
        ):
            raise RecordInvalid("a listing that does not match the owner's head")
        sequence = head.record.sequence
        if self.cursors.get(section, 0) >= sequence:
            return Repair(sequence, [], {})
        newer = {*self.after(section, sequence, len(self.rows))}
        fetch = {
            path: record
            for path, record in ids.items()
            if path not in newer and ((row := self.rows.get(path)) is None or row.id != record)
        }
        drop = [*self.live_at(section, sequence, {}).keys() - ids.keys()]
        return Repair(sequence, sorted(drop), fetch)

    # Bounded growth

    def old_tombstones(self, *, now_ms: int, told: int) -> list[str]:
        """Return tombstones that nobody needs any more.

        Every subscriber that is known was told of them, or TOMBSTONE_KEPT_MS have passed. Only
        those go that a proven head covers: an older record at their path is refused by that.

        Args:
            now_ms: the time.
            told: the least cursor of all known subscribers; 0 where none is known.
        """
        return [
            path
            for sequence, path in self._tombstones
            if (sequence <= told or self.rows[path].written_ms + limits.TOMBSTONE_KEPT_MS <= now_ms)
            and sequence <= self.cursors.get(self.rows[path].section, 0)
        ]

    def sections(self) -> set[str]:
        """Return the sections of which something is here."""
        return {row.section for row in self.rows.values()} | self.cursors.keys()


def owner_bytes_max(beside_bytes: int, others_bytes: int) -> int:
    """Return how many bytes an owner may have at a replica.

    All that are known by the word of one node may have half of what the rest leave of
    OTHERS_BYTES_MAX, so that none fills it with owners of its own making.

    Args:
        beside_bytes: what the others have that are known by the word of the same node.
        others_bytes: what all others than it and the replica have.
    """
    left_bytes = limits.OTHERS_BYTES_MAX - (others_bytes - beside_bytes)
    return min(limits.OWNER_BYTES_MAX, max(limits.OWNER_SURE_BYTES, left_bytes // 2 - beside_bytes))


def old_versions(
    versions: Collection[tuple[int, int]], *, keep_versions: int, keep_ms: int, now_ms: int
) -> list[int]:
    """Return the sequences of archived versions of one path that are not kept.

    A version is kept while it is among the newest `keep_versions`, or younger than `keep_ms`.

    Args:
        versions: sequence of each, and when it was archived.
        keep_versions: kept whatever their age.
        keep_ms: kept whatever their number.
        now_ms: the time.
    """
    by_age = sorted(versions, reverse=True)[keep_versions:]
    return [sequence for sequence, archived_ms in by_age if archived_ms + keep_ms <= now_ms]
