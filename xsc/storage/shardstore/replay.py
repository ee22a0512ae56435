"""Brings the index of a shard store up to date with its bodies, or makes it anew.

Runs once, in the executor, before anything else uses the store.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from xsc.base import errors, keyvalue
from xsc.base.log import Log
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Damage
from xsc.storage.shardstore.fsck import Gaps, highest, readable
from xsc.storage.shardstore.index import Drop, Put, ShardIndex

REBUILD_BATCH = 256
"""Bodies indexed in one write."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a start did to bring the index up to date."""

    rebuilt: bool
    replayed: int
    damaged: int
    """Bodies that could not be read; their customers learn it by `stat`."""
    next_sequence: int
    """Behind all sequences that were ever given."""
    missing: range
    """Sequences that the index knows and the bodies have lost with the end of a log."""


class Replay:
    """One run through the bodies that the index does not know yet."""

    def __init__(
        self, bodies: keyvalue.KeyValue, index: ShardIndex, damaged: dict[int, Damage], log: Log
    ) -> None:
        self._bodies = bodies
        self._index = index
        self._damaged = damaged
        self._log = log
        self._last = 0
        """The highest sequence that was met."""
        self._lost = 0
        """How many bodies or ranges could not be read."""

    def run(self, *, rebuild: bool) -> Recovery:
        """Bring the index up to date.

        Raises:
            StoreDamaged: the bodies cannot be read, or the index not even be emptied.
        """
        mark = None if rebuild or not self._deletions_readable() else self._index.load()
        known = mark or self._known()
        if mark is None:
            self._index.clear()
        replayed, replaced, gone = self._replay(mark or 0, known)
        self._read_damage(mark or 0, gone, known)
        # Only once the index is on the disk may the notes of deletions go.
        self._index.sync_at(self._last)
        notes: list[keyvalue.Change] = [
            (key, None) for _, key, _ in readable(self._bodies, formats.GONE, 0, Gaps(), known)
        ]
        if mark is None:
            # Salvage brings back what was deleted: it has no entry, and never would have one.
            notes += [(formats.sequenced(formats.BODIES, number), None) for number in replaced]
        if notes:
            self._bodies.write(notes, sync=False)
        # The index never knows more than the bodies, unless they have lost the end of a log.
        body = highest(self._bodies, formats.BODIES)
        last = self._last if body is None else max(body, max(self._damaged, default=0))
        missing = range(last + 1, self._last + 1)
        return Recovery(mark is None, replayed, self._lost, self._last + 1, missing)

    def _deletions_readable(self) -> bool:
        """Return whether every note of a deletion can be read: else the index is not trusted."""
        try:
            for _, value in self._bodies.scan(formats.GONE, keyvalue.prefix_end(formats.GONE)):
                formats.decode_gone(value)
        except errors.StoreDamaged:
            return False
        return True

    def _known(self) -> int:
        """Return up to which sequence the index knows the bodies, where it can be read."""
        try:
            return self._index.mark() or 0
        except errors.StoreDamaged:
            return 0

    def _replay(self, mark: int, known: int) -> tuple[int, list[int], set[int]]:
        """Enter all bodies above the mark.

        Return how many, which bodies later ones have replaced, and which were deleted.
        """
        self._last = mark
        replayed = 0
        replaced: list[int] = []
        gone: set[int] = set()
        puts: list[Put] = []
        drops: list[Drop] = []
        gaps = Gaps()
        events = heapq.merge(
            readable(self._bodies, formats.BODIES, mark, gaps, known),
            readable(self._bodies, formats.GONE, mark, Gaps(), known),
        )
        for sequence, key, value in events:
            self._last = sequence
            replayed += 1
            try:
                if key.startswith(formats.GONE):
                    drops = formats.decode_gone(value)
                    gone.update(dropped for _, dropped in drops)
                else:
                    body = formats.decode_body(value)
                    puts.append((body.index_key, formats.entry_of(body, sequence)))
            except errors.StoreDamaged as fault:
                self._lost += 1
                self._log.error("storage.body_damaged", sequence=sequence, reason=fault.message)
            # A note must see what was put before it, and nothing that came later.
            if drops or len(puts) == REBUILD_BATCH:
                replaced += self._index.apply(puts, drops, sequence)
                puts, drops = [], []
        replaced += self._index.apply(puts, [], self._last)
        for first, last in gaps.ranges:
            self._lost += 1
            self._last = max(self._last, last, known)
            self._log.error("storage.bodies_unreadable", first=first, last=last)
        return replayed, replaced, gone

    def _read_damage(self, mark: int, gone: set[int], known: int) -> None:
        """Read the notes of damage; a damaged body keeps its entry and its bytes.

        A note can have come to the disk beside the deletion of its body: what was deleted,
        by a note of that or by an index that knew it once, does not come back.
        """
        stale: list[keyvalue.Change] = []
        self._damaged.clear()
        for sequence, note, value in readable(self._bodies, formats.DAMAGED, 0, Gaps(), known):
            self._last = max(self._last, sequence)
            try:
                damage = formats.decode_damaged(value)
            except errors.StoreDamaged as fault:
                self._log.error("storage.note_damaged", sequence=sequence, reason=fault.message)
                stale.append((note, None))
                continue
            held = self._index.entry(damage.key)
            if held is None and sequence > mark and sequence not in gone:
                self._index.apply([(damage.key, damage.entry)], [], self._last)
                held = damage.entry
            if held is not None and held.sequence == sequence:
                self._damaged[sequence] = damage
            else:
                stale.append((note, None))
        if stale:
            self._bodies.write(stale, sync=False)
