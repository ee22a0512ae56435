"""Reading bodies past damage: what cannot be read is named, and the rest is read.

A store that fails a checksum says so at the first key of the damaged block and
gives nothing from there on. The next readable body is searched by beginning
again behind it, one sequence after the other and then in growing steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xsc.base.errors import StoreDamaged
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.storage import bodies as formats

STEPS_MAX: Final = 4096
"""Sequences tried one by one; behind them each step is twice the one before."""
SEQUENCE_MAX: Final = 2**63


class Gaps:
    """Ranges of sequences, first to last, in which bodies could not be read."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

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


def readable(
    store: KeyValue, prefix: bytes, above: int, gaps: Gaps
) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield sequence, key and value of all that can be read above a sequence, in order.

    Args:
        store: the bodies.
        prefix: of the keys: BODIES, GONE or DAMAGED.
        above: the last sequence that is not wanted.
        gaps: is told what could not be read.
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
                gaps.ranges.append((following, SEQUENCE_MAX))
                return
            gaps.ranges.append((following, behind - 1))
            following = behind
        else:
            return
