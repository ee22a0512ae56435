"""Counts the lines of the log: what was put, run and paid is counted where it is told."""

from __future__ import annotations

from collections import Counter
from threading import Lock
from typing import Final

from xsc.api.monitor import EventMeasures
from xsc.base.log import Log

SUMMED: Final = ("size_bytes", "fuel", "amount_micro", "duration_ms")
"""Fields of lines that are summed."""


class CountedLog:
    """Hands lines on to a log, and counts them by their names, whether they are written or not."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = Lock()
        self._lines = Counter[str]()
        self._sums = Counter[tuple[str, str]]()

    def info(self, event: str, **fields: object) -> None:
        """Count and hand on something that went as it should."""
        self._count(event, fields)
        self._log.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Count and hand on something that an operator may want to look at."""
        self._count(event, fields)
        self._log.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """Count and hand on something that an operator must look at."""
        self._count(event, fields)
        self._log.error(event, **fields)

    def _count(self, event: str, fields: dict[str, object]) -> None:
        with self._lock:  # threads of the executor write lines, too
            self._lines[event] += 1
            for name in SUMMED:
                value = fields.get(name)
                if isinstance(value, int):
                    self._sums[event, name] += value

    def counts(self) -> list[EventMeasures]:
        """Return what was counted, by name."""
        with self._lock:
            lines, sums = dict(self._lines), self._sums.copy()
        return [
            EventMeasures(event=event, lines=count, **{name: sums[event, name] for name in SUMMED})
            for event, count in sorted(lines.items())
        ]
