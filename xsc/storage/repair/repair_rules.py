"""What an object needs: which columns are lost, and which nodes are trusted with more.

Loss that a host admits counts at once. Silence counts once it has lasted for the
grace, and a node that was given up must stay up for a while, longer each time,
before it is trusted with more, so that a flapping node starts no storm.
docs/design/storage-repair.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from xsc.storage.object.placement import State

FALLS_COUNTED: Final = 6


@dataclass(frozen=True, slots=True)
class Watch:
    """How one node behaved, as far as this run saw it."""

    down_since_ms: int | None
    """Steady time; None while it is up."""
    up_since_ms: int = 0
    falls: int = 0
    """How often it was given up."""


def watched(watch: Watch | None, *, up: bool, now_ms: int, grace_ms: int) -> Watch:
    """Return the watch after a look at the node."""
    if watch is None:
        return Watch(None if up else now_ms, now_ms)
    if up and watch.down_since_ms is not None:
        falls = watch.falls + is_gone(watch, now_ms, grace_ms)
        return Watch(None, now_ms, falls)
    if not up and watch.down_since_ms is None:
        return replace(watch, down_since_ms=now_ms)
    return watch


def is_gone(watch: Watch | None, now_ms: int, grace_ms: int) -> bool:
    """Say whether a node has been silent for so long that its columns count as lost."""
    return (
        watch is not None
        and watch.down_since_ms is not None
        and now_ms - watch.down_since_ms >= grace_ms
    )


def is_steady(watch: Watch | None, now_ms: int, grace_ms: int) -> bool:
    """Say whether a node may be given columns: each fall doubles how long it must stay up."""
    if watch is None or watch.down_since_ms is not None:
        return False
    if watch.falls == 0:
        return True
    wait_ms = grace_ms << min(watch.falls - 1, FALLS_COUNTED)
    return now_ms - watch.up_since_ms >= wait_ms


def lost_columns(
    columns: Sequence[bytes], states: Sequence[State], gone: Collection[bytes]
) -> frozenset[int]:
    """Return the columns whose loss is certain: admitted, or silent beyond the grace."""
    return frozenset(
        column
        for column, (node, state) in enumerate(zip(columns, states, strict=True))
        if state in ("missing", "corrupt") or (state == "unreachable" and node in gone)
    )


def margin(states: Sequence[State], k: int) -> int:
    """Return how many more columns may be lost; negative where it is too late."""
    return sum(state == "ok" for state in states) - k


def surplus(columns: Sequence[bytes], node: bytes, held: Collection[int]) -> frozenset[int]:
    """Return the columns that a node still holds although they lie elsewhere by now."""
    return frozenset(column for column in held if columns[column] != node)
