"""Bodies that are known to be unreadable, and the notes of them on the disk."""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base.errors import XscError
from xsc.base.keyvalue import Change, KeyValue
from xsc.base.log import Log
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.fsck import Damage


class DamagedBodies:
    """Damage by the sequence of the body, until that is stored anew or deleted."""

    def __init__(self, bodies: KeyValue, log: Log) -> None:
        self._bodies = bodies
        self._log = log
        self._known: dict[int, Damage] = {}

    def __contains__(self, sequence: object) -> bool:
        return sequence in self._known

    def all(self) -> tuple[Damage, ...]:
        """Return every known damage."""
        return tuple(self._known.values())

    def last_sequence(self) -> int:
        """Return the highest sequence of a damaged body; 0 where there is none."""
        return max(self._known, default=0)

    def restore(self, known: dict[int, Damage]) -> None:
        """Set the damage that a start read from the notes."""
        self._known = known

    def note(self, damage: Damage) -> None:
        """Remember damage and write a note of it."""
        sequence = damage.entry.sequence
        if sequence in self._known:
            return
        self._known[sequence] = damage
        note = formats.encode_damaged(damage.key, damage.entry, damage.reason)
        self._log.error("storage.damage_found", sequence=sequence, reason=damage.reason)
        try:
            self._bodies.write([(formats.sequenced(formats.DAMAGED, sequence), note)], sync=False)
        except XscError as fault:
            # It is known until the end of this process, and found again by the next.
            self._log.warning("storage.note_failed", sequence=sequence, reason=fault.message)

    def forget(self, sequences: Sequence[int]) -> list[Change]:
        """Forget bodies that are gone; return the writes that drop their notes."""
        known = [sequence for sequence in sequences if sequence in self._known]
        for sequence in known:
            del self._known[sequence]
        return [(formats.sequenced(formats.DAMAGED, sequence), None) for sequence in known]

    def drop_notes(self, notes: list[Change]) -> None:
        """Drop notes from the disk; what fails is dropped by the next start."""
        try:
            self._bodies.write(notes, sync=False)
        except XscError as fault:
            self._log.warning("storage.note_failed", notes=len(notes), reason=fault.message)
