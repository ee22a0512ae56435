"""Orders and receipts: makes, bills and checks them.

The bill of a run follows from the lease's price, the fuel used, RUN_FUEL for the order
itself, the size of the module where the order brought it to be compiled, the calls of
a batch, and the memory *limit* of the order (`xsc.terms.pricing`); nothing else is
billed, and never more than the order allows. A run that meets a limit is billed for the
fuel it used. For a run that was ended for its time, or that ended its worker process, the fuel
is unknown and would differ between machines. Such a run is billed for its allowed time, at
MILLISECOND_FUEL, up to the order's fuel (`time_fuel`); customer and `xsc verify` compute the
same. If it were free, jobs could use processors for nothing by meeting the deadline or crashing.

`time_exceeded`, `compile_limit` and `worker_lost` also depend on the provider's machine: a
second run need not reproduce them. It must reproduce everything else of an outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base import encoding, errors, jobs, limits
from xsc.compute.wasm import inputs, rows, sandbox
from xsc.compute.wasm.limits import Limits
from xsc.identity.envelope import Signed, open_signed
from xsc.terms.deployment import Deployment
from xsc.terms.execution import ExecutionReceipt, Number, Observed, Order, Outcome, ServiceRequest
from xsc.terms.pricing import compute_amount, run_steps

TIME_TRAPS = frozenset({"time_exceeded", "compile_limit", "worker_lost", "cancelled"})
"""Traps that depend on the provider's machine: a second run need not reproduce them."""
FUNCTION_CHARS_LOGGED = 64
ENTRY = "_start"
"""The function of a WASI command."""


def given_hash(
    mode: jobs.Mode, stdout: bytes, stderr: bytes, files: Sequence[tuple[str, bytes]]
) -> bytes:
    """Return the hash of a run's output, as an outcome names it."""
    if mode == "batch":
        return rows.batch_output(stdout, stderr)
    return inputs.output_hash(stdout, stderr, files)


def seed_of(nonce: bytes) -> bytes:
    """Return the seed of the program's random bytes, derived from the nonce."""
    return encoding.tagged_sha256("compute-seed", nonce)


def job_of(order: Order, module: bytes, given: inputs.RunInput, output_bytes: int) -> sandbox.Job:
    """Return the job that an order asks for; module and input must be those it names."""
    return sandbox.Job(
        module_hash=order.module,
        module=module,
        mode=order.mode,
        function=order.function,
        arguments=tuple((number.type, number.bits) for number in order.arguments),
        args=given.args,
        environment=given.environment,
        stdin=given.stdin,
        files=given.files,
        limits=Limits(order.fuel_max, order.memory_bytes_max, order.timeout_ms, output_bytes),
        seed=seed_of(order.nonce),
        clock_ms=order.created_ms,
        grants=order.grants,
        customer=order.customer,
    )


def standing_order(
    signed: Signed[Deployment], request: ServiceRequest, given: bytes
) -> Signed[Order]:
    """Return the order of one request of a service, which its deployment allows.

    Args:
        signed: what the owner signed.
        request: what the holder says of the request.
        given: the hash of what the program is given (`input_hash`).
    """
    record = signed.record
    order = Order(
        nonce=request.nonce,
        lease_id=request.lease_id,
        customer=record.owner,
        provider=record.provider,
        module=record.module,
        mode="run",
        function=ENTRY,
        arguments=(),
        input=given,
        fuel_max=record.fuel_max,
        memory_bytes_max=record.memory_bytes_max,
        timeout_ms=record.timeout_ms,
        created_ms=request.created_ms,
        grants=(),
        given_bytes=0,
    )
    return Signed(order, signed.author, signed.network, signed.id, signed.raw)


def open_order(receipt: ExecutionReceipt, network: bytes | None) -> Signed[Order]:
    """Return the order that a receipt is for, signed by whom it names as its author.

    Raises:
        PeerError, TooLarge: it cannot be read.
    """
    if receipt.request is None:
        return open_signed(receipt.order, Order, network=network)
    deployment = open_signed(
        receipt.order, Deployment, network=network, size_max=limits.SERVICE_RECORD_BYTES_MAX
    )
    return standing_order(deployment, receipt.request, receipt.outcome.input)


def time_fuel(order: Order, trap: str | None, wall_ms: int = 0) -> int | None:
    """Return the billed fuel of a run of which only the time is known, else None.

    One that the customer cancelled, or whose module was compiled for too long, is billed for
    the time that this took, `wall_ms`.
    """
    allowed_ms = {
        "time_exceeded": order.timeout_ms,
        "compile_limit": min(wall_ms, limits.COMPILE_MS_MAX),
        "worker_lost": order.timeout_ms,
        "cancelled": min(wall_ms, order.timeout_ms),
    }
    if trap not in allowed_ms:
        return None
    return min(order.fuel_max, allowed_ms[trap] * limits.MILLISECOND_FUEL)


def billed_steps(order: Order, outcome: Outcome, observed: Observed) -> int:
    """Return the fuel steps that a run is billed for."""
    return run_steps(
        outcome.fuel_used, order.memory_bytes_max, observed.compiled_bytes, observed.calls
    )


def bill(order: Order, outcome: Outcome, observed: Observed, price: int) -> int:
    """Return the micro-credits of a run at a price a Gfuel."""
    return compute_amount(price, billed_steps(order, outcome, observed))


def line_of(order: Order, receipt: ExecutionReceipt) -> dict[str, object]:
    """Return what the log says of a run."""
    return {
        "function": order.function[:FUNCTION_CHARS_LOGGED],
        "duration_ms": receipt.observed.wall_ms,
        "fuel": receipt.outcome.fuel_used,
        "amount_micro": receipt.amount_micro,
        "trap": receipt.outcome.trap or "",
    }


def check_compiled(receipt: ExecutionReceipt, module_bytes: int) -> str | None:
    """Return what is wrong with what a receipt bills for compiling a module of that size."""
    if receipt.observed.compiled_bytes not in (0, module_bytes):
        return "it bills for compiling another module than it ran"
    return None


def check_price(order: Order, price: int) -> None:
    """Return if the most that the order can cost is an amount.

    Raises:
        CreditExceeded: it is not.
    """
    calls = limits.BATCH_ITEMS_MAX if order.mode == "batch" else 0
    most = run_steps(order.fuel_max, order.memory_bytes_max, order.given_bytes, calls)
    if compute_amount(price, most) > limits.AMOUNT_MAX:
        raise errors.CreditExceeded("this run could cost more than can be written down")


def make_receipt(
    order: Signed[Order],
    result: sandbox.SandboxResult,
    *,
    price: int,
    started_ms: int,
    wall_ms: int,
    saved_bytes: int = 0,
    compiled_bytes: int = 0,
    calls: int = 0,
    request: ServiceRequest | None = None,
) -> ExecutionReceipt:
    """Return the receipt for the result of an order, to be signed by the provider.

    `saved_bytes` is what it did not have to receive, `compiled_bytes` what it received and had
    to compile; both together are at most what the order says that there is. `calls` are those
    of a batch. `request` is the request where a deployment stands for the order.
    """
    asked = order.record
    observed = Observed(
        started_ms=started_ms,
        wall_ms=wall_ms,
        saved_bytes=saved_bytes,
        compiled_bytes=compiled_bytes,
        calls=calls,
    )
    by_time = time_fuel(asked, result.trap, wall_ms)
    fuel_used = result.fuel_used if by_time is None else by_time
    outcome = Outcome(
        module=asked.module,
        mode=asked.mode,
        function=asked.function,
        arguments=asked.arguments,
        input=asked.input,
        results=tuple(Number.model_validate({"type": t, "bits": b}) for t, b in result.results),
        output=given_hash(asked.mode, result.stdout, result.stderr, result.files),
        exit_code=result.exit_code,
        trap=result.trap,
        fuel_used=fuel_used,
        memory_peak_bytes=result.memory_peak_bytes,
        engine=result.engine,
        engine_config=result.engine_config,
    )
    return ExecutionReceipt(
        order=order.raw,
        request=request,
        outcome=outcome,
        observed=observed,
        amount_micro=bill(asked, outcome, observed, price),
    )


def check_receipt(
    order: Signed[Order],
    receipt: ExecutionReceipt,
    price: int,
    *,
    results: Sequence[str] | None = None,
    output: bytes | None = None,
) -> str | None:
    """Return the first rule that a receipt breaks, or None.

    Args:
        order: what was asked for.
        receipt: what the provider signed; its author is the caller's to check.
        price: the lease's price a Gfuel.
        results: the result types of the function, where they are known.
        output: the hash of what was delivered, where it is at hand.
    """
    asked, told = order.record, receipt.outcome
    same = (told.module, told.mode, told.function, told.arguments, told.input)
    if receipt.order != order.raw:
        return "it is for another order"
    if same != (asked.module, asked.mode, asked.function, asked.arguments, asked.input):
        return "its outcome is of another run than the order asks for"
    if told.trap is not None:
        if not sandbox.is_trap(told.trap):
            return f"it names a trap that does not exist ('{told.trap[:40]}')"
        if told.results or told.exit_code is not None:
            return "it has results although the run was trapped"
    elif asked.mode == "run":
        if told.exit_code is None or told.results:
            return "a program's run has an exit code and no results"
    elif told.exit_code is not None:
        return "a function's call has no exit code"
    elif asked.mode == "batch" and told.results:
        return "the results of a batch are in its table alone"
    elif results is not None and tuple(item.type for item in told.results) != tuple(results):
        return "its results are not of the function's types"
    by_time = time_fuel(asked, told.trap, receipt.observed.wall_ms)
    if by_time is not None and told.fuel_used != by_time:
        return "it was ended for its time, and bills another fuel than that time costs"
    if told.fuel_used > asked.fuel_max:
        return "it bills more fuel than the order allows"
    seen = receipt.observed
    if bool(seen.calls) != (asked.mode == "batch"):
        return "it bills the calls of a batch where there is none, or none where there is one"
    if seen.saved_bytes > asked.given_bytes:
        return "it says that more bytes were saved than the job has"
    if seen.compiled_bytes and seen.saved_bytes + seen.compiled_bytes > asked.given_bytes:
        return "it bills for compiling more than the job can have brought"
    if told.memory_peak_bytes > asked.memory_bytes_max:
        return "it reports more memory than the order allows"
    if receipt.amount_micro != bill(asked, told, seen, price):
        return "its amount does not follow from the fuel and the lease's price"
    if output is not None and told.output != output:
        return "what was delivered is not what it names"
    return None
