"""Remembers which functions run quickly: their orders may share a request to a provider.

Orders of one request are answered together, so a long one would delay the others. A function
is quick if its last run was. If it then runs long, the provider answers the shared request with
`job_unfinished` after PATIENCE_MS, and the customer sends the order again alone; the provider
still runs it only once.
"""

from __future__ import annotations

from typing import Literal

from xsc.base.bounded import Bounded
from xsc.base.limits import MILLISECOND_FUEL

FUNCTIONS_REMEMBERED_MAX = 1_024
"""Functions of which a customer knows that they are quick."""

QUICK_FUEL = MILLISECOND_FUEL
"""Most fuel of a quick run. Unlike time, fuel does not depend on the machine's load."""
PATIENCE_MS = 100
"""How long a shared request waits for each order."""
QUICK_MS = PATIENCE_MS // 2
"""Most time of a quick run, whatever fuel it used."""


class QuickFunctions:
    """Functions whose last run was quick, each by its module's hash and its name."""

    def __init__(self) -> None:
        self._known: Bounded[tuple[bytes, str], Literal[True]] = Bounded(FUNCTIONS_REMEMBERED_MAX)

    def __contains__(self, function: tuple[bytes, str]) -> bool:
        """Say whether the last run of a function was quick; False for an unknown function."""
        return function in self._known

    def took(self, function: tuple[bytes, str], fuel: int, wall_ms: int) -> None:
        """Record a run."""
        if fuel > QUICK_FUEL or wall_ms > QUICK_MS:
            self.failed(function)
            return
        if self._known.get(function) is None:
            self._known.put(function, True)

    def failed(self, function: tuple[bytes, str]) -> None:
        """Record a run that was too long for a shared request."""
        self._known.pop(function)
