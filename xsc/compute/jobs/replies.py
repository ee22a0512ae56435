"""What a provider delivers for a task: checked against every rule, then told as a result."""

from __future__ import annotations

from dataclasses import dataclass

from xsc.base import errors, fields, ids, limits, peering
from xsc.base.jobs import JobItem, JobResult, Verification
from xsc.compute.jobs.receipts import check_compiled, check_receipt, given_hash
from xsc.compute.jobs.tasks import Task
from xsc.compute.wasm import inputs, rows, sandbox, values
from xsc.identity.envelope import Signed, open_signed
from xsc.terms.execution import ExecutionReceipt, Order


@dataclass(frozen=True, slots=True)
class Delivered:
    """A verified receipt and the output that came with it."""

    receipt: Signed[ExecutionReceipt]
    stdout: bytes
    stderr: bytes
    files: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the customer knows of an order beside its task, when the reply arrives."""

    order: Signed[Order]
    provider: bytes
    price: int
    """Of the lease, a Gfuel."""
    module_sent: bool
    saved_max: int
    """Most bytes that the provider can have saved."""
    cancelled: bool
    """Whether the customer cancelled the run."""
    passed_ms: int
    """Since the order was made."""
    lost_before: bool
    """Whether the provider had lost a worker by this module a short while before the order."""


def read_reply(task: Task, asked: Asked, reply: peering.Reply, network: bytes) -> Delivered:
    """Return what a provider delivered, once every rule is checked.

    Raises:
        ReceiptInvalid: it breaks a rule.
        RecordInvalid, SignatureInvalid: the receipt cannot be read.
    """
    raw = fields.take_bytes(reply.header, "receipt")
    names = fields.take_texts(reply.header, "files", most=limits.OUTPUT_FILES_MAX)
    if len(reply.parts) != 2 + len(names):
        raise errors.ReceiptInvalid("the provider's answer lacks a part")
    if not all(map(inputs.is_output_path, names)) or len(set(names)) != len(names):
        raise errors.ReceiptInvalid("the provider returned a file that no program can have left")
    bodies = [bytes(part) for part in reply.parts]
    receipt = open_signed(raw, ExecutionReceipt, network=network, author=asked.provider)
    done = Delivered(receipt, bodies[0], bodies[1], tuple(zip(names, bodies[2:], strict=True)))
    broken = _broken_rule(task, asked, done)
    if broken is not None:
        raise errors.ReceiptInvalid(f"the provider's receipt is refused: {broken}")
    return done


def _broken_rule(task: Task, asked: Asked, done: Delivered) -> str | None:
    receipt = done.receipt.record
    trap, observed = receipt.outcome.trap, receipt.observed
    output = given_hash(task.mode, done.stdout, done.stderr, done.files)
    broken = check_receipt(asked.order, receipt, asked.price, results=task.results, output=output)
    if broken is not None:
        return broken
    if receipt.request is not None:
        return "it is for a request of a service"
    if trap == "cancelled" and not asked.cancelled:
        return "nobody has cancelled it"
    if trap in ("cancelled", "compile_limit") and observed.wall_ms > asked.passed_ms:
        return "it bills more time than has passed"
    if trap == "worker_lost" and asked.lost_before:
        return "the provider lost a worker by this module before, and ran it all the same"
    broken = check_compiled(receipt, len(task.module) if asked.module_sent else 0)
    if broken is not None:
        return broken
    if observed.calls != task.calls:
        return "it bills other calls than the batch has"
    if observed.saved_bytes > asked.saved_max:
        return "it says that bytes were saved which were sent, or which it cannot have had"
    if len(done.stdout) + len(done.stderr) + sum(len(data) for _, data in done.files) > (
        task.limits.output_bytes
    ):
        return "more was delivered than the order allows"
    if task.mode == "batch" and trap is None:
        _, fuel = _rows(task, done)
        if fuel != receipt.outcome.fuel_used:
            return "its fuel is not the sum of that of its calls"
    return None


def _rows(task: Task, done: Delivered) -> tuple[list[rows.ResultRow], int]:
    try:
        return rows.read_rows(
            rows.shape_of(task.given.args),
            task.row,
            done.stdout,
            done.stderr,
            fuel=task.limits.fuel,
            timeout_ms=task.limits.timeout_ms,
            is_trap=sandbox.is_trap,
        )
    except errors.RecordInvalid as fault:
        raise errors.ReceiptInvalid(f"the batch's results are refused: {fault.message}") from None


def result_of(task: Task, done: Delivered, verification: Verification | None) -> JobResult:
    """Return the result of a task; for a batch it reads every row."""
    receipt = done.receipt.record
    outcome = receipt.outcome
    items: tuple[JobItem, ...] = ()
    is_batch = task.mode == "batch"
    if is_batch and outcome.trap is None:
        items = tuple(
            JobItem(
                tuple(values.format_bits(kind, bits) for kind, bits in row.results),
                row.fuel_used,
                sandbox.trap_error(row.trap) if row.trap is not None else None,
                done.receipt.raw,
            )
            for row in _rows(task, done)[0]
        )
    return JobResult(
        mode=task.mode,
        results=tuple(values.format_bits(number.type, number.bits) for number in outcome.results),
        items=items,
        exit_code=outcome.exit_code,
        stdout=b"" if is_batch else done.stdout,
        stderr=b"" if is_batch else done.stderr,
        files=dict(done.files),
        fuel_used=outcome.fuel_used,
        memory_peak_bytes=outcome.memory_peak_bytes,
        wall_ms=receipt.observed.wall_ms,
        provider=ids.node_text(done.receipt.author),
        trap=sandbox.trap_error(outcome.trap) if outcome.trap is not None else None,
        receipt=done.receipt.raw,
        saved_bytes=receipt.observed.saved_bytes,
        compiled_bytes=receipt.observed.compiled_bytes,
        verification=verification,
    )
