"""Counts what a peer may do, or take, within a time, where that cannot be billed."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from xsc.base import errors, units


class Tally:
    """What each peer did, not longer ago than it counts.

    Args:
        most: how often a peer may do it.
        within_ms: within this time.
    """

    def __init__(self, most: int, within_ms: int) -> None:
        self._most = most
        self._within_ms = within_ms
        self._times: dict[bytes, deque[int]] = {}

    def note(self, peer: bytes, now_ms: int) -> None:
        """Note that a peer did it once more; `now_ms` is by a clock that never goes back."""
        since_ms = now_ms - self._within_ms
        for known in [each for each, noted in self._times.items() if noted[-1] < since_ms]:
            del self._times[known]
        self._times.setdefault(peer, deque(maxlen=self._most)).append(now_ms)

    def count(self, peer: bytes, now_ms: int, what: str) -> None:
        """Note that a peer does it once more.

        Raises:
            RateLimited: it has done it too often; the hint says for how long.
        """
        if wait_ms := self.wait_ms(peer, now_ms):
            raise errors.RateLimited(
                f"more than {self._most} {what} within {self._within_ms // 1000} s",
                retry_after_s=units.ceil_div(wait_ms, 1000),
            )
        self.note(peer, now_ms)

    def wait_ms(self, peer: bytes, now_ms: int) -> int:
        """Return how long a peer has to wait until it may do it once more, 0 where it need not."""
        noted = self._times.get(peer)
        if noted is None or len(noted) < self._most:
            return 0
        return max(0, noted[0] + self._within_ms - now_ms)


class Rate:
    """How much each holder takes at once, which comes back evenly within a time.

    What is more than all of it is taken where nothing else was: the holder owes the rest, and
    waits for longer. So nobody waits for ever.

    Args:
        most: how much a holder has at once.
        within_ms: how long it takes until all of that has come back.
        own: who is refused nothing: this node.
    """

    def __init__(self, most: int, within_ms: int, own: bytes = b"") -> None:
        self._most = most
        self._within_ms = within_ms
        self._own = own
        self._owed_until: dict[Hashable, int] = {}
        """When all has come back that each holder took, in milliseconds times `most`."""
        self._tidy_ms = 0

    def _owed(self, holder: Hashable, now_ms: int) -> int:
        return max(0, self._owed_until.get(holder, 0) - now_ms * self._most)

    def left(self, holder: Hashable, now_ms: int) -> int:
        """Return how much a holder may take now; less than nothing where it owes."""
        return self._most - units.ceil_div(self._owed(holder, now_ms), self._within_ms)

    def wait_ms(self, holder: Hashable, amount: int, now_ms: int) -> int:
        """Return how long a holder has to wait until it may take so much, 0 where it need not."""
        full = min(amount, self._most) * self._within_ms + self._owed(holder, now_ms)
        return max(0, units.ceil_div(full - self._most * self._within_ms, self._most))

    def note(self, holder: Hashable, amount: int, now_ms: int) -> None:
        """Note that a holder takes so much; `now_ms` is by a clock that never goes back."""
        if holder == self._own:
            return
        if now_ms >= self._tidy_ms:
            owed = self._owed_until.items()
            self._owed_until = {each: end for each, end in owed if end > now_ms * self._most}
            self._tidy_ms = now_ms + self._within_ms
        owed_until = now_ms * self._most + self._owed(holder, now_ms)
        self._owed_until[holder] = owed_until + amount * self._within_ms
