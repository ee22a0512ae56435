"""Whether a peer is up, by the probes of this run.

The *state* says which peers to ask now. A peer is *absent* if no window that counts found it,
neither by itself nor through others. How far to rely on a peer is in `xsc.health.score`.

This module only counts. `xsc.health.service` sends the probes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from xsc.health.schedule import timeout_ms

RESPONSES_KEPT = 200
"""Answers of a peer in this run whose mean time is expected of the next."""
MISSES_TO_DOWN = 2
"""Probes missed in a row after which a peer is down; before that it is suspect."""
WINDOWS_TO_ABSENT = 4
"""Windows in a row that count and did not find a peer, after which it is absent."""

State: TypeAlias = Literal["unknown", "up", "suspect", "down"]


@dataclass(slots=True)
class _History:
    times: deque[int] = field(default_factory=lambda: deque(maxlen=RESPONSES_KEPT))
    run_misses: int | None = None
    """Misses in a row in this run; None before its first probe."""
    up: bool = False
    unfound: int = 0
    """Windows in a row that count and did not find it."""
    found: bool = False
    """Whether the last of them that missed it found it through others."""


def state_after(misses_in_row: int | None) -> State:
    """Return the state after so many misses in a row; None: no probe yet."""
    if misses_in_row is None:
        return "unknown"
    if misses_in_row == 0:
        return "up"
    return "down" if misses_in_row >= MISSES_TO_DOWN else "suspect"


class AvailabilityTester:
    """What the probes of this run found of each peer."""

    def __init__(self) -> None:
        self._histories: dict[bytes, _History] = {}

    def record_result(self, node_id: bytes, available: bool, response_ms: int) -> bool | None:
        """Take a probe; return whether the peer is up now if that changed, or None.

        A peer comes up with an answer and goes down with MISSES_TO_DOWN misses
        in a row: one lost message takes nobody down.
        """
        history = self._histories.setdefault(node_id, _History())
        if available:
            history.times.append(response_ms)
            history.run_misses = history.unfound = 0
            history.found = False
        else:
            history.run_misses = (history.run_misses or 0) + 1
        before, state = history.up, state_after(history.run_misses)
        if state == "suspect":
            return None
        history.up = state == "up"
        return history.up if history.up != before else None

    def record_unfound(self, node_id: bytes) -> bool:
        """Take a window that counts, in which nobody found a peer; return whether it is absent."""
        history = self._histories.setdefault(node_id, _History())
        history.unfound += 1
        history.found = False
        return self.is_absent(node_id)

    def record_found(self, node_id: bytes) -> bool:
        """Take a pong that another brought; return whether the peer was absent until now."""
        absent = self.is_absent(node_id)
        history = self._histories.setdefault(node_id, _History())
        history.unfound = 0
        history.found = True
        return absent

    def response_ms(self, node_id: bytes) -> int:
        """Return the mean time of the last answers in this run; 0 before the first."""
        times = self._histories.get(node_id, _History()).times
        return sum(times) // len(times) if times else 0

    def state(self, node_id: bytes) -> State:
        """Return the peer's state; unknown before the first probe of this run."""
        return state_after(self._histories.get(node_id, _History()).run_misses)

    def is_up(self, node_id: bytes) -> bool:
        """Return whether the peer answered in this run and has not gone down since."""
        history = self._histories.get(node_id)
        return history is not None and history.up

    def is_found(self, node_id: bytes) -> bool:
        """Return whether a peer is silent here, and others brought a pong of it last."""
        return self._histories.get(node_id, _History()).found

    def is_absent(self, node_id: bytes) -> bool:
        """Return whether nobody has found the peer for WINDOWS_TO_ABSENT windows that count."""
        return self._histories.get(node_id, _History()).unfound >= WINDOWS_TO_ABSENT

    def timeout_ms(self, node_id: bytes, most_ms: int) -> int:
        """Return how long to wait for the next answer of a peer; at most so long."""
        history = self._histories.get(node_id, _History())
        return timeout_ms(history.times, history.run_misses or 0, most_ms)

    def forget(self, node_id: bytes) -> None:
        """Drop everything about a peer."""
        self._histories.pop(node_id, None)
