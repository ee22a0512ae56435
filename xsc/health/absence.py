"""When silence is absence: which windows count, whom to ask, whom to tell.

A node that hears nothing cannot tell a dead peer from a broken path of its own. So one window
of probes counts only if enough of its targets answered, and a miss only if none of some other
peers brings a pong. Design: docs/design/health.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

CONTROL_TARGETS = 4
"""From so many targets on, half of them must answer; below it is one."""
HELPERS = 3
"""Peers through which a missed probe is asked."""
TOLD = 5
"""Peers that are told of a miss."""


def window_counts(answered: int, silent: int, absent: int) -> bool:
    """Return whether the results of a window say something about the peers, not the prober.

    Args:
        answered: targets that answered.
        silent: those that did not, and that are not known to be absent.
        absent: those that did not, and were absent before: they are no control.
    """
    if answered + silent >= CONTROL_TARGETS:
        return 2 * answered >= answered + silent
    return answered > 0 and answered + silent + absent > 1


def helpers(
    domain: bytes, candidates: Iterable[tuple[bytes, bytes]], turn: int, most: int
) -> list[bytes]:
    """Return peers to ask, in other failure domains than the target and each other first.

    Args:
        domain: the target's failure domain.
        candidates: peers that are up, without the target, and the domain of each.
        turn: how many were asked before, so that each has its turn.
        most: how many to return at most.
    """
    order = sorted(candidates)
    start = turn % len(order) if order else 0
    seen = {domain}
    apart: list[bytes] = []
    beside: list[bytes] = []
    for peer, where in order[start:] + order[:start]:
        (beside if where in seen else apart).append(peer)
        seen.add(where)
    return (apart + beside)[:most]


def told(own: bytes, up: Collection[bytes]) -> list[bytes]:
    """Return whom this node tells of a miss: on the ring of all ids, near and ever farther.

    If all know the same peers, each is told by TOLD others, and what one says reaches all.
    """
    ring = sorted({own, *up})
    count, place = len(ring), ring.index(own)
    if count <= TOLD + 1:
        return ring[place + 1 :] + ring[:place]
    # Powers of the TOLD-th root of the count, rounded up.
    steps = (next(s for s in range(count) if s**TOLD >= count**power) for power in range(TOLD))
    return [ring[(place + step) % count] for step in steps]
