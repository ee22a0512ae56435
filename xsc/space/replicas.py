"""The tables of all owners on the disk and in memory, and what is proven of them.

Each owner has one turn: a batch is planned, applied to the rows in memory, and committed in one
atomic write. If the write fails, the rows are read again from the disk. Values are stored by path
and replaced with their record.

Keys: `m` owner path: envelope; `v` owner path: value; `a` owner path 0 sequence: a replaced
version; `p` owner: the newest proven head, and the cursor of each section; `i`: who invited
this node; `c`: the own clock; `f`: the own sequence and the own head that peers have shown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

from xsc.base import ids, turns
from xsc.base.errors import NotFound, RecordInvalid, StoreDamaged, XscError
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.db.group import GroupCommit
from xsc.identity import envelope
from xsc.identity.context import Context
from xsc.space import limits, messages
from xsc.space.causality import Causality, KeptClock
from xsc.space.paths import UserSpacePaths, absent, is_under, sections_of
from xsc.space.record import Change, Entry, SpaceHead, SpaceRecord, check_value
from xsc.space.table import OwnerTable, Proven, Repair, Row, owner_bytes_max
from xsc.space.watching import Watched

META, VALUE, ARCHIVE, PROVEN = b"m", b"v", b"a", b"p"
CLOCK, FLOOR, INVITER = b"c", b"f", b"i"
KINDS = sorted((META, VALUE, ARCHIVE, PROVEN))
"""Of rows that name an owner."""
KEPT_BYTES_MAX = 2 * limits.VALUE_BYTES_MAX + 2 * SpaceRecord.ENVELOPE_BYTES_MAX
FAULTS_MAX = 1_000
"""Listed; a damaged database can have any number."""


class Page(NamedTuple):
    """What a cursor is sent."""

    entries: list[Entry]
    shown: Proven | None
    more: bool
    """Whether there are further records than these."""


class Archived(envelope.Record):
    """A replaced version of an own record, as it is on the disk."""

    KIND: ClassVar[str] = "space_archived"

    archived_ms: envelope.Count
    record: bytes
    value: bytes


class KeptHead(envelope.Record):
    """The newest proven head of an owner as it is on the disk, and the cursor of each section."""

    KIND: ClassVar[str] = "space_kept_head"

    head: bytes
    cursors: tuple[tuple[messages.Section, envelope.Count], ...]


def _read_head(
    owner: bytes, raw: bytes, network: bytes
) -> tuple[envelope.Signed[SpaceHead], tuple[tuple[str, int], ...]]:
    """Return head and cursors of a `KeptHead`.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: it is none, or not of the owner.
    """
    kept, size_max = KeptHead.from_bytes(raw), SpaceHead.ENVELOPE_BYTES_MAX
    head = envelope.open_signed(
        kept.head, SpaceHead, network=network, author=owner, size_max=size_max
    )
    return head, kept.cursors


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of records that were offered."""

    paths: list[str]
    """Of those that are new."""
    refused: list[XscError]


class Batch:
    """Changes that are not written yet, and what a key has with them."""

    def __init__(self, db: KeyValue) -> None:
        self._db = db
        self.changes: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key."""
        return self.changes[key] if key in self.changes else self._db.get(key)

    def set(self, key: bytes, value: bytes | None) -> None:
        """Set a key, or delete it."""
        self.changes[key] = value


def keep_proven(batch: Batch, owner: bytes, table: OwnerTable) -> None:
    """Take into a batch what is proven of an owner."""
    kept = None
    if table.head is not None and table.cursors:
        cursors = tuple(table.cursors.items())
        kept = KeptHead(head=table.head.raw, cursors=cursors).to_bytes()
    batch.set(PROVEN + owner, kept)


def drop(batch: Batch, owner: bytes, table: OwnerTable, path: str) -> None:
    """Delete a record and its value in a batch and in the rows."""
    key = owner + path.encode()
    batch.set(META + key, None)
    batch.set(VALUE + key, None)
    table.forget(path)


def stage(batch: Batch, table: OwnerTable, signed: envelope.Signed[SpaceRecord]) -> None:
    """Take a record without its value into a batch and into the rows."""
    path = signed.record.path
    if signed.record.digest is None and (oldest := table.oldest_tombstone(path)) is not None:
        drop(batch, signed.author, table, oldest)
    batch.set(META + signed.author + path.encode(), signed.raw)
    table.put(path, Row.of(signed))


class Replicas(Watched):
    """Tables of this node and of others, and what comes of peers."""

    def __init__(
        self,
        db: KeyValue,
        context: Context,
        *,
        introducer_of: Callable[[bytes], str] = ids.to_text,
        keep_versions: int = 0,
        keep_ms: int = 0,
    ) -> None:
        super().__init__(context.key.node_id)
        self._db = db
        self._executor = context.executor
        self.work = turns.PeerWork(context.executor)
        """Decodes and checks what peers have sent."""
        self._commits = GroupCommit(db, context.executor)
        self._time = context.clock
        self._key = context.key
        self._network = context.network
        self._introducer_of = introducer_of
        self._keep_versions = keep_versions
        self._keep_ms = keep_ms
        self._tables: dict[bytes, OwnerTable] = {}
        self._turns: turns.Turns[bytes] = turns.Turns()
        self.causality = Causality(self.owner, context.network)
        self.register_schema(UserSpacePaths.INTERVAL, self.causality.check_grant)
        self.asked: dict[bytes, Sequence[messages.Cursor]] = {}
        """What each known subscriber has asked for last, since the start."""
        for owner in set(self.owners()) - {self.owner}:
            self._note_grant(owner, db)
        if (clock := db.get(CLOCK)) is not None:
            self.causality.restore(clock)
        self._inviter = db.get(INVITER)
        floor = db.get(FLOOR) or bytes(16)
        self._floor = int.from_bytes(floor[:8], "big")
        self._shown = int.from_bytes(floor[8:], "big")
        """The sequence of the newest own head that peers have shown in a recovery."""

    # Reading

    def get(self, path: str, owner: bytes | None = None) -> Entry:
        """Return the newest record of a path, as it is on the disk.

        Raises:
            NotFound: there is none, or it was deleted.
        """
        entry = self.find(path, owner)
        if entry is None:
            raise absent(path, None if owner == self.owner else owner)
        return entry

    def find(self, path: str, owner: bytes | None = None) -> Entry | None:
        """Return the same, or None where there is nothing."""
        entry = self._entry(self._db, owner or self.owner, path)
        return None if entry is None or entry.signed.record.digest is None else entry

    def _entry(self, db: KeyValue | Batch, owner: bytes, path: str) -> Entry | None:
        raw = db.get(META + owner + path.encode())
        if raw is None:
            return None
        return Entry(self._parsed(owner, raw), db.get(VALUE + owner + path.encode()))

    def _parsed(self, owner: bytes, raw: bytes) -> envelope.Signed[SpaceRecord]:
        """Return a record that was verified before it was stored."""
        try:
            return envelope.read_claimed(
                raw,
                SpaceRecord,
                network=self._network,
                author=owner,
                size_max=SpaceRecord.ENVELOPE_BYTES_MAX,
            )
        except XscError as fault:
            raise StoreDamaged(f"a record of the space is damaged: {fault.message}") from None

    def ls(self, prefix: str, owner: bytes | None = None) -> list[SpaceRecord]:
        """Return the live records under a prefix, in the order of paths."""
        owner = owner or self.owner
        start = META + owner + prefix.encode()
        records = (self._parsed(owner, raw).record for _, raw in self._scan(start))
        return [
            record
            for record in records
            if record.digest is not None and is_under(record.path, prefix)
        ]

    def _scan(self, prefix: bytes) -> Iterable[tuple[bytes, bytes]]:
        return self._db.scan(prefix, prefix_end(prefix))

    def owners(self) -> list[bytes]:
        """Return every owner of whom a record or a head is stored."""
        found = set[bytes]()
        for kind in (META, PROVEN):
            start: bytes | None = kind
            while start is not None:
                key = next((key for key, _ in self._db.scan(start, prefix_end(kind))), None)
                if key is None:
                    break
                found.add(key[1 : 1 + ids.ID_BYTES])
                start = prefix_end(key[: 1 + ids.ID_BYTES])
        return sorted(found)

    async def page(
        self,
        owner: bytes,
        section: str,
        after: int,
        *,
        count: int,
        size_bytes: int,
        head: tuple[int, int] = (-1, 0),
    ) -> Page:
        """Return the records of a section above a sequence, in order, and the proven head.

        It is None unless it is newer than `head`, a sequence and date.

        Small values are beside their records. There is at least one record, where there is any,
        and otherwise no more than `count` and `size_bytes`.
        """
        async with self._turns.of(owner):
            table = await self._table(owner)
            entries: list[Entry] = []
            paths = table.after(section, after, count + 1)
            for path in paths[:count]:
                entry = self._entry(self._db, owner, path)
                assert entry is not None, "a row has its record"
                size_bytes -= len(entry.sent.raw) + len(entry.sent.value or b"")
                if entries and size_bytes < 0:
                    break
                entries.append(entry)
            return Page(entries, table.show(section, head), len(paths) > len(entries))

    # Tables

    async def _table(self, owner: bytes) -> OwnerTable:
        """Return the rows of an owner; its turn is held."""
        table = self._tables.get(owner)
        if table is None:
            await self._commits.settle()  # a caller that went away may have left a write
            table = OwnerTable()
            async for _, raw in turns.sliced(self._scan(META + owner)):
                signed = self._parsed(owner, raw)
                table.put(signed.record.path, Row.of(signed))
            self._read_proven(owner, table)
            if table.rows or table.proven or owner == self.owner:
                # No more are kept than are on the disk, whatever owners peers make up.
                self._tables[owner] = table
        return table

    def _read_proven(self, owner: bytes, table: OwnerTable) -> None:
        """Read the cursors of an owner, and what can be shown of it."""
        raw = self._db.get(PROVEN + owner)
        if raw is None:
            return
        try:
            head, cursors = _read_head(owner, raw, self._network)
        except XscError as fault:
            raise StoreDamaged(f"a head of the space is damaged: {fault.message}") from None
        table.head, table.cursors = head, dict(cursors)
        for section, sequence in cursors:
            if sequence == head.record.sequence:
                table.prove(section, head, {})  # else it was another one of that sequence

    async def _commit(self, owner: bytes, batch: Batch) -> None:
        """Write a batch; where that fails or is cancelled, the rows are read again."""
        try:
            await self._commits.commit(list(batch.changes.items()))
        except BaseException:
            self._tables.pop(owner, None)
            raise

    def _archive(self, batch: Batch, table: OwnerTable, record: SpaceRecord) -> None:
        """Keep in a batch what an own record replaces, where replaced versions are kept."""
        old = table.rows.get(record.path)
        is_kept = old is not None and not old.deleted and old.sequence < record.sequence
        if old is None or not is_kept or not (self._keep_versions or self._keep_ms):
            return
        entry = self._entry(batch, self.owner, record.path)
        assert entry is not None, "what is replaced is there"
        if entry.value is not None:  # else it was recovered without its value
            now_ms = self._time.now_ms()
            kept = Archived(archived_ms=now_ms, record=entry.signed.raw, value=entry.value)
            at = ARCHIVE + self.owner + record.path.encode() + b"\0"
            batch.set(at + old.sequence.to_bytes(8, "big"), kept.to_bytes())

    def _note_grant(self, owner: bytes, db: KeyValue | Batch) -> None:
        at = VALUE + owner + UserSpacePaths.INTERVAL.encode()
        self.causality.note_grant(owner, db.get(at))

    # What others wrote

    async def take(
        self,
        owner: bytes,
        offered: Sequence[tuple[envelope.Signed[SpaceRecord], bytes | None]],
        listed: Repair | None = None,
    ) -> Taken:
        """Store records that were verified, with values where they came along, and tell of them.

        One that is refused keeps no other from being stored. What was `listed` replaces also what
        it does not outrank. Own records are taken back in a recovery: the next own sequence is
        above them, also above those that are not stored. These are not checked or told again.
        """
        taken: list[tuple[envelope.Signed[SpaceRecord], bytes | None]] = []
        refused: list[XscError] = []
        good: list[tuple[envelope.Signed[SpaceRecord], bytes | None]] = []
        for signed, value in offered:
            try:
                if owner != self.owner:
                    size, path = len(value or b""), signed.record.path
                    await self.work.run(owner, size, self.check, owner, path, value)
            except XscError as fault:
                refused.append(fault)
            else:
                good.append((signed, value))
        async with self._turns.of(owner):
            table = await self._table(owner)
            batch = Batch(self._db)
            table.introducer = self._introducer_of(owner)
            others = [held for at, held in self._tables.items() if at not in (self.owner, owner)]
            others_bytes = sum(held.size_bytes for held in others)
            beside_bytes = sum(
                held.size_bytes for held in others if held.introducer == table.introducer
            )
            bytes_max = owner_bytes_max(beside_bytes, others_bytes)
            if owner == self.owner:
                bytes_max = limits.OWNER_BYTES_MAX
                shown = max((signed.record.sequence for signed, _ in offered), default=0)
                self._raise_floor(batch, table, shown)
            for signed, value in good:
                record = signed.record
                try:
                    if value is not None:
                        check_value(record, value)
                    is_taken = table.takes(signed, listed=listed, bytes_max=bytes_max)
                except XscError as fault:
                    refused.append(fault)
                    continue
                if is_taken:
                    if owner == self.owner:  # how many others replace has no bound
                        self._archive(batch, table, record)
                    stage(batch, table, signed)
                    batch.set(VALUE + owner + record.path.encode(), value)
                    taken.append((signed, value))
            if batch.changes:
                self._tables[owner] = table  # of an owner of whom nothing was here before, too
                await self._commit(owner, batch)
            records = [signed.record for signed, _ in taken]
            paths = [record.path for record in records]
            if UserSpacePaths.INTERVAL in paths and owner != self.owner:
                self._note_grant(owner, batch)
            if records:
                self.causality.adopt(owner, max(records, key=lambda record: record.sequence))
        if owner != self.owner:
            for signed, value in taken:
                self.tell(Change.of(signed, value))
        return Taken(paths, refused)

    async def keep_value(self, owner: bytes, path: str, value: bytes) -> None:
        """Store the value of a record that was loaded later.

        Raises:
            RecordInvalid: the newest record there does not name it.
        """
        async with self._turns.of(owner):
            entry = self._entry(self._db, owner, path)
            if entry is None:
                raise RecordInvalid(f"no record is at '{path}'")
            check_value(entry.signed.record, value)
            batch = Batch(self._db)
            batch.set(VALUE + owner + path.encode(), value)
            await self._commit(owner, batch)

    async def prove(
        self,
        owner: bytes,
        head: envelope.Signed[SpaceHead],
        before: Mapping[str, Mapping[str, bytes]],
    ) -> tuple[set[str], set[str], int]:
        """Keep what a head proves of what is stored.

        One of the same sequence as the last is not written again.

        Args:
            owner: of the space.
            head: that was verified.
            before: of each section, what a replica says of paths that changed since the head.

        Returns the sections for which it is proven, those for which it is not, and how many rows
        were compared. Where a newer head is proven it is neither.
        """
        proven, failed = set[str](), set[str]()
        async with self._turns.of(owner):
            table = await self._table(owner)
            batch = Batch(self._db)
            changed, compared = False, 0
            if owner == self.owner:
                self._raise_floor(batch, table, head=head.record.sequence)
            for section, rows in before.items():
                if table.cursors.get(section, 0) > head.record.sequence:
                    continue  # another replica was faster
                changed |= table.cursors.get(section, 0) < head.record.sequence
                compared += len(rows) + table.size_of(section)
                (proven if table.prove(section, head, rows) else failed).add(section)
            if proven and changed:
                keep_proven(batch, owner, table)
            if batch.changes:
                await self._commit(owner, batch)
        return proven, failed, compared

    async def cursor(self, owner: bytes, prefix: str) -> int:
        """Return up to which sequence everything under a prefix is proven; 0 without a head."""
        return min([await self.cursor_of(owner, section) for section in sections_of(prefix)])

    async def cursor_of(self, owner: bytes, section: str) -> int:
        """Return the sequence of the head that is proven of a section; 0 without one."""
        async with self._turns.of(owner):
            return (await self._table(owner)).cursors.get(section, 0)

    async def listing(self, owner: bytes, section: str) -> tuple[bytes, messages.Ids]:
        """Return the head that is shown of a section, and its live paths and their records' ids.

        Raises:
            NotFound: no head is proven here for all of it.
        """
        async with self._turns.of(owner):
            table = await self._table(owner)
            shown = table.show(section)
            if shown is None:
                raise NotFound(f"no head covers '{section}' here")
            live = table.live_at(section, shown.head.record.sequence, shown.before)
            return shown.head.raw, tuple(sorted(live.items()))

    async def repair(
        self,
        owner: bytes,
        section: str,
        head: envelope.Signed[SpaceHead],
        listed: Iterable[tuple[str, bytes]],
    ) -> Repair:
        """Delete what a listing proves to be deleted; return that, and what to fetch.

        Raises:
            RecordInvalid: the listing does not match the head.
        """
        async with self._turns.of(owner):
            table = await self._table(owner)
            repair = table.repair(section, head, listed)
            batch = Batch(self._db)
            for path in repair.drop:
                drop(batch, owner, table, path)
            await self._commit(owner, batch)
            return repair

    async def evict(self, owner: bytes, kept: Collection[str]) -> None:
        """Delete what another owner has in other sections than those that are kept."""
        async with self._turns.of(owner):
            table = await self._table(owner)
            ended = table.sections() - set(kept)
            batch = Batch(self._db)
            for section in ended:
                table.proven.pop(section, None)
                table.cursors.pop(section, None)
                for path in table.after(section, 0, table.size_of(section)):
                    drop(batch, owner, table, path)
            if ended:
                keep_proven(batch, owner, table)
            if not table.rows and not table.cursors:
                self._tables.pop(owner, None)
            await self._commit(owner, batch)
            if UserSpacePaths.INTERVAL in ended:
                self.causality.note_grant(owner, None)

    def _raise_floor(
        self, batch: Batch, table: OwnerTable, sequence: int = 0, head: int = 0
    ) -> None:
        """Write above all that is here and was shown, also above `head`, that of an own head.

        A head that is signed next may lack records: it must not have the sequence of another.
        """
        self._shown = max(self._shown, head)
        last = max(table.last, table.head_sequence, sequence, head)
        self._floor = max(self._floor, 1 + last)
        batch.set(FLOOR, self._floor.to_bytes(8, "big") + self._shown.to_bytes(8, "big"))


@dataclass(frozen=True, slots=True)
class SpaceAudit:
    """What a check found."""

    records: int
    """Records that are whole, with tombstones."""
    faults: tuple[str, ...]


def audit(db: KeyValue, *, network: bytes) -> SpaceAudit:
    """Check every record, value, head and clock; a node may write meanwhile."""
    records, faults = 0, list[str]()
    try:
        for key, raw in db.scan(META, prefix_end(META)):
            fault = _record_fault(db, key, raw, network)
            if fault is None or db.get(key) != raw:  # replaced since the scan began
                records += 1
            else:
                faults.append(fault)
        faults += _other_faults(db, network)
    except StoreDamaged as fault:
        faults.append(f"the database of the space cannot be read to its end: {fault.message}")
    return SpaceAudit(records, tuple(faults[:FAULTS_MAX]))


def _record_fault(db: KeyValue, key: bytes, raw: bytes, network: bytes) -> str | None:
    """Return what is wrong with a record or its value."""
    owner, path = key[1 : 1 + ids.ID_BYTES], key[1 + ids.ID_BYTES :]
    try:
        record = envelope.open_signed(
            raw, SpaceRecord, network=network, author=owner, size_max=SpaceRecord.ENVELOPE_BYTES_MAX
        ).record
        if record.path.encode() != path:
            raise RecordInvalid("it is of another path")
        value = db.get(VALUE + key[1:])
        if value is not None:
            check_value(record, value)
    except XscError as fault:
        shown = path.decode(errors="backslashreplace")
        return f"the record {ids.short(owner)}:{shown} is damaged: {fault.message}"
    return None


def _other_faults(db: KeyValue, network: bytes) -> Iterator[str]:
    def reads() -> Iterator[tuple[str, Callable[[], object]]]:
        for key, raw in db.scan(PROVEN, prefix_end(PROVEN)):
            yield f"a head of {ids.short(key[1:])}", partial(_read_head, key[1:], raw, network)
        for _, raw in db.scan(ARCHIVE, prefix_end(ARCHIVE)):
            read = partial(Archived.from_bytes, raw, size_max=KEPT_BYTES_MAX)
            yield "an archived record of the space", read
        if (clock := db.get(CLOCK)) is not None:
            yield "the clock of the space", partial(KeptClock.from_bytes, clock)

    for what, read in reads():
        try:
            read()
        except XscError as fault:
            yield f"{what} is damaged: {fault.message}"
