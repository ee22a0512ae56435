"""Counts what a peer may do so often within a time, where that cannot be billed."""

from __future__ import annotations

from collections import deque
from typing import Final

from xsc.base.errors import RateLimited
from xsc.base.units import ceil_div

_SLOTS: Final = 60


class Tally:
    """What each peer did, not longer ago than it counts.

    Args:
        most: how often a peer may do it.
        within_ms: within this time.
        own: who is refused nothing: this node.
    """

    def __init__(self, most: int, within_ms: int, own: bytes = b"") -> None:
        self._most = most
        self._within_ms = within_ms
        self._own = own
        self._times: dict[bytes, deque[int]] = {}

    def note(self, peer: bytes, now_ms: int, *, times: int = 1) -> None:
        """Note that a peer did it once more, or so many times.

        Args:
            peer: who.
            now_ms: by a clock that never goes back.
            times: how often: at least once, at most as often as it may.
        """
        since_ms = now_ms - self._within_ms
        for known in [each for each, noted in self._times.items() if noted[-1] < since_ms]:
            del self._times[known]
        if peer != self._own:
            self._times.setdefault(peer, deque(maxlen=self._most)).extend([now_ms] * times)

    def count(self, peer: bytes, now_ms: int, what: str, *, times: int = 1) -> None:
        """Note that a peer does it once more, or so many times: all of them or none.

        Raises:
            RateLimited: it has done it too often; the hint says for how long.
        """
        if wait_ms := self.wait_ms(peer, now_ms, times=times):
            raise RateLimited(
                f"more than {self._most} {what} within {self._within_ms // 1000} s",
                retry_after_s=ceil_div(wait_ms, 1000),
            )
        self.note(peer, now_ms, times=times)

    def wait_ms(self, peer: bytes, now_ms: int, *, times: int = 1) -> int:
        """Return how long a peer has to wait until it may do it so often, 0 where it need not."""
        noted = self._times.get(peer, ())
        over = len(noted) + times - self._most
        return max(0, noted[over - 1] + self._within_ms - now_ms) if over > 0 else 0


class TimeShare:
    """How much time each customer took, within a time that moves on by a sixtieth of itself.

    Args:
        most_ms: how much a customer may take.
        within_ms: within this time.
        own: the customer that is refused nothing: this node.
    """

    def __init__(self, most_ms: int, within_ms: int, own: bytes = b"") -> None:
        self._most_ms = most_ms
        self._slot_ms = max(1, within_ms // _SLOTS)
        self._own = own
        self._taken: dict[bytes, dict[int, int]] = {}
        """Of each customer, what it took in each slot, the oldest first."""

    def note(self, customer: bytes, took_ms: int, now_ms: int) -> None:
        """Note that a customer took so much; `now_ms` is by a clock that never goes back."""
        now = now_ms // self._slot_ms
        for known in [each for each, slots in self._taken.items() if max(slots) <= now - _SLOTS]:
            del self._taken[known]
        if customer != self._own:
            slots = self._taken.setdefault(customer, {})
            for over in [slot for slot in slots if slot <= now - _SLOTS]:
                del slots[over]
            slots[now] = slots.get(now, 0) + took_ms

    def wait_ms(self, customer: bytes, now_ms: int) -> int:
        """Return how long a customer has to wait until it may take more, 0 where it need not."""
        now = now_ms // self._slot_ms
        slots = self._taken.get(customer, {})
        left_ms = sum(took for slot, took in slots.items() if slot > now - _SLOTS)
        for slot in sorted(slots):
            if left_ms < self._most_ms:
                return 0
            left_ms -= slots[slot] if slot > now - _SLOTS else 0
            if left_ms < self._most_ms:
                return (slot + _SLOTS) * self._slot_ms - now_ms
        return 0
