"""How much one run may use: every run has every limit.

The bounds of the limits are in `xsc.base.limits`; who pays for them is decided
in `xsc.compute.jobs.receipts`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xsc.base import errors, limits
from xsc.terms.pricing import run_steps

_MOST = {
    "fuel": limits.FUEL_MAX,
    "memory_bytes": limits.MEMORY_BYTES_MAX,
    "timeout_ms": limits.TIMEOUT_MS_MAX,
    "output_bytes": limits.OUTPUT_BYTES_MAX,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one run, each from 1 to its bound.

    Raises:
        ArgumentInvalid: a limit is out of its range.
    """

    fuel: int = limits.FUEL_DEFAULT
    """Units of fuel, about one an instruction; host calls are charged as well."""
    memory_bytes: int = limits.MEMORY_BYTES_DEFAULT
    """Linear memory; whole pages of 64 KiB are given out, rounded down."""
    timeout_ms: int = limits.TIMEOUT_MS_DEFAULT
    """Wall time of the run; compiling has a bound of its own."""
    output_bytes: int = limits.OUTPUT_BYTES_MAX
    """Standard output, standard error and output files, together."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                value = getattr(self, name)
                raise errors.ArgumentInvalid(f"{name} must be from 1 to {most}, not {value}")

    @property
    def steps(self) -> int:
        """The fuel steps that a lease must have room for, but for compiling the module."""
        return run_steps(self.fuel, self.memory_bytes)


def limits_of(asked: object, defaults: Limits) -> Limits:
    """Return the limits that a job or a service asks for, the defaults where it names none.

    Raises:
        ArgumentInvalid: one is out of its range.
    """
    named = {name: getattr(asked, name, None) for name in _MOST}
    return replace(defaults, **{name: most for name, most in named.items() if most is not None})
