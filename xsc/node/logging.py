"""Log lines on standard error: JSON objects of a node, text at a terminal, sentences of a command.

Fields never hold secrets, capabilities or names of objects; the writer drops
any field by such a name so that a slip does not reach the disk.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO

from xsc.base import units
from xsc.base.clock import Clock
from xsc.base.ids import short

LOG_LINES_MAX = 120
"""Log lines a minute of one event about one peer; the next one says how many were dropped."""
LOG_KINDS_MAX = 4_096
"""Kinds of lines that are counted apart within a minute."""

LEVELS = ("debug", "info", "warning", "error")
_SECRET = frozenset({"capability", "secret", "token", "passphrase", "name_of_object", "key"})


_REASONS = ("reason", "fault", "code")


def without_secrets(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a line as they are told: no secrets, and ids in their short form."""
    return {
        key: short(value) if isinstance(value, bytes) else value
        for key, value in fields.items()
        if key not in _SECRET
    }


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
        told = without_secrets(fields)
        if more:
            told["dropped"] = more
        text = self._text(now_ms, level, event, told)
        # A full disk must not end what was about to be told; what is held is written with the next.
        with self._lock, suppress(OSError):
            self._stream.write(text + "\n")
            self._stream.flush()

    def _text(self, now_ms: int, level: str, event: str, fields: dict[str, object]) -> str:
        moment = datetime.fromtimestamp(now_ms / 1000, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": level,
            "event": event,
            **fields,
        }
        return json.dumps(line, default=str, ensure_ascii=False)


class TextLog(JsonLog):
    """Writes events as text, for people who watch a node at a terminal."""

    def _text(self, now_ms: int, level: str, event: str, fields: dict[str, object]) -> str:
        about = sentence(level, event, fields).removeprefix("info: ")
        return f"{units.format_time(now_ms)} {about}"


def node_log(clock: Clock, level: str, stream: TextIO) -> JsonLog:
    """Return the log of a node: text where the stream is a terminal, JSON else."""
    return (TextLog if stream.isatty() else JsonLog)(clock, level, stream)


class SentenceLog(JsonLog):
    """Writes warnings and errors as sentences, for commands at a terminal."""

    def __init__(self, clock: Clock, stream: TextIO | None = None) -> None:
        super().__init__(clock, "warning", stream)

    def warning(self, event: str, **fields: object) -> None:
        """Report something, but not that a peer is silent: a command names those at its end."""
        if fields.get("code") != "peer_silent":
            super().warning(event, **fields)

    def _text(self, now_ms: int, level: str, event: str, fields: dict[str, object]) -> str:  # noqa: ARG002
        return sentence(level, event, fields)


def readable(key: str, value: object) -> str:
    """Return a field for people: what its name says of the unit stands behind the number."""
    words = key.replace("_", " ")
    if not isinstance(value, int):
        return f"{words} {value}"
    name, _, unit = words.rpartition(" ")
    match unit:
        case "bytes":
            return f"{name} {units.format_size(value)}"
        case "ms":
            return f"{name} {value} ms"
        case "micro":
            return f"{name} {units.format_credits(value)} credits"
        case "ppm":
            return f"{name} {units.format_share(value)}"
    return f"{words} {value}"


def sentence(level: str, event: str, fields: Mapping[str, object]) -> str:
    """Return an event as a line for people, without characters that steer a terminal."""
    what = re.sub("[._]", " ", event)
    peer = fields.get("peer")
    about = "" if peer is None else f" (peer {peer})"
    rest = [
        str(value) if key in _REASONS else readable(key, value)
        for key, value in fields.items()
        if key != "peer" and value is not None and value != ""
    ]
    text = f"{level}: {what}{about}" + (f": {', '.join(rest)}" if rest else "")
    return "".join(char if char.isprintable() else "?" for char in text)
