"""Which peers to probe next, and how long to wait for an answer."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from math import isqrt

from xsc.base import units

PROBES_A_PERIOD = 12
"""In an interval; if there are more peers, each has its turn more rarely."""
TIMEOUT_MS_MIN = 1_000
RESPONSES_MIN = 3
"""Answers before the timeout follows from them."""
_DOUBLINGS_MAX = 8


def due(peers: Iterable[bytes], after: bytes, busy: Collection[bytes] = ()) -> list[bytes]:
    """Return the peers whose turn it is: on the ring of all ids the next ones.

    Each node begins at its own place. So of nodes that begin together, each probes others.

    Args:
        peers: the peers to probe.
        after: the last one of the turn before, at first this node.
        busy: peers of earlier rounds that are not over.
    """
    waiting = sorted(set(peers).difference(busy))
    start = bisect_right(waiting, after)
    return (waiting[start:] + waiting[:start])[:PROBES_A_PERIOD]


def timeout_ms(times_ms: Sequence[int], misses: int, most_ms: int) -> int:
    """Return how long a peer may take for an answer: its mean and four standard deviations.

    Args:
        times_ms: how long its last answers took.
        misses: probes missed since; each doubles it, so that a peer which became slow is heard.
        most_ms: the bound, and the timeout while there are few answers.
    """
    count, total = len(times_ms), sum(times_ms)
    if count < RESPONSES_MIN:
        return most_ms
    spread = isqrt(count * sum(each * each for each in times_ms) - total * total)
    usual_ms = max(TIMEOUT_MS_MIN, units.ceil_div(total + 4 * spread, count))
    return min(most_ms, usual_ms << min(misses, _DOUBLINGS_MAX))
