"""The tables of all owners on the disk, and this node's own clock.

Each owner has one turn: a batch is planned, applied to the rows in memory, and committed in one
atomic write. If the write fails, the rows are read again from the disk. An own record, the
clock's event and what the record replaces are in one write, so that no sequence and no event is
used twice after a kill. Values are stored by path and replaced with their record.

Keys: `m` owner path: envelope; `v` owner path: value; `a` owner path 0 sequence: a replaced
version; `p` owner: the newest proven head, and the cursor of each section; `i`: who invited
this node; `c`: the own clock; `f`: the own sequence and the own head that peers have shown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, NamedTuple, Self

from pydantic import model_validator

from xsc.base import ids, turns
from xsc.base.clock import Clock as TimePort
from xsc.base.clock import Executor
from xsc.base.errors import NotFound, RecordInvalid, SpaceExhausted, StoreDamaged, XscError
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.base.limits import JOINT_RECORDS_MAX
from xsc.db.group import GroupCommit
from xsc.identity import envelope, keys
from xsc.space import itc, limits, messages
from xsc.space.paths import SECTIONS, UserSpacePaths, is_under, section_of, sections_of
from xsc.space.record import (
    HEAD_ENVELOPE_BYTES_MAX,
    RECORD_ENVELOPE_BYTES_MAX,
    Change,
    Entry,
    SpaceHead,
    SpaceRecord,
    check_value,
    value_digest,
)
from xsc.space.table import OwnerTable, Proven, Repair, Row, old_versions, owner_bytes_max

META, VALUE, ARCHIVE, PROVEN = b"m", b"v", b"a", b"p"
CLOCK, FLOOR, INVITER = b"c", b"f", b"i"
KINDS = sorted((META, VALUE, ARCHIVE, PROVEN))
"""Of rows that name an owner."""
KEPT_BYTES_MAX = 2 * limits.VALUE_BYTES_MAX + 2 * RECORD_ENVELOPE_BYTES_MAX
OWNER_BYTES = 32
FAULTS_MAX = 1_000
"""Listed; a damaged database can have any number."""
READ_KEPT = 32
"""Records that were read last: what is new is told to every follower."""


class KeptClock(envelope.Record):
    """This node's clock as it is on the disk."""

    KIND: ClassVar[str] = "space_clock"

    grant: bytes
    interval: bytes
    """What is left of what was granted."""
    given: envelope.Count
    """How many parts of it this node gave."""
    event: bytes

    @model_validator(mode="after")
    def _is_well_formed(self) -> Self:
        itc.read_interval(self.interval)
        itc.read_event(self.event)
        return self


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


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of records that were offered."""

    paths: list[str]
    """Of those that are new."""
    refused: list[XscError]


@dataclass(frozen=True, slots=True)
class Stats:
    """How much a store has."""

    records: int
    live_bytes: int
    disk_bytes: int


class _Batch:
    """Changes that are not written yet, and what a key has with them."""

    def __init__(self, db: KeyValue) -> None:
        self._db = db
        self.changes: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.changes[key] if key in self.changes else self._db.get(key)

    def set(self, key: bytes, value: bytes | None) -> None:
        self.changes[key] = value


def _numbered(prefix: bytes, sequence: int) -> bytes:
    return prefix + sequence.to_bytes(8, "big")


class SpaceStore:
    """Tables of this node and of others."""

    def __init__(
        self,
        db: KeyValue,
        executor: Executor,
        time: TimePort,
        key: keys.KeyPair,
        network: bytes,
        *,
        introducer_of: Callable[[bytes], str] = ids.to_text,
        keep_versions: int = 0,
        keep_ms: int = 0,
    ) -> None:
        self._db = db
        self._executor = executor
        self.work = turns.PeerWork(executor)
        """Decodes and checks what peers have sent."""
        self._commits = GroupCommit(db, executor)
        self._time = time
        self._key = key
        self._network = network
        self._introducer_of = introducer_of
        self._keep_versions = keep_versions
        self._keep_ms = keep_ms
        self._tables: dict[bytes, OwnerTable] = {}
        self._turns: turns.Turns[bytes] = turns.Turns()
        self._read: dict[bytes, envelope.Signed[SpaceRecord]] = {}
        """By its bytes, each of the last READ_KEPT records that were read."""
        self._granted: dict[bytes, itc.Granted] = {}
        """What each owner was granted, as it publishes it."""
        self._counted: dict[bytes, itc.Interval] = {}
        """Where each of those counts that were looked for since one of them has changed."""
        self._clock: itc.Clock | None = None
        self._own: itc.Granted | None = None
        self._given = 0
        """How many parts of the own interval were given."""
        self.asked: dict[bytes, Sequence[messages.Cursor]] = {}
        """What each known subscriber has asked for last, since the start."""
        self._told: Callable[[Change], None] = lambda _: None
        self._inviter = db.get(INVITER)
        for owner in set(self.owners()) - {self.owner}:
            self._read_grant(owner, db.get(VALUE + owner + UserSpacePaths.INTERVAL.encode()))
        self._read_clock()
        floor = db.get(FLOOR) or bytes(16)
        self._floor = int.from_bytes(floor[:8], "big")
        self._shown = int.from_bytes(floor[8:], "big")
        """The sequence of the newest own head that peers have shown in a recovery."""

    @property
    def owner(self) -> bytes:
        """The id of this node."""
        return self._key.node_id

    @property
    def clock(self) -> itc.Clock | None:
        """The own clock; None before the first write or grant."""
        return self._clock

    def unheard(self, stamp: itc.Stamp, owners: Iterable[bytes]) -> list[bytes]:
        """Return the owners of whom a stamp counts events that were not heard of here."""
        if self._clock is None:
            return []
        found = {owner: self._interval_of(owner) for owner in owners}
        intervals = {owner: at for owner, at in found.items() if at is not None}
        return itc.unheard(self._clock, stamp, intervals)

    # Reading

    def get(self, owner: bytes, path: str) -> Entry:
        """Return the newest record of a path, as it is on the disk.

        Raises:
            NotFound: there is none, or it was deleted.
        """
        entry = self._entry(self._db, owner, path)
        if entry is None or entry.signed.record.digest is None:
            raise NotFound(f"nothing is at '{path}'", hint="`xsc space ls` shows what is there")
        return entry

    def _entry(self, db: KeyValue | _Batch, owner: bytes, path: str) -> Entry | None:
        raw = db.get(META + owner + path.encode())
        if raw is None:
            return None
        return Entry(self._parsed(owner, raw), db.get(VALUE + owner + path.encode()))

    def _parsed(self, owner: bytes, raw: bytes) -> envelope.Signed[SpaceRecord]:
        """Return a record that was verified before it was stored."""
        known = self._read.get(raw)
        if known is not None and known.author == owner:
            return known
        try:
            signed = envelope.read_claimed(
                raw,
                SpaceRecord,
                network=self._network,
                author=owner,
                size_max=RECORD_ENVELOPE_BYTES_MAX,
            )
        except XscError as fault:
            raise StoreDamaged(f"a record of the space is damaged: {fault.message}") from None
        if len(self._read) >= READ_KEPT:
            del self._read[next(iter(self._read))]
        self._read[raw] = signed
        return signed

    def ls(self, owner: bytes, prefix: str) -> list[SpaceRecord]:
        """Return the live records under a prefix, in the order of paths."""
        start = META + owner + prefix.encode()
        records = (self._parsed(owner, raw).record for _, raw in self._scan(start))
        return [
            record
            for record in records
            if record.digest is not None and is_under(record.path, prefix)
        ]

    def versions(self, path: str) -> list[Entry]:
        """Return what is kept of the replaced values of an own path, the newest first.

        Raises:
            StoreDamaged: one cannot be read.
        """
        found = []
        for _, raw in self._scan(ARCHIVE + self.owner + path.encode() + b"\0"):
            kept = self._archived(raw)
            found.append(Entry(self._parsed(self.owner, kept.record), kept.value))
        return found[::-1]

    @staticmethod
    def _archived(raw: bytes) -> Archived:
        try:
            return Archived.from_bytes(raw, size_max=KEPT_BYTES_MAX)
        except XscError:
            raise StoreDamaged("an archived record of the space is damaged") from None

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
                found.add(key[1 : 1 + OWNER_BYTES])
                start = prefix_end(key[: 1 + OWNER_BYTES])
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

    def told(self, path: str) -> set[bytes]:
        """Return the subscribers that say that they have what is at an own path now.

        Raises:
            NotFound: nothing is there.
        """
        sequence = self.get(self.owner, path).signed.record.sequence
        where = self.owner, section_of(path)
        return {
            peer
            for peer, cursors in self.asked.items()
            if any((at.owner, at.section) == where and at.after >= sequence for at in cursors)
        }

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
            kept = KeptHead.from_bytes(raw)
            head = envelope.read_claimed(
                kept.head,
                SpaceHead,
                network=self._network,
                author=owner,
                size_max=HEAD_ENVELOPE_BYTES_MAX,
            )
        except XscError as fault:
            raise StoreDamaged(f"a head of the space is damaged: {fault.message}") from None
        table.head, table.cursors = head, dict(kept.cursors)
        for section, sequence in kept.cursors:
            if sequence == head.record.sequence:
                table.prove(section, head, {})  # else it was another one of that sequence

    @staticmethod
    def _keep_proven(batch: _Batch, owner: bytes, table: OwnerTable) -> None:
        kept = None
        if table.head is not None and table.cursors:
            cursors = tuple(table.cursors.items())
            kept = KeptHead(head=table.head.raw, cursors=cursors).to_bytes()
        batch.set(PROVEN + owner, kept)

    async def _commit(self, owner: bytes, batch: _Batch) -> None:
        """Write a batch; where that fails or is cancelled, the rows are read again."""
        try:
            await self._commits.commit(list(batch.changes.items()))
        except BaseException:
            self._tables.pop(owner, None)
            raise

    def _stage(
        self,
        batch: _Batch,
        table: OwnerTable,
        signed: envelope.Signed[SpaceRecord],
        value: bytes | None,
        *,
        again: bool = False,
    ) -> None:
        """Take a record into a batch and into the rows.

        What is written `again` has the value that is stored, and replaces no other version.
        """
        owner, record = signed.author, signed.record
        key, old = owner + record.path.encode(), table.rows.get(record.path)
        if record.digest is None and (oldest := table.oldest_tombstone(record.path)) is not None:
            self._drop(batch, owner, table, oldest)
        # How many others replace has no bound.
        keeps = owner == self.owner and (self._keep_versions or self._keep_ms) and not again
        if keeps and old is not None and not old.deleted and old.sequence < record.sequence:
            entry = self._entry(batch, owner, record.path)
            assert entry is not None, "what is replaced is there"
            if entry.value is not None:  # else it was recovered without its value
                kept = Archived(
                    archived_ms=self._time.now_ms(), record=entry.signed.raw, value=entry.value
                )
                batch.set(_numbered(ARCHIVE + key + b"\0", old.sequence), kept.to_bytes())
        batch.set(META + key, signed.raw)
        if not again:
            batch.set(VALUE + key, value)
        table.put(record.path, Row.of(signed))

    @staticmethod
    def _drop(batch: _Batch, owner: bytes, table: OwnerTable, path: str) -> None:
        key = owner + path.encode()
        batch.set(META + key, None)
        batch.set(VALUE + key, None)
        table.forget(path)

    # What others wrote

    async def take(
        self,
        owner: bytes,
        offered: Sequence[tuple[envelope.Signed[SpaceRecord], bytes | None]],
        listed: Repair | None = None,
    ) -> Taken:
        """Store records that were verified, with values where they came along.

        One that is refused keeps no other from being stored. What was `listed` replaces also what
        it does not outrank. Own records are taken back in a recovery: the next own sequence is
        above them, also above those that are not stored.
        """
        paths: list[str] = []
        refused: list[XscError] = []
        async with self._turns.of(owner):
            table = await self._table(owner)
            batch = _Batch(self._db)
            newest: SpaceRecord | None = None
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
            for signed, value in offered:
                try:
                    if value is not None:
                        check_value(signed.record, value)
                    is_taken = table.takes(signed, listed=listed, bytes_max=bytes_max)
                except XscError as fault:
                    refused.append(fault)
                    continue
                if is_taken:
                    self._stage(batch, table, signed, value)
                    paths.append(signed.record.path)
                    if newest is None or newest.sequence < signed.record.sequence:
                        newest = signed.record
            if batch.changes:
                self._tables[owner] = table  # of an owner of whom nothing was here before, too
                await self._commit(owner, batch)
            if UserSpacePaths.INTERVAL in paths and owner != self.owner:
                self._read_grant(owner, batch.get(VALUE + owner + UserSpacePaths.INTERVAL.encode()))
            if newest is not None:
                self._adopt(owner, newest)
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
            batch = _Batch(self._db)
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
            batch = _Batch(self._db)
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
                self._keep_proven(batch, owner, table)
            if batch.changes:
                await self._commit(owner, batch)
        return proven, failed, compared

    async def cursor(self, owner: bytes, prefix: str) -> int:
        """Return up to which sequence everything under a prefix is proven; 0 without a head."""
        async with self._turns.of(owner):
            table = await self._table(owner)
            return min(table.cursors.get(section, 0) for section in sections_of(prefix))

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
            batch = _Batch(self._db)
            for path in repair.drop:
                self._drop(batch, owner, table, path)
            await self._commit(owner, batch)
            return repair

    async def evict(self, owner: bytes, kept: Collection[str]) -> None:
        """Delete what another owner has in other sections than those that are kept."""
        async with self._turns.of(owner):
            table = await self._table(owner)
            ended = table.sections() - set(kept)
            batch = _Batch(self._db)
            for section in ended:
                table.proven.pop(section, None)
                table.cursors.pop(section, None)
                for path in table.after(section, 0, table.size_of(section)):
                    self._drop(batch, owner, table, path)
            if ended:
                self._keep_proven(batch, owner, table)
            if not table.rows and not table.cursors:
                self._tables.pop(owner, None)
            await self._commit(owner, batch)
            if UserSpacePaths.INTERVAL in ended:
                self._read_grant(owner, None)

    # What this node writes

    def on_written(self, told: Callable[[Change], None]) -> None:
        """Call a function with own records once they are on the disk, also with what is granted."""
        self._told = told

    async def put(self, values: Mapping[str, bytes | None]) -> dict[str, int]:
        """Write own values, all or none, and return their sequences; None deletes.

        Raises:
            NotFound: nothing is at a path that is to be deleted.
            SpaceExhausted: a quota would be passed.
        """
        async with self._turns.of(self.owner):
            table = await self._table(self.owner)
            for path, value in values.items():
                row = table.rows.get(path)
                if value is None and (row is None or row.deleted):
                    raise NotFound(
                        f"nothing is at '{path}'", hint="`xsc space ls` shows what is there"
                    )
            return await self._put(table, values)

    async def _put(self, table: OwnerTable, values: Mapping[str, bytes | None]) -> dict[str, int]:
        now_ms = self._time.now_ms()
        if self._clock is None or self._own is None:
            whole = itc.Grant(
                giver=None, receiver=self.owner, interval=itc.interval_bytes(1), granted_ms=now_ms
            )
            raw = envelope.sign(whole, self._key, self._network).raw
            self._begin(itc.read_grant(raw, self.owner, network=self._network))
        clock, own = self._clock, self._own
        assert clock is not None
        assert own is not None
        published = table.rows.get(UserSpacePaths.INTERVAL)
        if published is None or published.digest != value_digest(own.raw):
            values = {UserSpacePaths.INTERVAL: own.raw, **values}
        sequence = self._last(table)
        records = []
        for path, value in values.items():
            sequence += 1
            clock = clock.tick()
            records.append(
                SpaceRecord(
                    path=path,
                    sequence=sequence,
                    written_ms=now_ms,
                    domain=clock.domain,
                    stamp=itc.event_bytes(clock.event),
                    digest=None if value is None else value_digest(value),
                    size_bytes=len(value or b""),
                )
            )
        for path in self._unproven(table):
            if path not in values:
                sequence += 1
                clock = clock.tick()
                held = self._entry(self._db, self.owner, path)
                assert held is not None, "a row has its record"
                place = {"domain": clock.domain, "stamp": itc.event_bytes(clock.event)}
                records.append(
                    held.signed.record.model_copy(update={"sequence": sequence, **place})
                )
        self._clock = clock
        batch = _Batch(self._db)
        changes = []
        try:
            for start in range(0, len(records), JOINT_RECORDS_MAX):
                group = records[start : start + JOINT_RECORDS_MAX]
                for signed in envelope.sign_jointly(group, self._key, self._network):
                    is_taken = table.takes(signed)
                    assert is_taken, "an own sequence is above all others"
                    path = signed.record.path
                    value, again = values.get(path), path not in values
                    self._stage(batch, table, signed, value, again=again)
                    number = signed.record.sequence
                    changes.append(Change(self.owner, path, number, value, not again, signed))
        except XscError:
            self._tables.pop(self.owner, None)
            raise
        batch.set(CLOCK, self._kept_clock())
        await self._commit(self.owner, batch)
        for change in changes:
            self._told(change)
        return {record.path: record.sequence for record in records}

    def _last(self, table: OwnerTable) -> int:
        """Return the last own sequence; a head covers those whose tombstones are gone."""
        return max(table.last, self._head_sequence(table), self._floor)

    @staticmethod
    def _head_sequence(table: OwnerTable) -> int:
        return 0 if table.head is None else table.head.record.sequence

    def _unproven(self, table: OwnerTable) -> list[str]:
        """Return live own paths that were taken back, and are not what the newest head says.

        They are written again: a subscriber that has a newer head may hold them to be deleted.
        What is above the newest head that was shown stays as it is.
        """
        if self._floor <= self._head_sequence(table):
            return []  # an own head was signed since
        return [
            path
            for path, row in table.rows.items()
            if not row.deleted
            and row.sequence <= self._shown
            and table.cursors.get(row.section, 0) < self._shown
        ]

    def _raise_floor(
        self, batch: _Batch, table: OwnerTable, sequence: int = 0, head: int = 0
    ) -> None:
        """Write above all that is here and was shown, also above `head`, that of an own head.

        A head that is signed next may lack records: it must not have the sequence of another.
        """
        self._shown = max(self._shown, head)
        last = max(table.last, self._head_sequence(table), sequence, head)
        self._floor = max(self._floor, 1 + last)
        batch.set(FLOOR, self._floor.to_bytes(8, "big") + self._shown.to_bytes(8, "big"))

    async def leave(self, sequence: int = 0) -> None:
        """Leave the own interval, and write above all that is here and above a sequence.

        A node that was recovered or restored does so before it takes its records back.
        """
        async with self._turns.of(self.owner):
            batch = _Batch(self._db)
            self._clock = self._own = None
            self._granted.pop(self.owner, None)
            batch.set(CLOCK, None)
            self._raise_floor(batch, await self._table(self.owner), sequence)
            await self._commit(self.owner, batch)

    async def sign_head(self) -> envelope.Signed[SpaceHead]:
        """Sign what is live in the own space now, and keep that."""
        async with self._turns.of(self.owner):
            table = await self._table(self.owner)
            if self._unproven(table):
                await self._put(table, {})
            sequence = self._last(table)
            hashes = {section: table.hash_now(section) for section in SECTIONS}
            rows = sorted((at, digest) for at, digest in hashes.items() if digest is not None)
            record = SpaceHead(
                sequence=sequence, written_ms=self._time.now_ms(), sections=tuple(rows)
            )
            head = envelope.sign(record, self._key, self._network)
            batch = _Batch(self._db)
            is_new = table.head is None or self._head_sequence(table) != sequence
            for section in SECTIONS:
                table.prove_as(section, Proven(head, {}))
            if is_new:
                self._keep_proven(batch, self.owner, table)
            await self._commit(self.owner, batch)
            return head

    # The own clock

    def _read_clock(self) -> None:
        raw = self._db.get(CLOCK)
        if raw is None:
            return
        try:
            kept = KeptClock.from_bytes(raw)
            own = itc.read_grant(kept.grant, self.owner, network=self._network)
            self._begin(
                own, itc.read_interval(kept.interval), itc.read_event(kept.event), kept.given
            )
        except XscError as fault:
            raise StoreDamaged(f"the clock of the space is damaged: {fault.message}") from None

    def _begin(
        self,
        own: itc.Granted,
        interval: itc.Interval | None = None,
        event: itc.Event = 0,
        given: int = 0,
    ) -> None:
        """Count in an interval from now on; in all that was granted, where nothing was given."""
        self._own, self._given = own, given
        self._granted[self.owner] = own
        self._counted.clear()
        interval = own.interval if interval is None else interval
        self._clock = itc.Clock(own.domain, interval, event)

    def _kept_clock(self) -> bytes:
        assert self._clock is not None
        assert self._own is not None
        return KeptClock(
            grant=self._own.raw,
            interval=itc.interval_bytes(self._clock.interval),
            given=self._given,
            event=itc.event_bytes(self._clock.event),
        ).to_bytes()

    def _adopt(self, owner: bytes, newest: SpaceRecord) -> None:
        """Take over into the own clock what the newest record of an author says of its interval."""
        interval = self._interval_of(owner)
        if self._clock is not None and interval is not None:
            self._clock = self._clock.adopt(interval, newest.causality)

    def check_grant(self, owner: bytes, value: bytes) -> None:
        """Check what an owner publishes as its grant.

        Raises:
            XscError: it is none.
        """
        itc.read_grant(value, owner, network=self._network)

    def _read_grant(self, owner: bytes, value: bytes | None) -> None:
        """Note what an owner publishes as its grant; a false one proves nothing."""
        known = self._granted.pop(owner, None)
        if known is not None and known.raw == value:
            self._granted[owner] = known
            return
        self._counted.clear()
        if value is not None:
            try:
                self._granted[owner] = itc.read_grant(value, owner, network=self._network)
            except XscError:
                return  # its author loses by it alone

    def _interval_of(self, owner: bytes) -> itc.Interval | None:
        """Return where an owner counts in the domain of the own clock; None where it does not."""
        granted = self._granted.get(owner)
        if granted is None or self._clock is None or granted.domain != self._clock.domain:
            return None
        if owner not in self._counted:
            self._counted[owner] = itc.counted(granted, self._granted.values())
        return self._counted[owner]

    async def grant(self, receiver: bytes, *, anew: bool = False) -> bytes:
        """Return the grant that gives a joiner its interval, after it is on the disk.

        The same joiner is given the same one again, or another one where it has left that.

        Raises:
            SpaceExhausted: no interval is left to give, or the joiner had as many as it may.
        """
        async with self._turns.of(self.owner):
            table = await self._table(self.owner)
            if self._clock is None:
                await self._put(table, {})
                table = await self._table(self.owner)
            clock, own = self._clock, self._own
            assert clock is not None
            assert own is not None
            earlier: list[tuple[int, bytes]] = []
            for record in self.ls(self.owner, UserSpacePaths.GRANTS):
                raw = self.get(self.owner, record.path).value
                if raw is None:
                    continue  # it was recovered without its value
                given = envelope.read_claimed(
                    raw, itc.Grant, network=self._network, author=self.owner
                ).record
                if (given.receiver, given.giver) == (receiver, own.raw):
                    earlier.append((record.sequence, raw))
            if earlier and not anew:
                return max(earlier)[1]
            if len(earlier) >= limits.GRANTS_A_RECEIVER_MAX:
                raise SpaceExhausted(
                    f"one node is granted {limits.GRANTS_A_RECEIVER_MAX} intervals here"
                )
            number = self._given + 1
            kept, part = itc.cut_grant(clock.interval, itc.depth_of(own.interval), number)
            grant = itc.Grant(
                giver=own.raw,
                receiver=receiver,
                interval=itc.interval_bytes(part),
                granted_ms=self._time.now_ms(),
            )
            signed = envelope.sign(grant, self._key, self._network)
            self._begin(own, kept, clock.event, number)
            await self._put(table, {UserSpacePaths.grant(number): signed.raw})
            return signed.raw

    @property
    def inviter(self) -> bytes | None:
        """Who is to grant this node its interval; None where nobody is, or it has one."""
        return None if self._clock is not None else self._inviter

    async def invited_by(self, peer: bytes) -> None:
        """Note who is to grant this node its interval, until there is one."""
        self._inviter = peer
        await self._commits.commit([(INVITER, peer)])

    @property
    def has_left(self) -> bool:
        """Whether the own interval was left in a recovery, and no other was got since."""
        return self._clock is None and self._floor > 0

    async def join(self, grant: bytes) -> bool:
        """Take the interval that an inviter granted; say whether it was needed.

        The first domain of a node is kept.

        Raises:
            XscError: it is no grant for this node.
        """
        async with self._turns.of(self.owner):
            if self._clock is not None:
                return False
            self._begin(itc.read_grant(grant, self.owner, network=self._network))
            await self._put(await self._table(self.owner), {})
            return True

    async def settle(self) -> None:
        """Return once every write is done or has failed."""
        await self._commits.settle()

    # Bounded growth

    async def compact(self) -> Stats:
        """Delete old tombstones and archived versions, return their space, and say what is left.

        The disk is rewritten in steps, while all else runs.
        """
        told: dict[bytes, int] = {}
        for cursor in chain.from_iterable(self.asked.values()):
            told[cursor.owner] = min(cursor.after, told.get(cursor.owner, cursor.after))
        now_ms = self._time.now_ms()
        for owner in self.owners():
            async with self._turns.of(owner):
                table = await self._table(owner)
                batch = _Batch(self._db)
                for path in table.old_tombstones(now_ms=now_ms, told=told.get(owner, 0)):
                    self._drop(batch, owner, table, path)
                self._drop_versions(batch, owner, now_ms)
                await self._commit(owner, batch)
        marks = [
            b"\0",
            *(kind + owner + b"\0" for kind in KINDS for owner in self.owners()),
            b"\xff",
        ]
        start = marks[0]
        for stop in marks[1:]:
            if stop == marks[-1] or self._db.disk_bytes(start, stop) >= limits.COMPACT_STEP_BYTES:
                await self._rewrite(start, stop)
                start = stop
        return await self._executor.run(self.stats)

    async def _rewrite(self, start: bytes, stop: bytes) -> None:
        """Rewrite the tables of a range without what was replaced; no row is at its ends.

        LevelDB drops what was replaced when it merges tables. It merges none into a table with
        nothing below, as the first of a range often is. Deletions of the two ends make a table
        over the range, and the second one has the first below it.
        """
        for _ in range(2):
            await self._commits.commit([(start, None), (stop, None)])
            await self._executor.run(self._db.compact, start, stop)

    def _drop_versions(self, batch: _Batch, owner: bytes, now_ms: int) -> None:
        versions: dict[bytes, list[tuple[int, int]]] = {}
        for key, raw in self._scan(ARCHIVE + owner):
            version = int.from_bytes(key[-8:], "big"), self._archived(raw).archived_ms
            versions.setdefault(key[:-8], []).append(version)
        for prefix, found in versions.items():
            for sequence in old_versions(
                found, keep_versions=self._keep_versions, keep_ms=self._keep_ms, now_ms=now_ms
            ):
                batch.set(_numbered(prefix, sequence), None)

    def stats(self) -> Stats:
        """Return how many live records there are, their bytes, and those of the disk."""
        records = live_bytes = 0
        for key, raw in self._scan(META):
            if self._parsed(key[1 : 1 + OWNER_BYTES], raw).record.digest is not None:
                value = self._db.get(VALUE + key[1:])
                records += 1
                live_bytes += len(raw) + len(value or b"")
        return Stats(records, live_bytes, self._db.disk_bytes(b"", b"\xff"))


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
    owner, path = key[1 : 1 + OWNER_BYTES], key[1 + OWNER_BYTES :]
    try:
        record = envelope.open_signed(
            raw, SpaceRecord, network=network, author=owner, size_max=RECORD_ENVELOPE_BYTES_MAX
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
    for key, raw in db.scan(PROVEN, prefix_end(PROVEN)):
        owner = key[1 : 1 + OWNER_BYTES]
        try:
            envelope.open_signed(
                KeptHead.from_bytes(raw).head,
                SpaceHead,
                network=network,
                author=owner,
                size_max=HEAD_ENVELOPE_BYTES_MAX,
            )
        except XscError as fault:
            yield f"a head of {ids.short(owner)} is damaged: {fault.message}"
    for _, raw in db.scan(ARCHIVE, prefix_end(ARCHIVE)):
        try:
            Archived.from_bytes(raw, size_max=KEPT_BYTES_MAX)
        except XscError as fault:
            yield f"an archived record of the space is damaged: {fault.message}"
    clock = db.get(CLOCK)
    try:
        if clock is not None:
            KeptClock.from_bytes(clock)
    except XscError as fault:
        yield f"the clock of the space is damaged: {fault.message}"
