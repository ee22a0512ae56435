"""Services: names, versions, what a request costs, and what a receipt must say.

A deployment stands for an order of each request: its limits bound a request as
an order's bound a run, and a request is billed as a run is (`xsc.compute.jobs.receipts`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xsc.base.errors import (
    ArgumentInvalid,
    ExportUnknown,
    NotFound,
    RecordInvalid,
    TimeExceeded,
    TooLarge,
    XscError,
)
from xsc.base.limits import (
    ARGUMENT_BYTES_MAX,
    ENVIRONMENT_MAX,
    MODULE_BYTES_MAX,
    SERVICE_CONCURRENCY_MAX,
)
from xsc.compute.deployments.wagi import Response, is_reserved, read_answer
from xsc.compute.jobs.receipts import seed_of, time_fuel
from xsc.compute.wasm.inputs import RunInput, input_hash, output_hash
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.program import Program
from xsc.compute.wasm.sandbox import Job, SandboxResult, is_trap, trap_error
from xsc.compute.wasm.signature import Signature
from xsc.identity.envelope import Signed
from xsc.terms.deployment import Deployment, ServiceReceipt
from xsc.terms.execution import Observed, Outcome
from xsc.terms.pricing import compute_amount, run_steps

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
ENTRY = "_start"


def check_name(name: str) -> str:
    """Return a service's name.

    Raises:
        ArgumentInvalid: it is none.
    """
    if not _NAME.fullmatch(name):
        raise ArgumentInvalid(
            f"'{name[:80]}' is no name for a service",
            hint="1 to 63 small letters, digits and dashes, no dash at an end",
        )
    return name


def check_version(version: str) -> str:
    """Return a version's name.

    Raises:
        ArgumentInvalid: it is none.
    """
    if not _VERSION.fullmatch(version):
        raise ArgumentInvalid(
            f"'{version[:80]}' is no name for a version",
            hint="1 to 64 letters, digits, dots, dashes, underscores and plus signs",
        )
    return version


def check_environment(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the variables of a deployment, sorted.

    Raises:
        ArgumentInvalid: a name is malformed or belongs to the request.
        TooLarge: they leave no room for those of a request.
    """
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name + value:
            raise ArgumentInvalid(f"'{name[:60]}' is no variable that a program can be given")
        if is_reserved(name):
            raise ArgumentInvalid(
                f"the variable {name[:60]} is set by each request", hint="choose another name"
            )
    size = sum(len(name.encode()) + len(value.encode()) + 2 for name, value in environment.items())
    if len(environment) > ENVIRONMENT_MAX // 2 or size > ARGUMENT_BYTES_MAX // 2:
        raise TooLarge(
            f"the variables of a service are bounded to {ENVIRONMENT_MAX // 2}, "
            f"{ARGUMENT_BYTES_MAX // 2} bytes together"
        )
    return tuple(sorted(environment.items()))


def check_concurrency(concurrency: int) -> int:
    """Return how many requests may run at once.

    Raises:
        ArgumentInvalid: out of range.
    """
    if not 1 <= concurrency <= SERVICE_CONCURRENCY_MAX:
        raise ArgumentInvalid(
            f"the concurrency must be from 1 to {SERVICE_CONCURRENCY_MAX}, not {concurrency}"
        )
    return concurrency


def check_program(program: Program) -> None:
    """Return if a module can be a service.

    Raises:
        ExportUnknown: it is no WASI command.
    """
    if program.signature(ENTRY) != Signature((), ()):
        raise ExportUnknown("the module is no WASI command: its _start takes or gives values")


def check_received(record: Deployment) -> None:
    """Return if a peer's deployment is one that a node of this release would have signed.

    Raises:
        RecordInvalid: it is not.
    """
    try:
        sorted_environment = check_environment(dict(record.environment))
    except (ArgumentInvalid, TooLarge) as fault:
        raise RecordInvalid(f"the deployment is refused: {fault.message}") from None
    if sorted_environment != record.environment:
        raise RecordInvalid("the variables of the deployment are not sorted, or one is there twice")


def active_of(versions: Iterable[Signed[Deployment]]) -> Signed[Deployment]:
    """Return the deployment that holds: that of the highest generation."""
    return max(versions, key=lambda signed: signed.record.generation)


def first_generation(versions: Iterable[Signed[Deployment]]) -> int:
    """Return the lowest generation of a service."""
    return min(signed.record.generation for signed in versions)


def next_generation(versions: Iterable[Signed[Deployment]], now_ms: int) -> int:
    """Return a generation above all of a service, also of one that was removed before."""
    return max([now_ms, *(signed.record.generation + 1 for signed in versions)])


def next_version(versions: Iterable[str]) -> str:
    """Return a name for the next version where none is given: the next whole number."""
    numbers = [int(name) for name in versions if name.isdecimal()]
    return str(max(numbers, default=0) + 1)


def to_roll_back(
    name: str, versions: Mapping[str, Signed[Deployment]], to: str | None
) -> Signed[Deployment]:
    """Return the version to go back to: the named one, or what was active before.

    Raises:
        NotFound: there is none.
        ArgumentInvalid: it is the active one.
    """
    active = active_of(versions.values())
    others = [signed for signed in versions.values() if signed is not active]
    if to is None:
        if not others:
            raise NotFound(f"'{name}' has no other version than {active.record.version}")
        return active_of(others)
    if to == active.record.version:
        raise ArgumentInvalid(f"version {to} of '{name}' is the active one")
    if to not in versions:
        raise NotFound(
            f"'{name}' has no version '{to[:64]}'",
            hint=f"it has {', '.join(sorted(versions))}",
        )
    return versions[to]


def job_of(
    signed: Deployment, module: bytes, given: RunInput, *, nonce: bytes, clock_ms: int, queue: bytes
) -> Job:
    """Return the job for one request; `queue` is whom its place in the queue counts for."""
    return Job(
        module_hash=signed.module,
        module=module,
        mode="run",
        function=ENTRY,
        args=given.args,
        environment=given.environment,
        stdin=given.stdin,
        limits=limits_of(signed),
        seed=seed_of(nonce),
        clock_ms=clock_ms,
        customer=queue,
        service=True,
    )


def module_job(record: Deployment, module: bytes) -> Job:
    """Return a job that stands for the module alone, to be compiled."""
    return Job(record.module, module, "run", ENTRY, customer=record.owner)


def limits_of(record: Deployment) -> Limits:
    """Return the limits of one request."""
    return Limits(
        record.fuel_max, record.memory_bytes_max, record.timeout_ms, record.output_bytes_max
    )


@dataclass(frozen=True, slots=True)
class ServiceAnswer:
    """What the caller of a service is answered."""

    response: Response
    reason: str = ""
    """Why it is not what the program wrote."""


def fault_answer(status: int, reason: str, *, retry_after_s: int = 0) -> ServiceAnswer:
    """Return the answer that says in one sentence what went wrong."""
    headers = [("Content-Type", "text/plain; charset=utf-8")]
    if retry_after_s:
        headers.append(("Retry-After", str(retry_after_s)))
    return ServiceAnswer(Response(status, tuple(headers), f"{reason}\n".encode()), reason)


def answer_of(result: SandboxResult) -> ServiceAnswer:
    """Return what a run's output is to its caller."""
    if result.trap is not None:
        fault: XscError = trap_error(result.trap)
        status = 504 if isinstance(fault, TimeExceeded) else 502
        return fault_answer(status, f"the service failed: {fault.message} ({fault.code})")
    if result.exit_code:
        return fault_answer(502, f"the service failed: it exited with code {result.exit_code}")
    read = read_answer(result.stdout)
    if isinstance(read, str):
        return fault_answer(502, f"the service {read}")
    return ServiceAnswer(read)


def fuel_of(record: Deployment, result: SandboxResult) -> int:
    """Return the fuel of a request's run."""
    by_time = time_fuel(record, result.trap)
    return result.fuel_used if by_time is None else by_time


def steps_of(record: Deployment, fuel: int) -> int:
    """Return the fuel steps that a request is billed for whose run used that much fuel."""
    return run_steps(fuel, record.memory_bytes_max)


def make_receipt(
    signed: Signed[Deployment],
    given: RunInput,
    result: SandboxResult,
    *,
    lease_id: bytes,
    price: int,
    number: int,
    nonce: bytes,
    created_ms: int,
    wall_ms: int,
    status: int,
) -> ServiceReceipt:
    """Return the receipt for one request, to be signed by the node that ran it."""
    record = signed.record
    fuel_used = fuel_of(record, result)
    return ServiceReceipt(
        deployment=signed.raw,
        lease_id=lease_id,
        number=number,
        nonce=nonce,
        created_ms=created_ms,
        status=status,
        outcome=Outcome(
            module=record.module,
            mode="run",
            function=ENTRY,
            arguments=(),
            input=input_hash(given, record.output_bytes_max),
            results=(),
            output=output_hash(result.stdout, result.stderr, result.files),
            exit_code=result.exit_code,
            trap=result.trap,
            fuel_used=fuel_used,
            memory_peak_bytes=result.memory_peak_bytes,
            engine=result.engine,
            engine_config=result.engine_config,
        ),
        observed=Observed(
            started_ms=created_ms, wall_ms=wall_ms, saved_bytes=0, compiled_bytes=0, calls=0
        ),
        amount_micro=compute_amount(price, steps_of(record, fuel_used)),
    )


def check_receipt(deployment: Deployment, receipt: ServiceReceipt, price: int | None) -> str | None:
    """Return the first rule that a receipt breaks, or None.

    Args:
        deployment: what the receipt is over; both authors are the caller's to check.
        receipt: what the provider signed.
        price: the lease's price a Gfuel; None where it is not at hand.
    """
    told = receipt.outcome
    if (told.module, told.mode, told.function) != (deployment.module, "run", ENTRY):
        return "its outcome is of another run than the deployment allows"
    if told.arguments or told.results:
        return "a program's run has an exit code, and neither numbers nor results"
    if (told.trap is None) == (told.exit_code is None):
        return "a run has either an exit code or a trap"
    if told.trap is not None and not is_trap(told.trap):
        return f"it names a trap that does not exist ('{told.trap[:40]}')"
    if (told.trap is not None or told.exit_code) and receipt.status < 500:
        return "it says that a request was answered which failed"
    if told.fuel_used != (time_fuel(deployment, told.trap) or told.fuel_used):
        return "it was ended for its time, and bills another fuel than that time costs"
    if receipt.observed.saved_bytes or receipt.observed.compiled_bytes:
        return "it says that bytes were saved or compiled, and a request brings none"
    if told.fuel_used > deployment.fuel_max:
        return "it bills more fuel than the deployment allows"
    if told.memory_peak_bytes > deployment.memory_bytes_max:
        return "it reports more memory than the deployment allows"
    steps = steps_of(deployment, told.fuel_used)
    if price is not None and receipt.amount_micro != compute_amount(price, steps):
        return "its amount does not follow from the fuel and the lease's price"
    return None


def check_numbers(after: int, numbers: Sequence[int]) -> str | None:
    """Return what is wrong with the numbers of a page of receipts: none is billed twice."""
    for number in numbers:
        if number <= after:
            return "its numbers do not grow"
        after = number
    return None


def check_module_size(size_bytes: int) -> None:
    """Return if a module is within its bound.

    Raises:
        TooLarge: it is not.
    """
    if size_bytes > MODULE_BYTES_MAX:
        raise TooLarge(f"a module is bounded to {MODULE_BYTES_MAX} bytes")


def is_same_version(a: Deployment, b: Deployment) -> bool:
    """Say whether two deployments are the same version: all fields but the time of signing."""
    moment = {"generation": 1, "created_ms": 0}
    return a.model_copy(update=moment) == b.model_copy(update=moment)
