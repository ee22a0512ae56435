"""Reading all bodies of a shard store, past damage too, and comparing them with the index.

The bodies are the truth. Every one is read, with `deep` also against its root
or hashes; every entry of the index must be exactly what follows from its body;
and the bytes counted under each lease must be the sum of its entries. Memory is
some 16 bytes a body.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from xsc.base.errors import StoreDamaged
from xsc.base.ids import to_text
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.base.progress import Progress, ignore_progress
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Damage, IndexEntry

MISSED_MAX: Final = 4096
"""Behind the highest known sequence it is read on until so many in a row hold nothing."""


class Gaps:
    """Ranges of sequences, first to last, in which bodies could not be read."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def add(self, sequence: int) -> None:
        """Note a sequence above those noted before."""
        first = sequence
        if self.ranges and self.ranges[-1][1] == sequence - 1:
            first, _ = self.ranges.pop()
        self.ranges.append((first, sequence))

    def __contains__(self, sequence: object) -> bool:
        return isinstance(sequence, int) and any(
            first <= sequence <= last for first, last in self.ranges
        )


def highest(store: KeyValue, prefix: bytes) -> int | None:
    """Return the highest sequence under a prefix, 0 for none; None where it cannot be read."""
    try:
        for key, _ in store.scan(prefix, prefix_end(prefix), reverse=True):
            return formats.sequence_of(key)
    except StoreDamaged:
        return None
    return 0


def readable(
    store: KeyValue, prefix: bytes, above: int, gaps: Gaps, known: int = 0
) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield sequence, key and value of all that can be read above a sequence, in order.

    A scan ends at the first damaged block, and does not begin at all while one of the newest
    tables cannot be opened. A single read looks only into what lies around its key: from
    there on every sequence is read by itself.

    Args:
        store: the bodies.
        prefix: of the keys: BODIES, GONE or DAMAGED.
        above: the last sequence that is not wanted.
        gaps: is told what could not be read.
        known: the highest sequence that is known to have been given.
    """
    following = above + 1
    try:
        for key, value in store.scan(formats.sequenced(prefix, following), prefix_end(prefix)):
            sequence = formats.sequence_of(key)
            yield sequence, key, value
            following = sequence + 1
    except StoreDamaged:
        known = max(known, highest(store, prefix) or 0)
    else:
        return
    missed = 0
    while following <= known or missed < MISSED_MAX:
        key = formats.sequenced(prefix, following)
        missed += 1
        try:
            found = store.get(key)
        except StoreDamaged:
            gaps.add(following)
        else:
            if found is not None:
                yield following, key, found
                missed = 0
        following += 1


@dataclass(frozen=True, slots=True)
class StoreAudit:
    """What a comparison found."""

    bodies: int
    """Bodies that are whole."""
    bytes_held: int
    """What they and the damaged ones count for, by a scan of the index."""
    bytes_counted: int
    """What the totals of the index say."""
    damaged: tuple[Damage, ...]
    unreadable: tuple[tuple[int, int], ...]
    """Sequences, first to last, in which something could not be read."""
    index_faults: tuple[str, ...]
    """Where the index does not say what the bodies say: it must be rebuilt."""

    @property
    def whole(self) -> bool:
        """Whether nothing was found."""
        return not (self.damaged or self.unreadable or self.index_faults)


def _print(key: bytes, entry: IndexEntry) -> int:
    """Return a fingerprint that tells entries apart, within this process."""
    return hash((key, entry))


@dataclass(slots=True)
class Scanned:
    """What the bodies say."""

    sequences: array[int] = field(default_factory=lambda: array("Q"))
    prints: array[int] = field(default_factory=lambda: array("q"))
    bad: dict[int, str] = field(default_factory=dict)
    gaps: Gaps = field(default_factory=Gaps)


def scan_bodies(
    store: KeyValue, before: int, *, deep: bool, progress: Progress = ignore_progress
) -> Scanned:
    """Read all bodies of sequences below `before`; with `deep`, check their roots and hashes."""
    found = Scanned()
    for sequence, _, value in readable(store, formats.BODIES, 0, found.gaps, before - 1):
        if sequence >= before:
            break
        progress(len(value))
        try:
            body = formats.decode_body(value)
        except StoreDamaged:
            found.bad[sequence] = "unreadable"
            continue
        if deep and not body.is_whole:
            found.bad[sequence] = "mismatch"
        found.sequences.append(sequence)
        found.prints.append(_print(body.index_key, formats.entry_of(body, sequence)))
    return found


def compare(
    scanned: Scanned, entries: Iterable[tuple[bytes, IndexEntry]], usage: Mapping[bytes, int]
) -> StoreAudit:
    """Compare what the bodies say with entries and totals of the index."""
    faults: list[str] = []
    damaged: list[Damage] = []
    sums: dict[bytes, int] = {}
    matched = 0
    for key, entry in entries:
        sums[entry.lease_id] = sums.get(entry.lease_id, 0) + entry.held_bytes
        sequence = entry.sequence
        place = bisect_left(scanned.sequences, sequence)
        there = place < len(scanned.sequences) and scanned.sequences[place] == sequence
        if there:
            matched += 1
            if scanned.prints[place] != _print(key, entry):
                faults.append(f"the entry of body {sequence} is not what the body says")
        if sequence in scanned.bad:
            damaged.append(Damage(key, entry, scanned.bad[sequence]))
        elif not there:
            reason = "unreadable" if sequence in scanned.gaps else "gone"
            damaged.append(Damage(key, entry, reason))
    if matched != len(scanned.sequences):
        faults.append(f"{len(scanned.sequences) - matched} bodies have no entry")
    for lease_id in sorted(sums.keys() | usage.keys()):
        held, counted = sums.get(lease_id, 0), usage.get(lease_id, 0)
        if held != counted:
            faults.append(f"lease {to_text(lease_id)[:10]} holds {held} bytes and counts {counted}")
    whole = matched - sum(1 for item in damaged if item.reason == "mismatch")
    return StoreAudit(
        bodies=whole,
        bytes_held=sum(sums.values()),
        bytes_counted=sum(usage.values()),
        damaged=tuple(sorted(damaged, key=lambda item: item.entry.sequence)),
        unreadable=tuple(scanned.gaps.ranges),
        index_faults=tuple(faults),
    )
