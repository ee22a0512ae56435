"""Turns a job into a task: checked as far as possible without an engine, ready to be ordered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from xsc.base import encoding, errors
from xsc.base.jobs import Grant, JobSpec, Mode
from xsc.base.limits import FRAME_HEADER_BYTES_MAX, LOCALITY_BYTES_LEAST, PEER_BODY_BYTES_MAX
from xsc.compute.jobs.locality import check_objects, spared
from xsc.compute.ports import InputObject
from xsc.compute.wasm import inputs, rows, values
from xsc.compute.wasm.limits import Limits, limits_of
from xsc.compute.wasm.program import Program
from xsc.terms.execution import Number, Order
from xsc.terms.pricing import run_steps

_ROOM_BYTES = FRAME_HEADER_BYTES_MAX + 4096


@dataclass(frozen=True, slots=True)
class Task:
    """A job whose module was read, with parsed arguments and complete limits."""

    module: bytes
    module_hash: bytes
    mode: Mode
    function: str
    given: inputs.RunInput
    limits: Limits
    arguments: tuple[Number, ...] = ()
    results: tuple[str, ...] = ()
    """The result types of an `invoke`."""
    row: tuple[str, ...] = ()
    """The result types of each call of a batch."""
    grants: tuple[Grant, ...] = ()
    wait_ms: int = 0
    """How long it may wait for its turn."""
    objects: tuple[InputObject, ...] = ()
    """Files that are not in `given`: stored objects, which a provider may read itself."""

    @property
    def given_bytes(self) -> int:
        """The size of module and input together."""
        objects = sum(item.size_bytes for item in self.objects)
        return len(self.module) + self.given.size_bytes + objects

    @property
    def calls(self) -> int:
        """The calls of a batch, 0 for another job."""
        return rows.calls_of(self.mode, self.given.args)

    def steps(self, *, compiling: bool) -> int:
        """Return the most fuel steps that it costs, with or without compiling the module."""
        compiled_bytes = len(self.module) if compiling else 0
        return run_steps(self.limits.fuel, self.limits.memory_bytes, compiled_bytes, self.calls)

    def saved_by(self, holders: Sequence[bytes]) -> Mapping[bytes, int]:
        """Return how much each node need not receive, where that matters.

        Args:
            holders: the nodes that have the module.
        """
        if self.given_bytes < LOCALITY_BYTES_LEAST:
            return {}
        return spared(self.objects, len(self.module), holders)

    def order(
        self,
        *,
        nonce: bytes,
        lease_id: bytes,
        customer: bytes,
        provider: bytes,
        input_hash: bytes,
        now_ms: int,
    ) -> Order:
        """Return the order of this task under a lease."""
        return Order(
            nonce=nonce,
            lease_id=lease_id,
            customer=customer,
            provider=provider,
            module=self.module_hash,
            mode=self.mode,
            function=self.function,
            arguments=self.arguments,
            input=input_hash,
            fuel_max=self.limits.fuel,
            memory_bytes_max=self.limits.memory_bytes,
            timeout_ms=self.limits.timeout_ms,
            created_ms=now_ms,
            grants=self.grants,
            given_bytes=0 if provider == customer else self.given_bytes,
        )


def task_of(
    spec: JobSpec,
    program: Program,
    digest: bytes,
    objects: Sequence[InputObject],
    defaults: Limits,
) -> Task:
    """Return the task of a job; for a batch it parses every line.

    Args:
        spec: the job.
        program: what its module declares.
        digest: the SHA-256 of its module.
        objects: those that `spec.inputs` names.
        defaults: the limits that it leaves open.

    Raises:
        ExportUnknown, SignatureMismatch: it cannot run.
        ArgumentInvalid, TooLarge: an input or limit is malformed or over a bound.
    """
    limits = limits_of(spec, defaults)
    made = partial(
        Task,
        spec.module,
        digest,
        spec.mode,
        spec.function,
        limits=limits,
        grants=tuple(sorted(set(spec.grants))),
        wait_ms=spec.wait_ms,
    )
    signature = program.signature(spec.function)
    if spec.mode == "invoke":
        read = values.parse_arguments(spec.arguments, spec.function, signature)
        numbers = tuple(Number.model_validate({"type": t, "bits": b}) for t, b in read)
        return made(inputs.RunInput(), arguments=numbers, results=signature.results)
    if spec.mode == "run":
        env = tuple(sorted(spec.env.items()))
        given = inputs.RunInput(spec.arguments, env, spec.stdin)
        check_objects(given, objects)
        return made(given, objects=tuple(objects))
    calls = rows.read_lines(spec.stdin)
    if not signature.callable:
        values.parse_arguments((), spec.function, signature)  # says why
    rows.check_size(len(calls), signature, limits.output_bytes)
    fuel = limits.fuel if spec.item_fuel is None else spec.item_fuel
    if not 1 <= fuel <= limits.fuel:
        raise errors.ArgumentInvalid(f"the fuel of one call must be from 1 to {limits.fuel}")
    table = rows.table_of(calls, spec.function, signature)
    given = inputs.RunInput(args=rows.Shape(len(calls), fuel).texts(), stdin=table)
    return made(given, row=signature.results)


def message_of(
    task: Task, order: bytes, *, with_module: bool, streamed: bool, wait_ms: int
) -> tuple[dict[str, encoding.Value], list[bytes]]:
    """Return the header and the parts that ask a provider for an order.

    The objects that are left in the task are sent as references, all else as it is.

    Raises:
        TooLarge: no message can hold them.
    """
    header: dict[str, encoding.Value] = {
        "order": order,
        "args": list(task.given.args),
        "environment": [[name, text] for name, text in task.given.environment],
        "files": [name for name, _ in task.given.files],
        "output_bytes": task.limits.output_bytes,
        "module": with_module,
        "stream": streamed,
        "objects": [item.name for item in task.objects],
        "wait_ms": wait_ms,
    }
    parts = [task.given.stdin, *(data for _, data in task.given.files)]
    parts += [item.reference for item in task.objects]
    if sum(map(len, parts)) + len(task.module) + _ROOM_BYTES > PEER_BODY_BYTES_MAX:
        raise errors.TooLarge(
            f"module and input are over {PEER_BODY_BYTES_MAX - _ROOM_BYTES} bytes together",
            hint="run it on this node with --local",
        )
    if with_module:
        parts.append(task.module)
    return header, parts
