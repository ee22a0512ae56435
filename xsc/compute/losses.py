"""Whose runs ended with their worker: starting another takes far more than such a run pays.

A run that is cancelled, or that must be killed because it does not end, is billed for its time,
which may be a millisecond; the next worker takes 200 of processor time to start. Nothing of
that can be billed, because no order says that it has fuel for it. So a customer may lose so
many workers within a minute, and is then refused until the first of them is a minute past.
"""

from __future__ import annotations

from collections import deque

from xsc.base.limits import WORKERS_LOST_A_PEER_MAX, WORKERS_LOST_MS


class Losses:
    """Counts lost workers, by customer.

    Args:
        own: the customer that is refused nothing: this node.
    """

    def __init__(self, own: bytes = b"") -> None:
        self._own = own
        self._lost: dict[bytes, deque[int]] = {}

    def note(self, customer: bytes, now_ms: int) -> None:
        """Note that a worker ended with a run of this customer.

        Args:
            customer: who ordered the run.
            now_ms: by a clock that never goes back.
        """
        for known in [
            each for each in self._lost if self._lost[each][-1] + WORKERS_LOST_MS < now_ms
        ]:
            del self._lost[known]
        if customer != self._own:
            times = self._lost.setdefault(customer, deque(maxlen=WORKERS_LOST_A_PEER_MAX))
            times.append(now_ms)

    def wait_ms(self, customer: bytes, now_ms: int) -> int:
        """Return how long a customer has to wait until its next run, 0 where it need not."""
        times = self._lost.get(customer)
        if times is None or len(times) < WORKERS_LOST_A_PEER_MAX:
            return 0
        return max(0, times[0] + WORKERS_LOST_MS - now_ms)
