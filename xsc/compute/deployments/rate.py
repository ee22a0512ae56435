"""At which rate a service runs: what its owner needs of compute by default follows from it."""

from __future__ import annotations

from collections import Counter
from typing import Final

from xsc.base.limits import COMPUTE_LEASE_MS, SERVICE_RATE_MS
from xsc.base.units import ceil_div
from xsc.compute.deployments import rules
from xsc.compute.wasm.limits import Limits
from xsc.terms.deployment import Deployment

_MINUTE_MS: Final = 60_000


class RunRate:
    """Counts the fuel steps that requests of a service took, by minutes."""

    def __init__(self) -> None:
        self._ran = Counter[int]()

    def note(self, steps: int, now_ms: int) -> None:
        """Count a request that was paid now."""
        self._ran[now_ms // _MINUTE_MS] += steps
        for minute in [each for each in self._ran if each <= _before(now_ms)]:
            del self._ran[minute]

    def a_second(self, now_ms: int) -> int:
        """Return the fuel steps a second over the last SERVICE_RATE_MS."""
        steps = sum(ran for minute, ran in self._ran.items() if minute > _before(now_ms))
        return ceil_div(steps * 1_000, SERVICE_RATE_MS)


def _before(now_ms: int) -> int:
    return (now_ms - SERVICE_RATE_MS) // _MINUTE_MS


def least(record: Deployment) -> int:
    """Return the fuel steps a second with which a request fits into a minute of a rate.

    Of a request that may use more than one of the default limits, only so much: it can run without.
    """
    steps = min(rules.steps_of(record, record.fuel_max), Limits().steps)
    return ceil_div(steps * 1_000, COMPUTE_LEASE_MS)
