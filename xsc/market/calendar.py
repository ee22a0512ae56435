"""Promises of a capacity over time, and what they leave free.

A calendar holds levels: a promise takes its quantity at every moment from its start to its
end (bytes held at any one time, fuel steps within a lease's length). What may still be
promised over a time is the capacity less the most that is promised at any moment of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from xsc.base.limits import COMPUTE_LEASE_MS, FUEL_QUANTUM, MIB
from xsc.base.units import ceil_div
from xsc.terms.quote import Kind

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


def level_of(kind: Kind, quanta: int, length_ms: int) -> int:
    """Return the level that a slot's quantity takes while a time of that length lasts.

    Of storage it is bytes. Compute is stated in all: it is spread over the time, and the level is
    what falls on the length of a lease.
    """
    if kind == "storage":
        return quanta * MIB
    steps = quanta * FUEL_QUANTUM
    return ceil_div(steps * COMPUTE_LEASE_MS, max(COMPUTE_LEASE_MS, length_ms))


def quanta_of(kind: Kind, level: int, length_ms: int) -> int:
    """Return the quantity of a slot whose level is at most that: the inverse of `level_of`."""
    if kind == "storage":
        return level // MIB
    return level * max(COMPUTE_LEASE_MS, length_ms) // COMPUTE_LEASE_MS // FUEL_QUANTUM
