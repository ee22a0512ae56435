"""How often a program may write: as often as it likes, up to so many times an hour.

Beyond that it backs off, each pause twice the last, so that programs that feed each other do
not keep two nodes busy for ever (docs/design/programs.md, M6).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from xsc.programs.limits import BACK_OFF_MS, BACK_OFF_MS_MAX, PUBLICATIONS_AN_HOUR_MAX

HOUR_MS = 3_600_000


@dataclass(slots=True)
class Pace:
    """The writes of one program within the last hour. Times are of a clock that never goes back."""

    _written_ms: deque[int] = field(default_factory=lambda: deque(maxlen=PUBLICATIONS_AN_HOUR_MAX))
    _doublings: int = 0

    def pause_ms(self, now_ms: int) -> int:
        """Return how long the program must still wait for its next frame."""
        written = self._written_ms
        if len(written) < PUBLICATIONS_AN_HOUR_MAX or written[0] <= now_ms - HOUR_MS:
            self._doublings = 0
            return 0
        pause_ms = min(BACK_OFF_MS << self._doublings, BACK_OFF_MS_MAX)
        return max(0, written[-1] + pause_ms - now_ms)

    def wrote(self, now_ms: int) -> None:
        """Count a write."""
        written = self._written_ms
        full = len(written) == PUBLICATIONS_AN_HOUR_MAX
        if full and written[0] > now_ms - HOUR_MS:
            self._doublings = min(self._doublings + 1, 20)
        written.append(now_ms)
