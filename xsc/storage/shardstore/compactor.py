"""Returns the space of deleted bodies to the disk, in slices beside all else.

Deleted bodies keep their room until the tables that hold them are written anew.
That costs as much as the living bodies beside them, so it goes in slices of neighbouring
bodies: small enough that writers hardly notice, and only where enough is dead. Bodies are
appended, hence neighbours by sequence are neighbours on the disk. LevelDB compacts in a
thread of its own: no write waits for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator

from xsc.base import clock, errors, keyvalue, limits
from xsc.base.log import Log
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Damage
from xsc.storage.shardstore.index import ShardIndex, drop_in_batches
from xsc.storage.shardstore.writer import ShardWriter

GONE_BYTES_MAX = 4 * limits.MIB
"""Notes of deletions that a shard store keeps until its index is synced: some 110 bytes a body."""


BUCKET = 64
"""Sequences that are counted together."""
SLICE_BYTES = 64 * limits.MIB
"""Most of the disk that one compaction goes through, unless one bucket alone has more."""
DEAD_SHARE = 8
"""A slice is compacted once one part in so many is dead: 1.15 times the live data is kept."""


class DeadSpace:
    """Bytes that were deleted and not reclaimed yet, by bucket of sequences."""

    def __init__(self) -> None:
        self._dead: dict[int, int] = {}

    @property
    def size_bytes(self) -> int:
        """All of them."""
        return sum(self._dead.values())

    def bury(self, sequence: int, size_bytes: int) -> None:
        """Take note that a body was deleted."""
        bucket = sequence // BUCKET
        self._dead[bucket] = self._dead.get(bucket, 0) + size_bytes

    def survey(self, live: dict[int, int], size_of: Callable[[int, int], int]) -> None:
        """Learn what is dead from what lives by bucket: what was known before is gone.

        Args:
            live: bytes of living bodies by bucket.
            size_of: about how many bytes of the disk the sequences low <= s < high take.
        """
        last = max(live, default=-1)
        for bucket in range(last + 1):
            dead = size_of(bucket * BUCKET, (bucket + 1) * BUCKET) - live.get(bucket, 0)
            if dead > 0:
                self._dead[bucket] = max(dead, self._dead.get(bucket, 0))

    def plan(self, size_of: Callable[[int, int], int], *, everything: bool) -> list[range]:
        """Return the slices of sequences that are worth their writing.

        With `everything`, all in which something is dead.
        """
        found: list[range] = []
        run: list[int] = []

        def close() -> None:
            if not run:
                return
            low, high = run[0] * BUCKET, (run[-1] + 1) * BUCKET
            dead = sum(self._dead[bucket] for bucket in run)
            if everything or dead * DEAD_SHARE >= size_of(low, high):
                found.append(range(low, high))
            run.clear()

        size = 0
        for bucket in sorted(self._dead):
            more = size_of(bucket * BUCKET, (bucket + 1) * BUCKET)
            if run and (bucket != run[-1] + 1 or size + more > SLICE_BYTES):
                close()
                size = 0
            run.append(bucket)
            size += more
        close()
        return found

    def done(self, piece: range) -> None:
        """Take note that a slice was compacted."""
        for bucket in range(piece.start // BUCKET, piece.stop // BUCKET):
            self._dead.pop(bucket, None)


def live_by_bucket(items: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the bytes of living bodies by bucket, of (sequence, bytes)."""
    live: dict[int, int] = {}
    for sequence, size_bytes in items:
        bucket = sequence // BUCKET
        live[bucket] = live.get(bucket, 0) + size_bytes
    return live


class Compactor:
    """Compacts the slices that are worth it."""

    def __init__(
        self,
        *,
        bodies: keyvalue.KeyValue,
        index: ShardIndex,
        dead: DeadSpace,
        writer: ShardWriter,
        executor: clock.Executor,
        log: Log,
    ) -> None:
        self._bodies = bodies
        self._index = index
        self._dead = dead
        self._writer = writer
        self._executor = executor
        self._log = log
        self.missing = range(0)
        """Sequences of bodies that the disk has lost with the end of a log."""

    def _disk_bytes(self, low: int, high: int) -> int:
        prefix = formats.BODIES
        start, stop = formats.sequenced(prefix, low), formats.sequenced(prefix, high)
        return self._bodies.disk_bytes(start, stop)

    async def survey(self) -> int:
        """Find what was deleted and not reclaimed before this start; return all dead bytes."""
        lost = await self._executor.run(self._survey)
        await self._writer.look(self._writer.note_damage, lost)
        return self._dead.size_bytes

    def _survey(self) -> list[Damage]:
        lost: list[Damage] = []

        def entries() -> Iterator[tuple[int, int]]:
            for key, entry in self._index.behind(b""):
                if entry.sequence in self.missing:
                    lost.append(Damage(key, entry, "gone"))
                yield entry.sequence, entry.size_bytes

        self._dead.survey(live_by_bucket(entries()), self._disk_bytes)
        return lost

    async def compact(
        self, pause: Callable[[], Awaitable[None]] | None = None, *, everything: bool = False
    ) -> int:
        """Compact what is worth it; return how many slices.

        Args:
            pause: awaited between two slices, so that writers come first.
            everything: also where little is dead.
        """
        if self._writer.gone_bytes > GONE_BYTES_MAX:
            await self._drop_gone()
        planned = await self._executor.run(self._dead.plan, self._disk_bytes, everything=everything)
        for number, piece in enumerate(planned):
            if number and pause is not None:
                await pause()
            # What is deleted in there from now on is for the next round.
            self._dead.done(piece)
            start = formats.sequenced(formats.BODIES, piece.start)
            stop = formats.sequenced(formats.BODIES, piece.stop)
            try:
                await self._executor.run(self._bodies.compact, start, stop)
            except (errors.StoreDamaged, errors.SpaceExhausted) as fault:
                # For example an unreadable block: the dead bytes beside it are not reclaimed.
                self._log.error("storage.not_reclaimed", low=piece.start, reason=fault.message)
        return len(planned)

    async def _drop_gone(self) -> None:
        """Drop the notes of deletions that the index on the disk knows.

        Else a customer that stores and deletes again and again would fill the disk for free.
        """
        try:
            stop = await self._writer.look(self._dropped_gone)
            await self._executor.run(self._bodies.compact, formats.GONE, stop)
        except (errors.StoreDamaged, errors.SpaceExhausted) as fault:
            # They are dropped the next time, or by the next start.
            self._log.error("storage.notes_not_dropped", reason=fault.message)

    def _dropped_gone(self) -> bytes:
        """Drop them, and return the key behind the last one."""
        mark = self._index.mark()
        assert mark is not None, "the start wrote it"
        stop = formats.sequenced(formats.GONE, mark + 1)
        # All that the mark speaks of, and the mark itself.
        self._index.sync_at(mark)
        drop_in_batches(self._bodies, formats.GONE, stop)
        self._writer.gone_bytes = 0
        return stop
