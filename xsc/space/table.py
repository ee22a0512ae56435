"""The table of one owner's records: what a store does with the next record, and what is proven.

A replica takes a record in if it is newer than what it has at the path, and counts as complete
under a prefix only what matches a head of the owner. All of it is decided from the rows here;
`xsc.space.store` carries it out. docs/design/space.md, T1 to T9.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from xsc.base.errors import RecordInvalid, SpaceExhausted
from xsc.identity.envelope import Signed
from xsc.space.limits import (
    OTHERS_BYTES_MAX,
    OWNER_BYTES_MAX,
    OWNER_SURE_BYTES,
    RECORD_BYTES,
    RECORDS_MAX,
    TOMBSTONE_KEPT_MS,
    TOMBSTONES_MAX,
    UNSUBSCRIBED_KEPT_MS,
)
from xsc.space.paths import is_under
from xsc.space.record import SpaceHead, SpaceRecord
from xsc.space.tree import PathTree, Proof, proves, records_beside

T = TypeVar("T")
_LAST = "\U0010ffff"
"""Sorts after every path."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a table knows of the newest record at a path."""

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
        size_bytes = RECORD_BYTES + len(record.path) + len(record.stamp) + record.size_bytes
        return cls(record.sequence, signed.id, record.written_ms, record.digest, size_bytes)

    @property
    def deleted(self) -> bool:
        """Whether the record is a tombstone."""
        return self.digest is None

    def outranks(self, other: Row) -> bool:
        """Say whether this record replaces another at its path.

        Of two under one sequence the one with the smaller id holds, so that replicas agree.
        """
        return (self.sequence, other.id) > (other.sequence, self.id)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a record that was verified."""

    put: bool
    archive: bool = False
    """The record that is replaced is a superseded version, for the archive."""
    evidence: str | None = None
    """Path of another record that the owner signed under the same sequence: keep both."""
    drop: str | None = None
    """Path of the oldest tombstone, which makes room for this one."""


@dataclass(slots=True)
class Proven:
    """A head, and that what is held under a prefix is what it says."""

    head: Signed[SpaceHead]
    proof: Proof
    before: dict[str, bytes]
    """Ids of the records that were live at the head, of paths that have changed since."""
    whole: bool = True
    """Whether `before` has all of these; after a restart it may not, and nothing is shown."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a replica shows a subscriber, so that its cursor can advance."""

    head: bytes
    at: tuple[int, int]
    """Sequence and date of the head."""
    proof: Proof
    before: dict[str, bytes]


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
    """By prefix. The owner's own table has the empty prefix."""
    tree: PathTree = field(default_factory=PathTree)
    live: int = 0
    size_bytes: int = 0
    _order: list[tuple[int, str]] = field(default_factory=list)

    # Records

    def plan(
        self,
        signed: Signed[SpaceRecord],
        *,
        listed: Repair | None = None,
        bytes_max: int | None = None,
    ) -> Plan:
        """Return what to do with a record of this owner that was verified.

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
            return Plan(put=False)
        first = bisect_left(self._order, (row.sequence, ""))
        evidence = None
        if first < len(self._order) and self._order[first][0] == row.sequence:
            evidence = self._order[first][1]
        proven = self.proven_sequence(path)
        is_listed = (
            listed is not None
            and listed.fetch.get(path) == row.id
            and proven < listed.sequence
            and (held is None or held.sequence <= listed.sequence)
        )
        if not is_listed and (
            row.sequence <= proven or (held is not None and not row.outranks(held))
        ):
            return Plan(put=False, evidence=evidence)
        self._check_quota(row, held, OWNER_BYTES_MAX if bytes_max is None else bytes_max)
        drop = None
        if row.deleted and len(self.rows) - self.live >= TOMBSTONES_MAX:
            drop = next((at for _, at in self._order if self.rows[at].deleted and at != path), None)
        archive = held is not None and not held.deleted and held.sequence < row.sequence
        return Plan(put=True, archive=archive, evidence=evidence, drop=drop)

    def _check_quota(self, row: Row, held: Row | None, bytes_max: int) -> None:
        was_live = held is not None and not held.deleted
        if not row.deleted and not was_live and self.live >= RECORDS_MAX:
            raise SpaceExhausted(f"an owner has at most {RECORDS_MAX} records")
        more = row.size_bytes - (held.size_bytes if held else 0)
        if more > 0 and self.size_bytes + more > bytes_max:
            raise SpaceExhausted(f"this owner has at most {bytes_max} bytes of records here")

    def put(self, path: str, row: Row) -> None:
        """Take a row in, after the store has written its record."""
        held = self.rows.get(path)
        if held is not None:
            self._remove(path, held)
            self._note_change(path, held)
        for prefix, proven in self.proven.items():
            if row.sequence <= proven.head.record.sequence and is_under(path, prefix):
                proven.whole = False  # a newer head says that this was live, which that one denies
        self.rows[path] = row
        insort(self._order, (row.sequence, path))
        self.size_bytes += row.size_bytes
        if not row.deleted:
            self.live += 1
            self.tree.set(path, row.id)

    def forget(self, path: str) -> None:
        """Take a row out, after the store has deleted its record."""
        row = self.rows.pop(path)
        self._note_change(path, row)
        self._remove(path, row)

    def _note_change(self, path: str, row: Row) -> None:
        """Keep the id of a live row's record for the heads that were proven with it."""
        if row.deleted:
            return
        for prefix, proven in self.proven.items():
            if row.sequence <= proven.head.record.sequence and is_under(path, prefix):
                proven.before.setdefault(path, row.id)

    def _remove(self, path: str, row: Row) -> None:
        del self._order[bisect_left(self._order, (row.sequence, path))]
        self.size_bytes -= row.size_bytes
        if not row.deleted:
            self.live -= 1
            self.tree.set(path, None)

    def after(self, prefix: str, sequence: int, count: int) -> list[str]:
        """Return the first paths under a prefix with a record above a sequence, in order."""
        found: list[str] = []
        if sequence >= self.last:
            return found
        start = bisect_right(self._order, (sequence, _LAST))
        for number in range(start, len(self._order)):
            path = self._order[number][1]
            if is_under(path, prefix):
                found.append(path)
                if len(found) == count:
                    break
        return found

    def passed(self, prefix: str, sequence: int) -> int:
        """Return at most how many rows a search above a sequence passes that are not found."""
        return self.newer(sequence) if prefix else 0

    def newer(self, sequence: int) -> int:
        """Return how many records are above a sequence."""
        return len(self._order) - bisect_right(self._order, (sequence, _LAST))

    @property
    def last(self) -> int:
        """The highest sequence of a record here; 0 without any."""
        return self._order[-1][0] if self._order else 0

    # Heads

    def proven_sequence(self, path: str) -> int:
        """Return the sequence up to which everything at a path is known here."""
        return max(
            (
                proven.head.record.sequence
                for prefix, proven in self.proven.items()
                if is_under(path, prefix)
            ),
            default=0,
        )

    def _as_of(
        self, prefix: str, sequence: int, before: Mapping[str, bytes], ask: Callable[[PathTree], T]
    ) -> T:
        """Return an answer of the tree as it was at a sequence under a prefix."""
        changed = {*self.after(prefix, sequence, len(self._order)), *before}
        for path in changed:
            self.tree.set(path, before.get(path))
        try:
            return ask(self.tree)
        finally:
            for path in changed:
                row = self.rows.get(path)
                self.tree.set(path, None if row is None or row.deleted else row.id)

    def prove(
        self, prefix: str, head: Signed[SpaceHead], proof: Proof, before: Mapping[str, bytes]
    ) -> bool:
        """Say whether what is held under a prefix is what a head says; if so, keep that.

        Args:
            prefix: of a subscription; the cursor of it may advance to the head.
            head: verified, of this owner.
            proof: of the prefix under that head, from any replica.
            before: what a replica says of paths that changed since the head. Only such count
                of which a newer record is held here: a path that is not cannot be hidden so.

        A head over more than RECORDS_MAX records proves nothing: no answer could show it to others.
        """
        sequence = head.record.sequence
        known = self.proven.get(prefix)
        if known is not None and known.head.record.sequence > sequence:
            return False
        if known is not None and known.whole and is_dated_anew(known.head.record, head.record):
            self.proven[prefix] = replace(known, head=head)
            return True
        mine = {
            path: at
            for path, at in before.items()
            if is_under(path, prefix)
            and (row := self.rows.get(path)) is not None
            and row.sequence > sequence
        }

        def holds(tree: PathTree) -> bool:
            part, beside = tree.at(prefix), records_beside(proof)
            if beside + len(mine) + self.live > RECORDS_MAX:
                beside += sum(1 for _ in part.rows())
            return beside <= RECORDS_MAX and proves(head.record.root, prefix, part, proof)

        if not self._as_of(prefix, sequence, mine, holds):
            return False
        self.proven[prefix] = Proven(head, proof, mine)
        return True

    def _cover(self, prefix: str) -> tuple[str, Proven] | None:
        """Return the newest whole proof that covers a prefix."""
        covers = [
            held for held in self.proven.items() if held[1].whole and is_under(prefix, held[0])
        ]
        return max(covers, key=lambda held: (held[1].head.record.sequence, held[0]), default=None)

    def show(self, prefix: str, above: tuple[int, int] = (-1, 0)) -> Shown | None:
        """Return the newest head for which everything under a prefix is here, and its proof.

        None where its sequence and date are not `above` those that are known.
        """
        found = self._cover(prefix)
        if found is None:
            return None
        cover, proven = found
        if (proven.head.record.sequence, proven.head.record.written_ms) <= above:
            return None
        proof = self._as_of(
            cover,
            proven.head.record.sequence,
            proven.before,
            lambda tree: proven.proof + tree.proof(prefix)[len(proven.proof) :],
        )
        before = {path: at for path, at in proven.before.items() if is_under(path, prefix)}
        head = proven.head.record
        return Shown(proven.head.raw, (head.sequence, head.written_ms), proof, before)

    def newest_head(self) -> Signed[SpaceHead] | None:
        """Return the head with the highest sequence that was proven for any prefix."""
        heads = [proven.head for proven in self.proven.values()]
        return max(heads, key=lambda head: head.record.sequence, default=None)

    def shown_prefixes(self) -> list[str]:
        """Return prefixes for which a head is shown, the newest first, none within another."""
        whole = {
            prefix: proven.head.record.sequence
            for prefix, proven in self.proven.items()
            if proven.whole
        }
        return sorted(
            (
                prefix
                for prefix, sequence in whole.items()
                if not any(
                    other != prefix and is_under(prefix, other) and sequence <= at
                    for other, at in whole.items()
                )
            ),
            key=lambda prefix: (-whole[prefix], prefix),
        )

    def listing(self, prefix: str) -> list[tuple[str, bytes]]:
        """Return the live paths under a prefix at the head that is shown, and what is there."""
        found = self._cover(prefix)
        if found is None:
            return []
        cover, proven = found
        return self._as_of(
            cover,
            proven.head.record.sequence,
            proven.before,
            lambda tree: list(tree.at(prefix).rows(prefix)),
        )

    def repair(
        self,
        prefix: str,
        head: Signed[SpaceHead],
        proof: Proof,
        listed: Iterable[tuple[str, bytes]],
    ) -> Repair:
        """Return what to drop and to fetch, so that the head can be proven under a prefix.

        What a newer head covers is not decided by an older one.

        Raises:
            RecordInvalid: the listing is not what the head says.
        """
        tree = PathTree()
        rows = dict(listed)
        for path, record in rows.items():
            tree.set(path, record)
        if not all(is_under(path, prefix) for path in rows) or not proves(
            head.record.root, prefix, tree.at(prefix), proof
        ):
            raise RecordInvalid("a listing that does not match the owner's head")
        sequence = head.record.sequence

        def decides(path: str) -> bool:
            row = self.rows.get(path)
            is_older = row is None or row.sequence <= sequence
            return is_older and self.proven_sequence(path) < sequence

        fetch = {
            path: record
            for path, record in rows.items()
            if ((row := self.rows.get(path)) is None or row.id != record) and decides(path)
        }
        drop = [
            path
            for path, row in self.rows.items()
            if not row.deleted and path not in rows and is_under(path, prefix) and decides(path)
        ]
        return Repair(sequence, drop, fetch)

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
            for sequence, path in self._order
            if (row := self.rows[path]).deleted
            and (sequence <= told or row.written_ms + TOMBSTONE_KEPT_MS <= now_ms)
            and sequence <= self.proven_sequence(path)
        ]

    def unsubscribed(self, prefixes: Mapping[str, int | None], *, now_ms: int) -> list[str]:
        """Return paths that no subscription covers.

        Args:
            prefixes: of all subscriptions, and when each ended; None where it goes on.
            now_ms: the time.
        """
        kept = [
            prefix
            for prefix, ended_ms in prefixes.items()
            if ended_ms is None or now_ms < ended_ms + UNSUBSCRIBED_KEPT_MS
        ]
        return [path for path in self.rows if not any(is_under(path, prefix) for prefix in kept)]


def owner_bytes_max(own_bytes: int, all_bytes: int) -> int:
    """Return how many bytes an owner may have at a replica.

    Args:
        own_bytes: what it has.
        all_bytes: what all other owners than the replica have, it included.
    """
    room_bytes = own_bytes + max(0, OTHERS_BYTES_MAX - all_bytes)
    return min(OWNER_BYTES_MAX, max(OWNER_SURE_BYTES, room_bytes))


def is_dated_anew(known: SpaceHead, head: SpaceHead) -> bool:
    """Return whether a head says what a known one says, at a later date."""
    same = (known.sequence, known.root) == (head.sequence, head.root)
    return same and head.written_ms > known.written_ms


def conflict(one: SpaceHead, other: SpaceHead) -> bool:
    """Say whether two heads of one owner prove that it signed two histories."""
    return one.sequence == other.sequence and one.root != other.root


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
