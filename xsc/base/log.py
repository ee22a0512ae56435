"""The log port: one structured line an event.

Services report what they did or met through it; what becomes of the lines is
the node's choice (`xsc.node.logging`).
"""

from __future__ import annotations

from typing import Protocol


class Log(Protocol):
    """Takes events with their fields; never secrets, capabilities or object names."""

    def info(self, event: str, **fields: object) -> None:
        """Report something that went as it should."""

    def warning(self, event: str, **fields: object) -> None:
        """Report something that an operator may want to look at."""

    def error(self, event: str, **fields: object) -> None:
        """Report something that an operator must look at."""


class SilentLog:
    """Drops every event."""

    def info(self, event: str, **fields: object) -> None:
        """Drop it."""

    def warning(self, event: str, **fields: object) -> None:
        """Drop it."""

    def error(self, event: str, **fields: object) -> None:
        """Drop it."""
