"""Comparing what a shard store holds with what its index says, body by body.

The bodies are the truth. Every one is read, with `deep` also against its root
or hashes; every entry of the index must be exactly what follows from its body;
and the bytes counted under each lease must be the sum of its entries. Memory is
some 16 bytes a body.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xsc.base.errors import StoreDamaged
from xsc.base.ids import to_text
from xsc.base.keyvalue import KeyValue
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Damage, IndexEntry
from xsc.storage.shardstore.replay import Gaps, readable


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


def scan_bodies(store: KeyValue, before: int, *, deep: bool) -> Scanned:
    """Read all bodies of sequences below `before`; with `deep`, check their roots and hashes."""
    found = Scanned()
    for sequence, _, value in readable(store, formats.BODIES, 0, found.gaps, before - 1):
        if sequence >= before:
            break
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
