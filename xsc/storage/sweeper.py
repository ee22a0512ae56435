"""Drops what a host need not keep: a little each round, and never while in doubt.

    storage/mark/<ms, 8 bytes>     the next sequence at that time
    storage/orphan/<lease id>      when a lease was first seen that the market does not know

A host deletes unasked in two cases only. A body whose lease has ended for longer
than the grace is dropped; what its customer owes plays no part. Shards of an
object of which no record came are leftovers of an upload that was given up, and
are dropped once the newest of them is old enough. Everything else stays.

Bodies carry no time. Their age follows from marks: at a known time, every body
so far had a sequence below the mark's. A lease that the market does not know, for
instance because the state database was lost, counts as one that began when it
was first missed, and has the longest length.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from xsc.base import keyvalue, limits
from xsc.base.ids import short
from xsc.identity.context import Context
from xsc.storage.ports import Leases
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Owner, decode_number, encode_number
from xsc.storage.shardstore.store import StorageNode
from xsc.storage.transfer import deletions

SWEEP_PAUSE_MS = 20
SWEEP_OBJECTS_MAX = 10_000
"""Parts of objects dropped in one round."""

MARKS: Final = b"storage/mark/"
ORPHANS: Final = b"storage/orphan/"


@dataclass(frozen=True, slots=True)
class Mark:
    """At `time_ms` all bodies had sequences below `sequence`."""

    time_ms: int
    sequence: int


def older_than(marks: Iterable[Mark], before_ms: int) -> int:
    """Return the sequence below which all bodies are from before a time; 0 where none is known."""
    return max((mark.sequence for mark in marks if mark.time_ms <= before_ms), default=0)


def needless(marks: Sequence[Mark], before_ms: int) -> list[Mark]:
    """Return the marks that no later question can need: all but the newest of the old ones."""
    old = sorted((mark for mark in marks if mark.time_ms <= before_ms), key=lambda m: m.time_ms)
    return old[:-1]


def ended(ends_ms: Mapping[bytes, int], now_ms: int, grace_ms: int) -> frozenset[bytes]:
    """Return the leases whose bodies may be dropped: over for longer than the grace."""
    return frozenset(lease for lease, end_ms in ends_ms.items() if end_ms + grace_ms < now_ms)


@dataclass(frozen=True, slots=True)
class Swept:
    """What one round dropped."""

    expired_bytes: int
    """Under leases that were over for longer than the grace."""
    leftover_bytes: int
    """Of uploads that were given up."""
    objects: int
    """Parts of objects of which something was dropped."""


class Sweeper:
    """Goes through the shard store of one host, round by round."""

    def __init__(
        self,
        context: Context,
        *,
        node: StorageNode,
        leases: Leases,
        grace_ms: int,
        leftover_ms: int,
    ) -> None:
        self._node = node
        self._leases = leases
        self._state = context.state
        self._clock = context.clock
        self._executor = context.executor
        self._log = context.log
        self._grace_ms = grace_ms
        self._leftover_ms = leftover_ms
        self._rounds = asyncio.Lock()

    async def round(self, *, everything: bool = False) -> Swept:
        """Drop what may be dropped, at most SWEEP_OBJECTS_MAX objects unless `everything`.

        Raises:
            StoreDamaged, SpaceExhausted: the databases cannot be read or written.
        """
        async with self._rounds:
            touched = self._node.writer.touched = set[bytes]()
            try:
                return await self._round(touched, everything=everything)
            finally:
                self._node.writer.touched = None

    async def _round(self, touched: Container[bytes], *, everything: bool) -> Swept:
        now_ms = self._clock.now_ms()
        cutoff = await self._executor.run(self._mark, now_ms)
        ends_ms = await self._executor.run(self._ends_ms, now_ms)
        over = ended(ends_ms, now_ms, self._grace_ms)
        doomed, newest = await self._survey(over)
        most = len(doomed) + len(newest) if everything else SWEEP_OBJECTS_MAX
        objects = expired = leftover = 0

        for owner in list(doomed)[:most]:
            freed = await self._node.writer.delete(*owner, lambda _, item: item.lease_id in over)
            expired += self._dropped(owner, "lease_over", freed)
            objects += bool(freed)
        for owner in [owner for owner, last in newest.items() if last < cutoff]:
            if objects >= most:
                break
            freed = await self._node.writer.delete(*owner, unless_in=touched)
            leftover += self._dropped(owner, "upload_given_up", freed)
            objects += bool(freed)
        if objects:
            self._log.info(
                "storage.swept", objects=objects, expired_bytes=expired, leftover_bytes=leftover
            )
        old = await self._executor.run(deletions.too_old, self._state, now_ms, limits.SWEEP_SLICE)
        if old:
            await self._executor.run(self._write, old)
        return Swept(expired, leftover, objects)

    async def _survey(self, over: frozenset[bytes]) -> tuple[dict[Owner, None], dict[Owner, int]]:
        """Return who has something under ended leases, and the newest shard of each owner.

        The second are of objects without a record, whoever might have stored one.
        """
        doomed: dict[Owner, None] = {}
        newest: dict[Owner, int] = {}
        recorded: set[bytes] = set()
        after = b""
        while entries := await self._node.entries(after, limits.SWEEP_SLICE):
            for key, entry in entries:
                owner = formats.owner_of(key)
                if entry.lease_id in over:
                    doomed[owner] = None
                if key.startswith(formats.RECORDS):
                    recorded.add(owner[0])
                elif owner[0] not in recorded:  # The records of all objects come first.
                    newest[owner] = max(newest.get(owner, 0), entry.sequence)
            after = entries[-1][0]
            await self._clock.sleep_ms(SWEEP_PAUSE_MS)
        return doomed, newest

    def _dropped(self, owner: Owner, why: str, freed: Mapping[bytes, int]) -> int:
        """Log what was dropped; return how much it was."""
        size = sum(freed.values())
        if size:
            self._log.info(
                "storage.dropped",
                why=why,
                customer=short(owner[1]),
                size_bytes=size,
                used_bytes=self._node.used_bytes,
                used_ppm=self._node.used_ppm,
            )
        return size

    # Time

    def _write(self, changes: list[keyvalue.Change]) -> None:
        self._state.write(changes, sync=False)

    def _mark(self, now_ms: int) -> int:
        """Take note of the present sequence; return below which all bodies may be leftovers."""
        marks = [
            Mark(int.from_bytes(key[len(MARKS) :], "big"), decode_number(raw))
            for key, raw in self._state.scan(MARKS, keyvalue.prefix_end(MARKS))
        ]
        before_ms = now_ms - self._leftover_ms
        # A clock that was ahead left marks in what is the future now: they say nothing.
        stale = [mark for mark in marks if mark.time_ms > now_ms] + needless(marks, before_ms)
        changes: list[keyvalue.Change] = [(_mark_key(mark.time_ms), None) for mark in stale]
        changes.append((_mark_key(now_ms), encode_number(self._node.writer.next_sequence)))
        self._write(changes)
        return older_than(marks, before_ms)

    def _ends_ms(self, now_ms: int) -> dict[bytes, int]:
        """Return when each lease under which something is held ends or ended."""
        ends: dict[bytes, int] = {}
        changes: list[keyvalue.Change] = []
        held = set(self._node.usage)
        for lease_id in sorted(held):
            end_ms = self._leases.end_ms(lease_id)
            key = ORPHANS + lease_id
            if end_ms is not None:
                ends[lease_id] = end_ms
                continue
            raw = self._state.get(key)
            since_ms = now_ms if raw is None else decode_number(raw)
            if raw is None:
                changes.append((key, encode_number(now_ms)))
            ends[lease_id] = since_ms + limits.STORAGE_LEASE_MS
        for key, _ in self._state.scan(ORPHANS, keyvalue.prefix_end(ORPHANS)):
            lease_id = key[len(ORPHANS) :]
            if lease_id not in held or self._leases.end_ms(lease_id) is not None:
                changes.append((key, None))
        if changes:
            self._write(changes)
        return ends


def _mark_key(time_ms: int) -> bytes:
    return MARKS + time_ms.to_bytes(8, "big")
