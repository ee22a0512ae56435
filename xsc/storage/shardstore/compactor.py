"""Returns the space of deleted bodies to the disk, in slices beside all else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence

from xsc.base.clock import Executor
from xsc.base.errors import SpaceExhausted, StoreDamaged
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import MIB
from xsc.base.log import Log
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import IndexEntry
from xsc.storage.shardstore.committer import Committer
from xsc.storage.shardstore.damage import DamagedBodies
from xsc.storage.shardstore.fsck import Damage
from xsc.storage.shardstore.index import ShardIndex, drop_in_batches
from xsc.storage.shardstore.reclaim import DeadSpace, Slice, live_by_bucket

GONE_BYTES_MAX = 4 * MIB
"""Notes of deletions that a shard store keeps until its index is synced: some 110 bytes a body."""


class Compactor:
    """Counts dead bytes, and compacts the slices that `reclaim` plans."""

    def __init__(
        self,
        *,
        bodies: KeyValue,
        index: ShardIndex,
        damaged: DamagedBodies,
        committer: Committer,
        executor: Executor,
        log: Log,
    ) -> None:
        self._bodies = bodies
        self._index = index
        self._damaged = damaged
        self._committer = committer
        self._executor = executor
        self._log = log
        self._dead = DeadSpace()
        self._gone_bytes = 0
        self.missing = range(0)
        """Sequences of bodies that the disk has lost with the end of a log."""

    def note_dead(self, entries: Sequence[IndexEntry]) -> None:
        """Take note that bodies were deleted."""
        for entry in entries:
            self._dead.bury(entry.sequence, entry.held_bytes)

    def note_gone(self, size_bytes: int) -> None:
        """Take note that a note of a deletion was written, of that size."""
        self._gone_bytes += size_bytes

    def _disk_bytes(self, low: int, high: int) -> int:
        prefix = formats.BODIES
        start, stop = formats.sequenced(prefix, low), formats.sequenced(prefix, high)
        return self._bodies.disk_bytes(start, stop)

    async def survey(self) -> int:
        """Find what was deleted and not reclaimed before this start; return all dead bytes."""
        await self._executor.run(self._survey)
        return self._dead.size_bytes

    def _survey(self) -> None:
        lost: list[Damage] = []

        def entries() -> Iterator[tuple[int, int]]:
            for key, entry in self._index.all():
                if entry.sequence in self.missing:
                    lost.append(Damage(key, entry, "gone"))
                yield entry.sequence, entry.size_bytes

        self._dead.survey(live_by_bucket(entries()), self._disk_bytes)
        for damage in self._committer.still_held(lost):
            self._damaged.note(damage)

    async def compact(
        self, pause: Callable[[], Awaitable[None]] | None = None, *, everything: bool = False
    ) -> int:
        """Compact what is worth it; return how many slices.

        Args:
            pause: awaited between two slices, so that writers come first.
            everything: also where little is dead.
        """
        if self._gone_bytes > GONE_BYTES_MAX:
            before, self._gone_bytes = self._gone_bytes, 0
            if not await self._executor.run(self._drop_gone):
                self._gone_bytes += before
        planned = await self._executor.run(self._plan, everything)
        for number, piece in enumerate(planned):
            if number and pause is not None:
                await pause()
            # What is deleted in there from now on is for the next round.
            self._dead.done(piece)
            try:
                await self._executor.run(
                    self._bodies.compact,
                    formats.sequenced(formats.BODIES, piece.low),
                    formats.sequenced(formats.BODIES, piece.high),
                )
            except (StoreDamaged, SpaceExhausted) as fault:
                # For example an unreadable block: the dead bytes beside it are not reclaimed.
                self._log.error("storage.not_reclaimed", low=piece.low, reason=fault.message)
        return len(planned)

    def _drop_gone(self) -> bool:
        """Drop the notes of deletions that the index on the disk knows; return if it could.

        Else a customer that stores and deletes again and again would fill the disk for free.
        """
        try:
            mark = self._index.mark()
            assert mark is not None, "the start wrote it"
            stop = formats.sequenced(formats.GONE, mark + 1)
            # All that the mark speaks of, and the mark itself.
            self._index.sync()
            drop_in_batches(self._bodies, formats.GONE, stop)
            self._bodies.compact(formats.GONE, stop)
        except (StoreDamaged, SpaceExhausted) as fault:
            # They are dropped the next time, or by the next start.
            self._log.error("storage.notes_not_dropped", reason=fault.message)
            return False
        return True

    def _plan(self, everything: bool) -> list[Slice]:
        return self._dead.plan(self._disk_bytes, everything=everything)
