"""How long a host takes, learned from how long it took.

A host that was slow is asked last from then on, so that one stalled host costs one
read and not each. It is not forgotten: now and then one shard is asked of it beside
the others (a *trial*), the less often the longer it stays slow, and what it takes
then is believed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xsc.base.limits import HEDGE_FLOOR_MS, MIB, TRIAL_FIRST_MS, TRIAL_LAST_MS

LARGE_BYTES = 256 * 1024
"""From here on an answer tells of throughput; below, of delay."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What is expected of one host."""

    small_ms: int
    """For an answer without a body."""
    mib_ms: int = 0
    """More for each MiB of it."""
    trial_ms: int = 0
    """When it was last asked for a trial, or found late."""
    wait_ms: int = TRIAL_FIRST_MS
    """How long until the next trial."""
    is_slow: bool = False
    """Found late, and no answer has come since."""

    def expected_ms(self, size_bytes: int) -> int:
        """Return how long an answer of that size is expected to take."""
        return self.small_ms + self.mib_ms * size_bytes // MIB


def answered(pace: Pace, size_bytes: int, taken_ms: int) -> Pace:
    """Return the pace after a whole answer: a quarter of the way to what it says."""
    error_ms = taken_ms - pace.expected_ms(size_bytes)
    # Nothing without a body can take longer than this did with one.
    small_ms = min(pace.small_ms, taken_ms)
    if size_bytes < LARGE_BYTES:
        return replace(pace, small_ms=small_ms + max(0, error_ms) // 4, is_slow=False)
    mib_ms = max(0, pace.mib_ms + error_ms * MIB // (4 * size_bytes))
    return replace(pace, small_ms=small_ms, mib_ms=mib_ms, is_slow=False)


def tried(pace: Pace, size_bytes: int, taken_ms: int) -> Pace:
    """Return the pace after a trial was answered: what it took, and no memory of before."""
    small_ms = min(pace.small_ms, taken_ms)
    mib_ms = (taken_ms - small_ms) * MIB // max(1, size_bytes)
    return replace(pace, small_ms=small_ms, mib_ms=mib_ms, wait_ms=TRIAL_FIRST_MS, is_slow=False)


def late(pace: Pace, size_bytes: int, elapsed_ms: int, now_ms: int) -> Pace:
    """Return the pace of a host that has not answered after that long: twice as long, at least."""
    missing_ms = 2 * elapsed_ms - pace.expected_ms(size_bytes)
    if missing_ms <= 0:
        return pace
    if size_bytes < LARGE_BYTES:
        pace = replace(pace, small_ms=pace.small_ms + missing_ms)
    else:
        pace = replace(pace, mib_ms=pace.mib_ms + missing_ms * MIB // size_bytes)
    return replace(pace, trial_ms=now_ms, is_slow=True)


def on_trial(pace: Pace, now_ms: int) -> Pace:
    """Return the pace of a host that is asked for a trial now; the next comes twice as late."""
    return replace(pace, trial_ms=now_ms, wait_ms=min(2 * pace.wait_ms, TRIAL_LAST_MS))


def is_due(pace: Pace, now_ms: int) -> bool:
    """Say whether a slow host should be tried again."""
    return now_ms - pace.trial_ms >= pace.wait_ms


def slow_from_ms(expected_ms: list[int], k: int) -> int:
    """Return above what time a host is slow, by those of all hosts of an object: twice the k-th."""
    return max(HEDGE_FLOOR_MS, 2 * sorted(expected_ms)[min(k, len(expected_ms)) - 1])
