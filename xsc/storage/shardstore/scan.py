"""Reading bodies past damage: what cannot be read is named, and the rest is read.

A store that fails a checksum says so at the first key of the damaged block and
gives nothing from there on. The next readable body is searched by beginning
again behind it, one sequence after the other and then in growing steps.

A table that cannot be opened at all, while it is one of the newest, lets every scan fail,
wherever it begins; a single read looks only into tables whose keys lie around its own. So
where no scan gets on, the bodies are read one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xsc.base.errors import StoreDamaged
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.storage.shardstore import bodies as formats

STEPS_MAX: Final = 4096
"""Sequences tried one by one; behind them each step is twice the one before."""
SEQUENCE_MAX: Final = 2**63


class Gaps:
    """Ranges of sequences, first to last, in which bodies could not be read."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def add(self, first: int, last: int) -> None:
        """Note a range that follows those noted before."""
        if self.ranges and self.ranges[-1][1] == first - 1:
            first = self.ranges.pop()[0]
        self.ranges.append((first, last))

    def __contains__(self, sequence: object) -> bool:
        return isinstance(sequence, int) and any(
            first <= sequence <= last for first, last in self.ranges
        )


def _readable_from(store: KeyValue, prefix: bytes, sequence: int) -> bool:
    try:
        for _ in store.scan(formats.sequenced(prefix, sequence), prefix_end(prefix)):
            break
    except StoreDamaged:
        return False
    return True


def _behind(store: KeyValue, prefix: bytes, damaged: int) -> int | None:
    """Return from where on can be read again; None where nothing more can."""
    low, step = damaged, 1
    tried = 0
    while True:
        high = low + step
        if high >= SEQUENCE_MAX:
            return None
        if _readable_from(store, prefix, high):
            break
        low, tried = high, tried + 1
        if tried >= STEPS_MAX:
            step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        if _readable_from(store, prefix, middle):
            high = middle
        else:
            low = middle
    return high


def _one_by_one(
    store: KeyValue, prefix: bytes, following: int, known: int, gaps: Gaps
) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield what single reads give, up to `known` and on until there is nothing for long."""
    last = max(following - 1, known)
    sequence, missed = following, 0
    while sequence <= known or missed < STEPS_MAX:
        key = formats.sequenced(prefix, sequence)
        missed += 1
        try:
            value = store.get(key)
        except StoreDamaged:
            gaps.add(sequence, sequence)
            last = max(last, sequence)
        else:
            if value is not None:
                yield sequence, key, value
                last, missed = max(last, sequence), 0
        sequence += 1
    # Nobody can say what comes behind.
    gaps.add(last + 1, SEQUENCE_MAX)


def readable(
    store: KeyValue, prefix: bytes, above: int, gaps: Gaps, known: int = 0
) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield sequence, key and value of all that can be read above a sequence, in order.

    Args:
        store: the bodies.
        prefix: of the keys: BODIES, GONE or DAMAGED.
        above: the last sequence that is not wanted.
        gaps: is told what could not be read.
        known: the highest sequence that is known to have been given.
    """
    following = above + 1
    while True:
        try:
            for key, value in store.scan(formats.sequenced(prefix, following), prefix_end(prefix)):
                sequence = formats.sequence_of(key)
                yield sequence, key, value
                following = sequence + 1
        except StoreDamaged:
            behind = _behind(store, prefix, following)
            if behind is None:
                yield from _one_by_one(store, prefix, following, known, gaps)
                return
            gaps.add(following, behind - 1)
            following = behind
        else:
            return
