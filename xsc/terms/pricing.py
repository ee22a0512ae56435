"""What a use costs: the one arithmetic that market and compute must agree on.

Prices are micro-credits a quantum (`xsc.terms.quote`). A quantum of storage is
one MiB for one epoch; a quantum of compute is FUEL_QUANTUM fuel steps, and a
fuel step is one unit of fuel for each begun MEMORY_STEP_BYTES of the memory
*limit*: memory is paid as it was asked for, so that a bill needs no clock. A run is
billed for its fuel, for RUN_FUEL, for compiling what it brought and for the calls of a
batch (`run_steps`).
Amounts are rounded down, once, at the end: what is lost is less than a micro-credit,
and RUN_FUEL alone costs as many as the price says.
"""

from __future__ import annotations

from xsc.base.limits import (
    BATCH_CALL_FUEL,
    COMPILE_BYTE_FUEL,
    FUEL_QUANTUM,
    MEMORY_STEP_BYTES,
    MIB,
    RUN_FUEL,
)
from xsc.base.units import ceil_div


def memory_steps(memory_bytes: int) -> int:
    """Return the begun memory steps of a memory limit, at least one."""
    return max(1, ceil_div(memory_bytes, MEMORY_STEP_BYTES))


def fuel_steps(fuel: int, memory_bytes: int) -> int:
    """Return the fuel steps of that much fuel under that memory limit."""
    return fuel * memory_steps(memory_bytes)


def run_steps(fuel: int, memory_bytes: int, compiled_bytes: int = 0, calls: int = 0) -> int:
    """Return the fuel steps that a run is billed for, or at most, where these are the limits.

    Args:
        fuel: that the program used.
        memory_bytes: the memory limit.
        compiled_bytes: the size of the module, where the run brought it to be compiled.
        calls: of a batch.
    """
    beside = RUN_FUEL + compiled_bytes * COMPILE_BYTE_FUEL + calls * BATCH_CALL_FUEL
    return fuel_steps(fuel + beside, memory_bytes)


def compute_amount(price: int, steps: int) -> int:
    """Return the micro-credits for fuel steps at a price a quantum."""
    return price * steps // FUEL_QUANTUM


def storage_amount(price: int, byte_epochs: int) -> int:
    """Return the micro-credits for byte-epochs at a price a quantum (MiB and epoch)."""
    return price * byte_epochs // MIB
