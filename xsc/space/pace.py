"""How long a peer waits, so that none keeps this node busy with its space.

All together cause so much work a second. While few peers are busy each has half of that, and else
an equal part. Small traffic never waits. docs/design/space.md, S16.
"""

from __future__ import annotations

BURST_MS = 1_000
"""Work of so much time is done at once."""


class Pace:
    """The work that peers have caused, as the time until which each has used up its part.

    Args:
        a_second: units of work that all peers together cause.
    """

    def __init__(self, a_second: int) -> None:
        self._a_second = a_second
        self._until_us: dict[bytes, int] = {}

    def take(self, peer: bytes, count: int, now_ms: int) -> int:
        """Count units of work of a peer, and return how many milliseconds it has to wait.

        Args:
            peer: causes the work.
            count: units of it.
            now_ms: by a clock that never goes back.
        """
        now_us = now_ms * 1000
        busy = {at: until for at, until in self._until_us.items() if until > now_us}
        others = len(busy) - (peer in busy)
        cost_us = count * max(2, others + 1) * 1_000_000 // self._a_second
        busy[peer] = busy.get(peer, now_us) + cost_us
        self._until_us = busy
        return max(0, (busy[peer] - now_us) // 1000 - BURST_MS)
