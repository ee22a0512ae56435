"""Counts the lines of the log, and keeps the last: what was put, run and paid is told there."""

from __future__ import annotations

from collections import Counter, deque
from threading import Lock
from typing import Final, NamedTuple

from xsc.api.monitor import EventMeasures
from xsc.base.clock import Clock
from xsc.base.log import Log

SUMMED: Final = ("size_bytes", "fuel", "amount_micro", "duration_ms")
"""Fields of lines that are summed."""
LINES_KEPT: Final = 100


class Line(NamedTuple):
    """A line of the log, with its fields as they were reported."""

    at_ms: int
    level: str
    event: str
    fields: dict[str, object]


class CountedLog:
    """Hands lines on to a log, and counts them by their names, whether they are written or not."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._lock = Lock()
        self._lines = Counter[str]()
        self._sums = Counter[tuple[str, str]]()
        self._last = deque[Line](maxlen=LINES_KEPT)

    def info(self, event: str, **fields: object) -> None:
        """Count and hand on something that went as it should."""
        self._count("info", event, fields)
        self._log.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Count and hand on something that an operator may want to look at."""
        self._count("warning", event, fields)
        self._log.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """Count and hand on something that an operator must look at."""
        self._count("error", event, fields)
        self._log.error(event, **fields)

    def _count(self, level: str, event: str, fields: dict[str, object]) -> None:
        with self._lock:  # threads of the executor write lines, too
            self._last.append(Line(self._clock.now_ms(), level, event, fields))
            self._lines[event] += 1
            for name in SUMMED:
                value = fields.get(name)
                if isinstance(value, int):
                    self._sums[event, name] += value

    def total(self) -> int:
        """Return how many lines there were."""
        with self._lock:
            return self._lines.total()

    def last(self) -> list[Line]:
        """Return the last lines, the newest last."""
        with self._lock:
            return list(self._last)

    def counts(self) -> list[EventMeasures]:
        """Return what was counted, by name."""
        with self._lock:
            lines, sums = dict(self._lines), self._sums.copy()
        return [
            EventMeasures(event=event, lines=count, **{name: sums[event, name] for name in SUMMED})
            for event, count in sorted(lines.items())
        ]
