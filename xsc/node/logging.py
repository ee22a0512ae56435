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

LEVELS = ("debug", "info", "warning", "error")
_SECRET = frozenset({"capability", "secret", "token", "passphrase", "name_of_object", "key"})


class JsonLog:
    """Writes events of at least a level as JSON lines."""

    def __init__(self, clock: Clock, level: str = "info", stream: TextIO | None = None) -> None:
        self._clock = clock
        self._least = LEVELS.index(level)
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()

    def info(self, event: str, **fields: object) -> None:
        """Report something that went as it should."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Report something that an operator may want to look at."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Report something that an operator must look at."""
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if LEVELS.index(level) < self._least:
            return
        moment = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": level,
            "event": event,
        }
        for key, value in fields.items():
            if key not in _SECRET:
                line[key] = short(value) if isinstance(value, bytes) else value
        text = json.dumps(line, default=str, ensure_ascii=False)
        with self._lock:
            self._stream.write(text + "\n")
            self._stream.flush()
