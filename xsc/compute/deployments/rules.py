"""Services: names, versions, and what a caller is answered.

A deployment stands for an order of each request, which is billed as one
(`xsc.compute.jobs.receipts`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from xsc.base import errors, limits
from xsc.compute.deployments.wagi import Response, is_reserved, read_answer
from xsc.compute.jobs.receipts import ENTRY
from xsc.compute.wasm import sandbox, signature
from xsc.compute.wasm.program import Program
from xsc.identity.envelope import Signed
from xsc.terms import execution, pricing
from xsc.terms.deployment import Deployment

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def check_name(name: str) -> str:
    """Return a service's name.

    Raises:
        ArgumentInvalid: it is none.
    """
    if not _NAME.fullmatch(name):
        raise errors.ArgumentInvalid(
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
        raise errors.ArgumentInvalid(
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
            raise errors.ArgumentInvalid(
                f"'{name[:60]}' is no variable that a program can be given"
            )
        if is_reserved(name):
            raise errors.ArgumentInvalid(
                f"the variable {name[:60]} is set by each request", hint="choose another name"
            )
    size = sum(len(name.encode()) + len(value.encode()) + 2 for name, value in environment.items())
    if len(environment) > limits.ENVIRONMENT_MAX // 2 or size > limits.ARGUMENT_BYTES_MAX // 2:
        raise errors.TooLarge(
            f"the variables of a service are bounded to {limits.ENVIRONMENT_MAX // 2}, "
            f"{limits.ARGUMENT_BYTES_MAX // 2} bytes together"
        )
    return tuple(sorted(environment.items()))


def check_concurrency(concurrency: int) -> int:
    """Return how many requests may run at once.

    Raises:
        ArgumentInvalid: out of range.
    """
    if not 1 <= concurrency <= limits.SERVICE_CONCURRENCY_MAX:
        raise errors.ArgumentInvalid(
            f"the concurrency must be from 1 to {limits.SERVICE_CONCURRENCY_MAX}, not {concurrency}"
        )
    return concurrency


def check_program(program: Program) -> None:
    """Return if a module can be a service.

    Raises:
        ExportUnknown: it is no WASI command.
    """
    if program.signature(ENTRY) != signature.Signature((), ()):
        raise errors.ExportUnknown(
            "the module is no WASI command: its _start takes or gives values"
        )


def check_received(record: Deployment) -> None:
    """Return if a peer's deployment is one that a node of this release would have signed.

    Raises:
        RecordInvalid: it is not.
    """
    try:
        sorted_environment = check_environment(dict(record.environment))
    except (errors.ArgumentInvalid, errors.TooLarge) as fault:
        raise errors.RecordInvalid(f"the deployment is refused: {fault.message}") from None
    if sorted_environment != record.environment:
        raise errors.RecordInvalid(
            "the variables of the deployment are not sorted, or one is there twice"
        )


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
            raise errors.NotFound(f"'{name}' has no other version than {active.record.version}")
        return active_of(others)
    if to == active.record.version:
        raise errors.ArgumentInvalid(f"version {to} of '{name}' is the active one")
    if to not in versions:
        raise errors.NotFound(
            f"'{name}' has no version '{to[:64]}'", hint=f"it has {', '.join(sorted(versions))}"
        )
    return versions[to]


def steps_of(record: Deployment) -> int:
    """Return the most fuel steps that a request may be billed for."""
    return pricing.run_steps(record.fuel_max, record.memory_bytes_max)


def fault_answer(status: int, reason: str, *, retry_after_s: int = 0) -> Response:
    """Return the answer that says in one sentence what went wrong."""
    headers = [("Content-Type", "text/plain; charset=utf-8")]
    if retry_after_s:
        headers.append(("Retry-After", str(retry_after_s)))
    return Response(status, tuple(headers), f"{reason}\n".encode())


def answer_of(outcome: execution.Outcome, stdout: bytes) -> Response:
    """Return what a run's output is to its caller."""
    if outcome.trap is not None:
        fault = sandbox.trap_error(outcome.trap)
        status = 504 if isinstance(fault, errors.TimeExceeded) else 502
        return fault_answer(status, f"the service failed: {fault.message} ({fault.code})")
    if outcome.exit_code:
        return fault_answer(502, f"the service failed: it exited with code {outcome.exit_code}")
    read = read_answer(stdout)
    if isinstance(read, str):
        return fault_answer(502, f"the service {read}")
    return read


def is_same_version(a: Deployment, b: Deployment) -> bool:
    """Say whether two deployments are the same version: all fields but the time of signing."""
    moment = {"generation": 1, "created_ms": 0}
    return a.model_copy(update=moment) == b.model_copy(update=moment)
