"""Which functions run quickly: their orders may share a request to the same provider.

Orders that share a request are answered together, so that a long one would hold up the
others. What a function used the last time decides, and a provider that is asked by a
shared request answers `job_unfinished` after PATIENCE_MS; then the order, which is run
once however often it comes, is asked for again by itself.
"""

from __future__ import annotations

from typing import Literal

from xsc.base.bounded import Bounded
from xsc.base.limits import FUNCTIONS_REMEMBERED_MAX, MILLISECOND_FUEL

QUICK_FUEL = MILLISECOND_FUEL
"""A function that used at most so much is taken to be quick: fuel is the same on a busy machine."""
PATIENCE_MS = 100
"""How long a shared request waits for one order."""
QUICK_MS = PATIENCE_MS // 2
"""A run that took longer was not quick, whatever it used."""


class Quick:
    """What is known of functions, each by its module's hash and its name."""

    def __init__(self) -> None:
        self._known: Bounded[tuple[bytes, str], Literal[True]] = Bounded(FUNCTIONS_REMEMBERED_MAX)

    def __contains__(self, function: tuple[bytes, str]) -> bool:
        """Say whether a function was quick the last time; one that is not known was not."""
        return function in self._known

    def took(self, function: tuple[bytes, str], fuel: int, wall_ms: int) -> None:
        """Take note of a run."""
        if fuel > QUICK_FUEL or wall_ms > QUICK_MS:
            self.failed(function)
            return
        if self._known.get(function) is None:
            self._known.put(function, True)

    def failed(self, function: tuple[bytes, str]) -> None:
        """Take note of a run that was not answered in a shared request."""
        self._known.pop(function)
