"""Promises of a capacity over time, and what they leave free.

A calendar holds levels: a promise takes its quantity at every moment from its start to its
end (bytes held at any one time, fuel steps within a lease's length). What may still be
promised over a time is the capacity less the most that is promised at any moment of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

EVER_MS: Final = 2**63 - 1
"""The end of what has none."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A quantity that is taken at every moment of a half-open time."""

    start_ms: int
    end_ms: int
    quantity: int


def promised_over(promises: Iterable[Promise], start_ms: int, end_ms: int) -> int:
    """Return the most that is promised at any moment of a half-open time."""
    changes: list[tuple[int, int]] = []
    for promise in promises:
        start, end = max(promise.start_ms, start_ms), min(promise.end_ms, end_ms)
        if start < end:
            changes += ((start, promise.quantity), (end, -promise.quantity))
    # What ends at a moment makes room for what begins then.
    changes.sort()
    level = most = 0
    for _, change in changes:
        level += change
        most = max(most, level)
    return most


def free_over(capacity: int, promises: Iterable[Promise], start_ms: int, end_ms: int) -> int:
    """Return what can still be promised over a half-open time."""
    return max(0, capacity - promised_over(promises, start_ms, end_ms))
