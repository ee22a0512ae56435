"""Which columns are lost, and which nodes are reliable enough to be given columns.

A loss that a host admits counts at once. Silence counts once it has lasted for the
grace. A node that was given up must stay up for a while before it is given columns
again, longer after each fall, so that a flapping node causes no traffic.
Design: docs/design/storage-repair.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from xsc.storage.object.placement import State

FALLS_COUNTED: Final = 6


@dataclass(frozen=True, slots=True)
class NodeHistory:
    """How one node behaved since this process began."""

    down_since_ms: int | None
    """Monotonic time; None while it is up."""
    up_since_ms: int = 0
    falls: int = 0
    """How often it was given up."""


def observed(history: NodeHistory | None, *, up: bool, now_ms: int, grace_ms: int) -> NodeHistory:
    """Return the history after an observation of the node."""
    if history is None:
        return NodeHistory(None if up else now_ms, now_ms)
    if up and history.down_since_ms is not None:
        return NodeHistory(None, now_ms, history.falls + is_gone(history, now_ms, grace_ms))
    if not up and history.down_since_ms is None:
        return replace(history, down_since_ms=now_ms)
    return history


def is_gone(history: NodeHistory | None, now_ms: int, grace_ms: int) -> bool:
    """Say whether a node has been silent for the grace, so that its columns count as lost."""
    return (
        history is not None
        and history.down_since_ms is not None
        and now_ms - history.down_since_ms >= grace_ms
    )


def is_steady(history: NodeHistory | None, now_ms: int, grace_ms: int) -> bool:
    """Say whether a node may be given columns: each fall doubles how long it must stay up."""
    if history is None or history.down_since_ms is not None:
        return False
    if history.falls == 0:
        return True
    wait_ms = grace_ms << min(history.falls - 1, FALLS_COUNTED)
    return now_ms - history.up_since_ms >= wait_ms


def lost_columns(
    columns: Sequence[bytes], states: Sequence[State], gone: Collection[bytes]
) -> frozenset[int]:
    """Return the columns that are lost: admitted by their host, or silent beyond the grace."""
    return frozenset(
        column
        for column, (node, state) in enumerate(zip(columns, states, strict=True))
        if state in ("missing", "corrupt") or (state == "unreachable" and node in gone)
    )
