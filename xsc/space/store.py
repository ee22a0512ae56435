"""The own space: puts, heads and grants, beside the tables of others; and what bounds all of them.

An own record, the clock's event and what the record replaces are in one write, so that no sequence
and no event is used twice after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain

from xsc.base import ids
from xsc.base.errors import (
    ArgumentInvalid,
    RecordInvalid,
    SpaceExhausted,
    StoreDamaged,
    XscError,
)
from xsc.base.limits import JOINT_RECORDS_MAX
from xsc.identity import envelope
from xsc.space import itc, limits, replicas
from xsc.space.causality import Own
from xsc.space.paths import SECTIONS, UserSpacePaths, absent, below, fault_of, section_of
from xsc.space.record import Change, Entry, SpaceHead, SpaceRecord, value_digest
from xsc.space.table import OwnerTable, Proven, old_versions


@dataclass(frozen=True, slots=True)
class Stats:
    """How much a store has."""

    records: int
    live_bytes: int
    disk_bytes: int


def _archived(raw: bytes) -> replicas.Archived:
    try:
        return replicas.Archived.from_bytes(raw, size_max=replicas.KEPT_BYTES_MAX)
    except XscError:
        raise StoreDamaged("an archived record of the space is damaged") from None


class SpaceStore(replicas.Replicas):
    """The space of this node, beside what it has of others."""

    @property
    def clock(self) -> itc.Clock | None:
        """The own clock; None before the first write or grant."""
        return None if self.causality.own is None else self.causality.own.clock

    def versions(self, path: str) -> list[Entry]:
        """Return what is kept of the replaced values of an own path, the newest first.

        `keep_versions` and `keep_days` of the settings say what is kept.

        Raises:
            StoreDamaged: one cannot be read.
        """
        found = []
        for _, raw in self._scan(replicas.ARCHIVE + self.owner + path.encode() + b"\0"):
            kept = _archived(raw)
            found.append(Entry(self._parsed(self.owner, kept.record), kept.value))
        return found[::-1]

    def told(self, path: str) -> set[bytes]:
        """Return the subscribers that say that they have what is at an own path now.

        Raises:
            NotFound: nothing is there.
        """
        sequence = self.get(path).signed.record.sequence
        where = self.owner, section_of(path)
        return {
            peer
            for peer, cursors in self.asked.items()
            if any((at.owner, at.section) == where and at.after >= sequence for at in cursors)
        }

    # What this node writes

    async def put(self, path: str, value: bytes) -> int:
        """Write a value and return its sequence; errors as of `put_all`."""
        return (await self.put_all({path: value}))[path]

    async def rm(self, path: str) -> int:
        """Delete a path and return the sequence of its tombstone; errors as of `put_all`."""
        return (await self.put_all({path: None}))[path]

    async def put_all(self, values: Mapping[str, bytes | None]) -> dict[str, int]:
        """Write own values, all or none, and return their sequences; None deletes.

        Raises:
            ArgumentInvalid: a path is none, or a schema or the size refuses a value.
            NotFound: nothing is at a path that is to be deleted.
            SpaceExhausted: a quota would be passed.
        """
        for path, value in values.items():
            if fault := fault_of(path):
                raise ArgumentInvalid(f"not a path: {fault}")
            if value is not None and len(value) > limits.VALUE_BYTES_MAX:
                raise ArgumentInvalid(
                    f"a value has at most {limits.VALUE_BYTES_MAX} bytes",
                    hint="store it with `xsc store put`, and put its capability here",
                )
            try:
                self.check(self.owner, path, value)
            except RecordInvalid as refusal:
                raise ArgumentInvalid(f"not a value for '{path}': {refusal.message}") from None
        async with self._turns.of(self.owner):
            table = await self._table(self.owner)
            for path, value in values.items():
                row = table.rows.get(path)
                if value is None and (row is None or row.deleted):
                    raise absent(path)
            return await self._write(table, values)

    async def _write(self, table: OwnerTable, values: Mapping[str, bytes | None]) -> dict[str, int]:
        """Sign and write own values, and tell of them; the own turn is held."""
        now_ms = self._time.now_ms()
        own = self.causality.own or self.causality.found(self._key, now_ms)
        clock, granted = own.clock, own.granted.raw
        published = table.rows.get(UserSpacePaths.INTERVAL)
        if published is None or published.digest != value_digest(granted):
            values = {UserSpacePaths.INTERVAL: granted, **values}
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
        self.causality.own = replace(own, clock=clock)
        batch = replicas.Batch(self._db)
        changes = []
        try:
            for start in range(0, len(records), JOINT_RECORDS_MAX):
                group = records[start : start + JOINT_RECORDS_MAX]
                for signed in envelope.sign_jointly(group, self._key, self._network):
                    is_taken = table.takes(signed)
                    assert is_taken, "an own sequence is above all others"
                    path = signed.record.path
                    if path in values:  # else it is written again, and has its value
                        self._archive(batch, table, signed.record)
                        batch.set(replicas.VALUE + self.owner + path.encode(), values[path])
                    replicas.stage(batch, table, signed)
                    changes.append(Change.of(signed, values.get(path)))
        except XscError:
            self._tables.pop(self.owner, None)
            raise
        batch.set(replicas.CLOCK, self.causality.save())
        await self._commit(self.owner, batch)
        for change in changes:
            self.tell(change)
        return {record.path: record.sequence for record in records}

    def _last(self, table: OwnerTable) -> int:
        """Return the last own sequence; a head covers those whose tombstones are gone."""
        return max(table.last, table.head_sequence, self._floor)

    def _unproven(self, table: OwnerTable) -> list[str]:
        """Return live own paths that were taken back, and are not what the newest head says.

        They are written again: a subscriber that has a newer head may hold them to be deleted.
        What is above the newest head that was shown stays as it is.
        """
        if self._floor <= table.head_sequence:
            return []  # an own head was signed since
        return [
            path
            for path, row in table.rows.items()
            if not row.deleted
            and row.sequence <= self._shown
            and table.cursors.get(row.section, 0) < self._shown
        ]

    async def leave(self, sequence: int = 0) -> None:
        """Leave the own interval, and write above all that is here and above a sequence.

        A node that was recovered or restored does so before it takes its records back.
        """
        async with self._turns.of(self.owner):
            batch = replicas.Batch(self._db)
            self.causality.leave()
            batch.set(replicas.CLOCK, None)
            self._raise_floor(batch, await self._table(self.owner), sequence)
            await self._commit(self.owner, batch)

    async def sign_head(self) -> envelope.Signed[SpaceHead]:
        """Sign what is live in the own space now, and keep that."""
        async with self._turns.of(self.owner):
            table = await self._table(self.owner)
            if self._unproven(table):
                await self._write(table, {})
            sequence = self._last(table)
            hashes = {section: table.hash_now(section) for section in SECTIONS}
            rows = sorted((at, digest) for at, digest in hashes.items() if digest is not None)
            record = SpaceHead(
                sequence=sequence, written_ms=self._time.now_ms(), sections=tuple(rows)
            )
            head = envelope.sign(record, self._key, self._network)
            batch = replicas.Batch(self._db)
            is_new = table.head is None or table.head_sequence != sequence
            for section in SECTIONS:
                table.prove_as(section, Proven(head, {}))
            if is_new:
                replicas.keep_proven(batch, self.owner, table)
            await self._commit(self.owner, batch)
            return head

    async def grant(self, receiver: bytes, *, anew: bool = False) -> bytes:
        """Return the grant that gives a joiner its interval, after it is on the disk.

        The same joiner is given the same one again, or another one where it has left that.

        Raises:
            SpaceExhausted: no interval is left to give, or the joiner had as many as it may.
        """
        async with self._turns.of(self.owner):
            table = await self._table(self.owner)
            if self.causality.own is None:
                await self._write(table, {})
                table = await self._table(self.owner)
            own = self.causality.own
            assert own is not None
            earlier: list[tuple[int, bytes]] = []
            for record in self.ls(UserSpacePaths.GRANTS):
                raw = self.get(record.path).value
                if raw is None:
                    continue  # it was recovered without its value
                given = envelope.read_claimed(
                    raw, itc.Grant, network=self._network, author=self.owner
                ).record
                if (given.receiver, given.giver) == (receiver, own.granted.raw):
                    earlier.append((record.sequence, raw))
            if earlier and not anew:
                return max(earlier)[1]
            if len(earlier) >= limits.GRANTS_A_RECEIVER_MAX:
                raise SpaceExhausted(
                    f"one node is granted {limits.GRANTS_A_RECEIVER_MAX} intervals here"
                )
            number, first_depth = own.given + 1, itc.depth_of(own.granted.interval)
            kept, part = itc.cut_grant(own.clock.interval, first_depth, number)
            grant = itc.Grant(
                giver=own.granted.raw,
                receiver=receiver,
                interval=itc.interval_bytes(part),
                granted_ms=self._time.now_ms(),
            )
            signed = envelope.sign(grant, self._key, self._network)
            clock = replace(own.clock, interval=kept)
            self.causality.begin(Own(clock, own.granted, number))
            await self._write(table, {below(UserSpacePaths.GRANTS, number): signed.raw})
            return signed.raw

    @property
    def inviter(self) -> bytes | None:
        """Who is to grant this node its interval; None where nobody is, or it has one."""
        return None if self.causality.own is not None else self._inviter

    async def invited_by(self, peer: bytes) -> None:
        """Note who is to grant this node its interval, until there is one."""
        # At once: what is written meanwhile waits for that grant.
        self._inviter = peer
        await self._commits.commit([(replicas.INVITER, peer)])

    @property
    def has_left(self) -> bool:
        """Whether the own interval was left in a recovery, and no other was got since."""
        return self.causality.own is None and self._floor > 0

    async def join(self, grant: bytes) -> bool:
        """Take the interval that an inviter granted; say whether it was needed.

        The first domain of a node is kept.

        Raises:
            XscError: it is no grant for this node.
        """
        async with self._turns.of(self.owner):
            if self.causality.own is not None:
                return False
            self.causality.join(grant)
            await self._write(await self._table(self.owner), {})
            return True

    async def close(self) -> None:
        """Return once all that was to be written is written, or has failed; write no more."""
        self.end_watches()
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
                batch = replicas.Batch(self._db)
                for path in table.old_tombstones(now_ms=now_ms, told=told.get(owner, 0)):
                    replicas.drop(batch, owner, table, path)
                self._drop_versions(batch, owner, now_ms)
                await self._commit(owner, batch)
        marks = [
            b"\0",
            *(kind + owner + b"\0" for kind in replicas.KINDS for owner in self.owners()),
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

    def _drop_versions(self, batch: replicas.Batch, owner: bytes, now_ms: int) -> None:
        versions: dict[bytes, list[tuple[int, int]]] = {}
        for key, raw in self._scan(replicas.ARCHIVE + owner):
            version = int.from_bytes(key[-8:], "big"), _archived(raw).archived_ms
            versions.setdefault(key[:-8], []).append(version)
        for prefix, found in versions.items():
            for sequence in old_versions(
                found, keep_versions=self._keep_versions, keep_ms=self._keep_ms, now_ms=now_ms
            ):
                batch.set(prefix + sequence.to_bytes(8, "big"), None)

    def stats(self) -> Stats:
        """Return how many live records there are, their bytes, and those of the disk."""
        records = live_bytes = 0
        for key, raw in self._scan(replicas.META):
            if self._parsed(key[1 : 1 + ids.ID_BYTES], raw).record.digest is not None:
                value = self._db.get(replicas.VALUE + key[1:])
                records += 1
                live_bytes += len(raw) + len(value or b"")
        return Stats(records, live_bytes, self._db.disk_bytes(b"", b"\xff"))
