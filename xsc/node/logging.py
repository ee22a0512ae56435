"""Structured log lines: one JSON object a line, on standard error.

Fields never hold secrets, capabilities or names of objects; the writer drops
any field by such a name so that a slip does not reach the disk.
"""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime
from typing import TextIO

from xsc.base.clock import Clock
from xsc.base.ids import short
from xsc.base.limits import LOG_KINDS_MAX, LOG_LINES_MAX

LEVELS = ("debug", "info", "warning", "error")
_SECRET = frozenset({"capability", "secret", "token", "passphrase", "name_of_object", "key"})


class JsonLog:
    """Writes events of at least a level as JSON lines."""

    def __init__(self, clock: Clock, level: str = "info", stream: TextIO | None = None) -> None:
        self._clock = clock
        self._least = LEVELS.index(level)
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()
        self._written: dict[tuple[str, object], int] = {}
        """Lines of this minute, by event and peer."""
        self._minute = 0

    def info(self, event: str, **fields: object) -> None:
        """Report something that went as it should."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Report something that an operator may want to look at."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Report something that an operator must look at."""
        self._write("error", event, fields)

    def _count(self, event: str, peer: object, minute: int) -> int | None:
        """Count a line; return how many like it were dropped before, or None to drop this one.

        A peer causes lines by its requests: it is not to fill the disk with them.
        """
        with self._lock:
            if minute != self._minute or len(self._written) > LOG_KINDS_MAX:
                self._minute = minute
                over = {key: n - LOG_LINES_MAX for key, n in self._written.items()}
                self._written = {key: -n for key, n in over.items() if n > 0}
            key = (event, peer)
            count = self._written.get(key, 0)
            dropped = -count if count < 0 else 0
            count = max(count, 0) + 1
            self._written[key] = count
            return dropped if count <= LOG_LINES_MAX else None

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if LEVELS.index(level) < self._least:
            return
        now_ms = self._clock.now_ms()
        more = self._count(event, fields.get("peer") or fields.get("customer"), now_ms // 60_000)
        if more is None:
            return
        moment = datetime.fromtimestamp(now_ms / 1000, UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": level,
            "event": event,
        }
        for key, value in fields.items():
            if key not in _SECRET:
                line[key] = short(value) if isinstance(value, bytes) else value
        if more:
            line["dropped"] = more
        text = json.dumps(line, default=str, ensure_ascii=False)
        with self._lock:
            self._stream.write(text + "\n")
            self._stream.flush()
