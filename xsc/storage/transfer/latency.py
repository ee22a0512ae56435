"""How long hosts take, learned from their answers, and when somebody else is asked as well.

Two questions are kept apart. *Whom to ask first* follows from what is remembered of
each host: how long its answers took, and whether it was found late and has not
answered since. *How long to wait* for one follows from the k-th best host and from how
the other answers of the same race come, and is never over a ceiling: who was late
before is asked last, but nobody is waited for any longer because of it.

A host that is asked last is not forgotten: now and then one shard is requested from it
beside the others (a *re-probe*).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from xsc.base.limits import KIB, MIB

HEDGE_FLOOR_MS = 50
"""No shard is asked for a second time elsewhere before that."""
HEDGE_CEILING_MS = 500
"""Beside a host that has not answered after that long another is asked, whatever is expected of
it; after longer where the answer is large: as long as HEDGE_BYTES_A_SECOND_MIN takes for it."""
HEDGE_BYTES_A_SECOND_MIN = 512 * KIB
REPROBE_INTERVAL_MS = 5_000
"""A host that is asked last is asked for a shard beside the others that often, if it is silent."""

LARGE_BYTES = 256 * 1024
"""From here on an answer tells of throughput; below, of delay."""
BELIEVED_TIMES = 4
"""So many times what was expected an answer may take and count in full."""


@dataclass(frozen=True, slots=True)
class LatencyEstimate:
    """What is remembered of one host."""

    small_ms: int
    """What an answer without a body takes."""
    mib_ms: int = 0
    """How much longer one takes for each MiB of body."""
    late_ms: int = 0
    """When it was last found late, if it has not answered since; 0 where it has."""
    probed_ms: int = 0
    """When it answered last, was found late, or was re-probed."""

    def expected_ms(self, size_bytes: int) -> int:
        """Return how long an answer of that size is expected to take."""
        return self.small_ms + self.mib_ms * size_bytes // MIB


def answered(
    estimate: LatencyEstimate, size_bytes: int, taken_ms: int, now_ms: int
) -> LatencyEstimate:
    """Return the estimate after a whole answer: a quarter of the way to what it says.

    What was twice as quick as expected, or quicker, is believed at once, and so is the first
    answer of a host that was late: it may be one that crawls. But what took over
    BELIEVED_TIMES as long counts as if it had taken that: the first answer of a process that
    was stopped says how long it was stopped, and nothing about its speed.
    """
    expected_ms = estimate.expected_ms(size_bytes)
    taken_ms = min(taken_ms, BELIEVED_TIMES * max(HEDGE_FLOOR_MS, expected_ms))
    error_ms = taken_ms - expected_ms
    # Nothing without a body can take longer than this did with one.
    small_ms, mib_ms = min(estimate.small_ms, taken_ms), estimate.mib_ms
    believed = bool(estimate.late_ms) or 2 * taken_ms <= expected_ms
    if size_bytes < LARGE_BYTES:
        small_ms += max(0, error_ms) // (1 if believed else 4)
    elif believed:
        mib_ms = (taken_ms - small_ms) * MIB // size_bytes
    else:
        mib_ms = max(0, mib_ms + error_ms * MIB // (4 * size_bytes))
    return LatencyEstimate(small_ms, mib_ms, probed_ms=now_ms)


def late(estimate: LatencyEstimate, now_ms: int) -> LatencyEstimate:
    """Return the estimate of a host that did not answer in time; what is expected of it stays."""
    return replace(estimate, late_ms=now_ms, probed_ms=now_ms)


def reprobed(estimate: LatencyEstimate, now_ms: int) -> LatencyEstimate:
    """Return the estimate of a host that is re-probed now."""
    return replace(estimate, probed_ms=now_ms)


def is_due(estimate: LatencyEstimate, now_ms: int) -> bool:
    """Say whether a host that is asked last is due for a re-probe."""
    return now_ms - estimate.probed_ms >= REPROBE_INTERVAL_MS


def kth_ms(expected_ms: Iterable[int], k: int) -> int:
    """Return what the k-th best of some hosts is expected to take."""
    ordered = sorted(expected_ms)
    return ordered[min(k, len(ordered)) - 1] if ordered else 0


def slow_from_ms(kth_best_ms: int) -> int:
    """Return above what expected time a host is slow beside the k-th best."""
    return max(HEDGE_FLOOR_MS, 2 * kth_best_ms)


def patience_ms(kth_best_ms: int, size_bytes: int, answers: Sequence[tuple[int, int]] = ()) -> int:
    """Return how long a race waits for any host before it asks another one as well.

    That is 1.5 times what the k-th best host is expected to take. Where an answer of the
    race came in less than half the time that was expected of it, all are expected that much
    sooner; twice that is left. Neither is less than HEDGE_FLOOR_MS.

    Args:
        kth_best_ms: what is expected of the k-th best host.
        size_bytes: of the answer that is waited for.
        answers: of this race: how long each took, and what had been expected.
    """
    patience = kth_best_ms * 3 // 2
    for taken_ms, expected_ms in answers:
        taken = max(HEDGE_FLOOR_MS, taken_ms)
        patience = min(patience, 2 * kth_best_ms * taken // max(HEDGE_FLOOR_MS, expected_ms))
    ceiling_ms = HEDGE_CEILING_MS + size_bytes * 1000 // HEDGE_BYTES_A_SECOND_MIN
    return max(HEDGE_FLOOR_MS, min(patience, ceiling_ms))
