"""Brings the index of a shard store up to date with its bodies, or makes it anew.

Runs once, in the executor, before anything else uses the store.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from xsc.base.errors import StoreDamaged
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.log import Log
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.damage import DamagedBodies
from xsc.storage.shardstore.fsck import Damage
from xsc.storage.shardstore.index import Drop, Put, ShardIndex
from xsc.storage.shardstore.scan import SEQUENCE_MAX, Gaps, readable

REBUILD_BATCH = 256
"""Bodies indexed in one write."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a start did to bring the index up to date."""

    rebuilt: bool
    replayed: int
    damaged: int
    """Bodies that could not be read; their customers learn it by `stat`."""


class Replay:
    """One run through the bodies that the index does not know yet."""

    def __init__(
        self, bodies: KeyValue, index: ShardIndex, damaged: DamagedBodies, log: Log
    ) -> None:
        self._bodies = bodies
        self._index = index
        self._damaged = damaged
        self._log = log
        self._replaced: list[int] = []
        self.next_sequence = 1
        """Behind all sequences that were ever given."""
        self.missing = range(0)
        """Sequences that the index knows and the bodies have lost with the end of a log."""

    def run(self, *, rebuild: bool) -> Recovery:
        """Bring the index up to date.

        Raises:
            StoreDamaged: the bodies cannot be read, or the index not even be emptied.
        """
        found = None if rebuild or not self._deletions_readable() else self._index.load()
        known = 0
        if found is None:
            known = self._known()
            self._index.clear()
        mark = found or 0
        self.next_sequence = mark + 1
        replayed, damaged = self._replay(mark, known)
        # Only once the index is on the disk may the notes of deletions go.
        self._index.sync_at(self.next_sequence - 1)
        # The index never knows more than the bodies, unless they have lost the end of a log.
        last = max(self._last_body(), self._damaged.last_sequence())
        self.missing = range(last + 1, self.next_sequence)
        gone = readable(self._bodies, formats.GONE, 0, Gaps())
        notes: list[Change] = [(key, None) for _, key, _ in gone]
        if found is None:
            # Salvage brings back what was deleted: it has no entry, and never would have one.
            notes += [
                (formats.sequenced(formats.BODIES, number), None) for number in self._replaced
            ]
        if notes:
            self._bodies.write(notes, sync=False)
        return Recovery(found is None, replayed, damaged)

    def _last_body(self) -> int:
        """Return the highest sequence of a body; where it cannot be read, as if none was lost."""
        try:
            for key, _ in self._bodies.scan(
                formats.BODIES, prefix_end(formats.BODIES), reverse=True
            ):
                return formats.sequence_of(key)
        except StoreDamaged:
            return self.next_sequence - 1
        return 0

    def _deletions_readable(self) -> bool:
        """Return whether every note of a deletion can be read: else the index is not trusted."""
        gaps = Gaps()
        for _, _, value in readable(self._bodies, formats.GONE, 0, gaps):
            try:
                formats.decode_gone(value)
            except StoreDamaged:
                return False
        return not gaps.ranges

    def _known(self) -> int:
        """Return up to which sequence the index knows the bodies, where it can be read."""
        try:
            return self._index.mark() or 0
        except StoreDamaged:
            return 0

    def _apply(self, puts: list[Put], drops: list[Drop], mark: int) -> None:
        self._replaced += self._index.apply(puts, drops, mark)

    def _replay(self, mark: int, known: int) -> tuple[int, int]:
        """Enter all bodies above the mark; return how many, and how many could not be read."""
        replayed = damaged = 0
        puts: list[Put] = []
        drops: list[Drop] = []
        gaps = Gaps()
        gone: set[int] = set()
        events = heapq.merge(
            readable(self._bodies, formats.BODIES, mark, gaps, known),
            readable(self._bodies, formats.GONE, mark, Gaps(), known),
        )
        for sequence, key, value in events:
            self.next_sequence = sequence + 1
            try:
                if key.startswith(formats.GONE):
                    drops.extend(formats.decode_gone(value))
                    gone.update(dropped for _, dropped in drops)
                else:
                    body = formats.decode_body(value)
                    puts.append((body.index_key, formats.entry_of(body, sequence)))
            except StoreDamaged as fault:
                damaged += 1
                self._log.error("storage.body_damaged", sequence=sequence, reason=fault.message)
            replayed += 1
            # A note must see what was put before it, and nothing that came later.
            if drops or len(puts) == REBUILD_BATCH:
                self._apply(puts, drops, sequence)
                puts, drops = [], []
        if puts:
            self._apply(puts, drops, self.next_sequence - 1)
        if gaps.ranges:
            self.next_sequence = max(self.next_sequence, known + 1)
        for first, last in gaps.ranges:
            damaged += 1
            self._log.error("storage.bodies_unreadable", first=first, last=last)
            if last < SEQUENCE_MAX:
                self.next_sequence = max(self.next_sequence, last + 1)
        self._read_damage(mark, gone, known)
        return replayed, damaged

    def _read_damage(self, mark: int, gone: set[int], known: int) -> None:
        """Read the notes of damage; a damaged body keeps its entry and its bytes.

        A note can have come to the disk beside the deletion of its body: what was deleted,
        by a note of that or by an index that knew it once, does not come back.
        """
        stale: list[Change] = []
        damaged: dict[int, Damage] = {}
        for sequence, note, value in readable(self._bodies, formats.DAMAGED, 0, Gaps(), known):
            self.next_sequence = max(self.next_sequence, sequence + 1)
            try:
                key, entry, reason = formats.decode_damaged(value)
            except StoreDamaged as fault:
                self._log.error("storage.note_damaged", sequence=sequence, reason=fault.message)
                stale.append((note, None))
                continue
            held = self._index.entry(key)
            if held is None and sequence > mark and sequence not in gone:
                self._apply([(key, entry)], [], self.next_sequence - 1)
                held = entry
            if held is not None and held.sequence == sequence:
                damaged[sequence] = Damage(key, entry, reason)
            else:
                stale.append((note, None))
        self._damaged.restore(damaged)
        if stale:
            self._bodies.write(stale, sync=False)
