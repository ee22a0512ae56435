"""Returns the space of deleted bodies to the disk, in slices beside all else.

LevelDB compacts in a thread of its own: no write waits for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from xsc.base.clock import Executor
from xsc.base.errors import SpaceExhausted, StoreDamaged
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import MIB
from xsc.base.log import Log
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Damage
from xsc.storage.shardstore.index import ShardIndex, drop_in_batches
from xsc.storage.shardstore.reclaim import DeadSpace, live_by_bucket
from xsc.storage.shardstore.writer import ShardWriter

GONE_BYTES_MAX = 4 * MIB
"""Notes of deletions that a shard store keeps until its index is synced: some 110 bytes a body."""


class Compactor:
    """Compacts the slices that `reclaim` plans."""

    def __init__(
        self,
        *,
        bodies: KeyValue,
        index: ShardIndex,
        dead: DeadSpace,
        writer: ShardWriter,
        executor: Executor,
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
            for key, entry in self._index.all():
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
        if self._dead.gone_bytes > GONE_BYTES_MAX:
            await self._drop_gone()
        planned = await self._executor.run(self._dead.plan, self._disk_bytes, everything=everything)
        for number, piece in enumerate(planned):
            if number and pause is not None:
                await pause()
            # What is deleted in there from now on is for the next round.
            self._dead.done(piece)
            start = formats.sequenced(formats.BODIES, piece.low)
            stop = formats.sequenced(formats.BODIES, piece.high)
            try:
                await self._executor.run(self._bodies.compact, start, stop)
            except (StoreDamaged, SpaceExhausted) as fault:
                # For example an unreadable block: the dead bytes beside it are not reclaimed.
                self._log.error("storage.not_reclaimed", low=piece.low, reason=fault.message)
        return len(planned)

    async def _drop_gone(self) -> None:
        """Drop the notes of deletions that the index on the disk knows.

        Else a customer that stores and deletes again and again would fill the disk for free.
        """
        try:
            stop = await self._writer.look(self._dropped_gone)
            await self._executor.run(self._bodies.compact, formats.GONE, stop)
        except (StoreDamaged, SpaceExhausted) as fault:
            # They are dropped the next time, or by the next start.
            self._log.error("storage.notes_not_dropped", reason=fault.message)

    def _dropped_gone(self) -> bytes:
        """Drop them, and return the key behind the last one."""
        mark = self._index.mark()
        assert mark is not None, "the start wrote it"
        stop = formats.sequenced(formats.GONE, mark + 1)
        # All that the mark speaks of, and the mark itself.
        self._index.sync()
        drop_in_batches(self._bodies, formats.GONE, stop)
        self._dead.gone_bytes = 0
        return stop
