"""What a second run of an order says about the receipt for the first.

A run is a function of its order, module and input, so that whoever has these
three can run it again and hold every bit of the receipt's outcome against what
comes of it. Where that would say nothing, no verdict is made up: with another
engine or configuration fuel is another number, and what was ended for its time
was ended by the provider's machine. A receipt is then neither right nor wrong.

The second run may take TIMEOUT_MS_MAX, whatever the order allows: time is no
part of an outcome, and a slower machine must not accuse a faster one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from xsc.base.limits import TIMEOUT_MS_MAX
from xsc.compute.jobs.receipts import TIME_TRAPS, given_hash, job_of
from xsc.compute.wasm import rows as batch
from xsc.compute.wasm.inputs import RunInput
from xsc.compute.wasm.rows import ResultRow, ResultTable, Shape
from xsc.compute.wasm.sandbox import Job, SandboxResult, is_trap
from xsc.terms.execution import Order, Outcome

Verdict = Literal["agrees", "differs", "cannot_tell"]
_CUTS_TRIED_MAX = 16
"""Places at which time could have ended a batch with the fuel that it bills."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the second run says of the first."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    """What differs, one sentence each; or the one reason why nothing can be told."""


AGREES = Judgement("agrees")


def why_not(order: Order, told: Outcome, engine: str, engine_config: bytes) -> str | None:
    """Return why a second run on that engine could say nothing, or None."""
    if order.grants:
        return f"the program saw what no second run sees again: {' and '.join(order.grants)}"
    if told.engine != engine:
        return f"it was run by {told.engine[:60]}, and this is {engine}"
    if told.engine_config != engine_config:
        return (
            f"the engine was configured otherwise ({told.engine_config.hex()[:16]}, "
            f"here {engine_config.hex()[:16]})"
        )
    if told.trap in TIME_TRAPS:
        return f"it was ended for its time ({told.trap}), which no second run need repeat"
    return None


def replay_job(order: Order, module: bytes, given: RunInput, output_bytes: int) -> Job:
    """Return the job of the second run; module and input must be those of the order."""
    job = job_of(order, module, given, output_bytes)
    return replace(job, limits=replace(job.limits, timeout_ms=TIMEOUT_MS_MAX))


def judge(
    order: Order, told: Outcome, again: SandboxResult, given: RunInput, results: Sequence[str] = ()
) -> Judgement:
    """Hold a receipt's outcome against what a second run of the same order gave.

    Args:
        order: what was asked for.
        told: what the receipt says came of it.
        again: what the second run gave.
        given: what both runs were given.
        results: the result types of the function of a batch.
    """
    if again.trap in TIME_TRAPS:
        return Judgement("cannot_tell", (f"the second run was ended for its time ({again.trap})",))
    numbers = tuple((number.type, number.bits) for number in told.results)
    output = given_hash(order.mode, again.stdout, again.stderr, again.files)
    pairs: list[tuple[str, object, object]] = [
        ("trap", told.trap, again.trap),
        ("exit code", told.exit_code, again.exit_code),
        ("results", _bits(numbers), _bits(again.results)),
        ("output", told.output.hex(), output.hex()),
        ("fuel", told.fuel_used, again.fuel_used),
        ("memory", told.memory_peak_bytes, again.memory_peak_bytes),
    ]
    faults = tuple(
        f"{what}: the receipt says {_shown(said)}, the second run gave {_shown(found)}"
        for what, said, found in pairs
        if said != found
    )
    if not faults:
        return AGREES
    if order.mode == "batch" and told.trap is None and again.trap is None:
        cut = _cut(order, told, again, batch.shape_of(given.args), results)
        if cut is not None:
            reason = "which no second run need repeat; the calls before it agree"
            return Judgement("cannot_tell", (f"its time ended it at call {cut + 1}, {reason}",))
    return Judgement("differs", faults)


def _bits(numbers: Sequence[tuple[str, bytes]]) -> str:
    """Return numbers by their raw bits, for people."""
    return " ".join(f"{kind}:{bits[::-1].hex()}" for kind, bits in numbers)


def _shown(value: object) -> str:
    return "none" if value in (None, "") else str(value)


def _cut(
    order: Order, told: Outcome, again: SandboxResult, shape: Shape, results: Sequence[str]
) -> int | None:
    """Return the call at which time could have ended a batch, all before it being equal."""
    rows, _ = batch.read_rows(
        shape,
        results,
        again.stdout,
        again.stderr,
        fuel=order.fuel_max,
        timeout_ms=TIMEOUT_MS_MAX,
        is_trap=is_trap,
    )
    before, tried = 0, 0
    for index, row in enumerate(rows):
        late = batch.late_fuel(min(shape.fuel, order.fuel_max - before), order.timeout_ms)
        if before + late == told.fuel_used and tried < _CUTS_TRIED_MAX:
            tried += 1
            made = ResultTable(results)
            for earlier in rows[:index]:
                made.add(earlier)
            made.add(ResultRow((), "time_exceeded", late))
            made.add(ResultRow((), "time_exceeded", 0), times=shape.count - index - 1)
            if batch.batch_output(*made.tables()) == told.output:
                return index
        before += row.fuel_used
    return None
