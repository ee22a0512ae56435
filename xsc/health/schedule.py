"""Which peers to probe next: round robin, the one probed longest ago first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def due(
    peers: Iterable[bytes], last_ms: Mapping[bytes, int], now_ms: int, interval_ms: int
) -> list[bytes]:
    """Return the peers whose turn it is, in the order of their turns.

    Args:
        peers: the peers to probe.
        last_ms: when each was probed last; a peer that is not in it is due at once.
        now_ms: the present, on the clock of `last_ms`.
        interval_ms: from one probe of a peer to its next.
    """
    waiting = [
        (last_ms.get(peer, -1), peer)
        for peer in set(peers)
        if peer not in last_ms or now_ms - last_ms[peer] >= interval_ms
    ]
    return [peer for _, peer in sorted(waiting)]


def wait_ms(
    peers: Iterable[bytes], last_ms: Mapping[bytes, int], now_ms: int, interval_ms: int
) -> int:
    """Return how long no peer is due; at most one interval, because peers may be added."""
    waits = (
        max(0, last_ms[peer] + interval_ms - now_ms) if peer in last_ms else 0 for peer in peers
    )
    return min(waits, default=interval_ms)
