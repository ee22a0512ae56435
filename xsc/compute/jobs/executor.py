"""Runs orders of other nodes, each once, and signs receipts for them.

Idempotence: customer and nonce identify an order. While it runs, and as long as its answer is
kept, the same order gets the same answer. An order is refused if its answer is no longer kept,
if it is older than the request window, or if it was made before this node started: no order
runs or is billed twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from xsc.base import encoding, errors, fields, limits, merkle, peering, room
from xsc.base.clock import Clock, run_sized
from xsc.base.peering import Answered, Header, Parts
from xsc.compute.jobs import orders, receipts
from xsc.compute.jobs.output_buffer import OutputBuffer
from xsc.compute.jobs.runner import GrantedOrder, JobRunner
from xsc.compute.ports import ComputeBook, InputReader
from xsc.compute.wasm.inputs import FILES_MAX, RunInput, check_input, digest_of, input_hash
from xsc.compute.wasm.rows import calls_of
from xsc.compute.worker.quick import PATIENCE_MS
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed
from xsc.terms import lease, pricing
from xsc.terms.execution import Order

INPUTS_HELD_BYTES_MAX = 256 * limits.MIB
"""Inputs, and modules that orders brought, of all jobs that a provider has taken and not ended."""
INPUTS_HELD_A_PEER_BYTES_MAX = 128 * limits.MIB
"""The same of one customer."""
assert limits.INPUT_BYTES_MAX + limits.MODULE_BYTES_MAX <= INPUTS_HELD_A_PEER_BYTES_MAX
assert INPUTS_HELD_A_PEER_BYTES_MAX < INPUTS_HELD_BYTES_MAX

RUN = "compute.run"
"""The method by which an order is asked for."""
SHARED_ANSWER_BYTES_MAX = limits.BATCH_CALL_BYTES_MAX // 2


@dataclass(frozen=True, slots=True)
class _Answer:
    """The stored answer to an order: plain bytes."""

    receipt: bytes
    stdout: bytes
    stderr: bytes
    files: tuple[tuple[str, bytes], ...]

    @property
    def size_bytes(self) -> int:
        files = sum(len(path) + len(data) for path, data in self.files)
        return len(self.receipt) + len(self.stdout) + len(self.stderr) + files


@dataclass(slots=True)
class _Run:
    """The run of an order."""

    task: asyncio.Task[_Answer]
    output: OutputBuffer | None
    """What it writes, where the customer wants to see it."""


class JobExecutor:
    """Runs the orders of other nodes."""

    def __init__(
        self, context: Context, *, book: ComputeBook, inputs: InputReader, runner: JobRunner
    ) -> None:
        self._own = context.key.node_id
        self._network = context.network
        self._clock = context.clock
        self._executor = context.executor
        self._book = book
        self._reader = inputs
        self._inputs = room.Room(INPUTS_HELD_BYTES_MAX, INPUTS_HELD_A_PEER_BYTES_MAX)
        self._modules_held: Counter[tuple[bytes, bytes]] = Counter()
        """How many orders of a customer have a module, which counts once."""
        self._runner = runner
        self._modules = runner.modules
        self._started_ms = context.clock.now_ms()
        self._orders: orders.AcceptedOrders[_Run] = orders.AcceptedOrders()

    async def stop(self) -> None:
        """Cancel running orders; they are not answered."""
        tasks = [run.task for run in self._orders.runs()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what peers may call."""
        return {RUN: self._serve}

    def output_of(self, customer: bytes, nonce: bytes) -> OutputBuffer | None:
        """Return the output buffer of a streamed run; None where there is none."""
        known = self._orders.find((customer, nonce))
        return None if known is None or known.run is None else known.run.output

    async def _serve(self, caller: bytes, header: Header, parts: Parts) -> Answered:
        order = open_signed(
            fields.take_bytes(header, "order"), Order, network=self._network, author=caller
        )
        asked = order.record
        if asked.customer != caller or asked.provider != self._own:
            raise errors.RecordInvalid("the order is between other nodes")
        known = self._orders.find((caller, asked.nonce))
        if known is None:
            known = await self._accept(order, header, parts)
        if known.order_id != order.id:
            raise errors.RecordInvalid("the nonce of this order was used for another one")
        run = known.run
        if run is None:
            raise errors.ReplayRefused("this order was run, and its answer is no longer kept")
        patience_ms = None
        if header.get("patience_ms") is not None:
            patience_ms = fields.take_int(header, "patience_ms", most=PATIENCE_MS)
        header.clear()
        if patience_ms is not None:
            await _let_share(run.task, patience_ms)
        # The run goes on when the caller goes away: the same order finds it again.
        done = await asyncio.shield(run.task)
        answer: dict[str, encoding.Value] = {
            "receipt": done.receipt,
            "files": [path for path, _ in done.files],
        }
        return answer, [done.stdout, done.stderr, *(data for _, data in done.files)]

    async def _accept(
        self, order: Signed[Order], header: dict[str, encoding.Value], parts: Sequence[merkle.Part]
    ) -> orders.AcceptedOrder[_Run]:
        asked = order.record
        self._check_fresh(asked)
        given, references, brought = _received(header, parts)
        kept = self._modules.get(asked.module)
        if brought is None and kept is None:
            raise errors.ModuleUnknown("this provider does not have the module")
        brought_bytes = 0 if brought is None else len(brought)
        given_bytes = (
            min(asked.given_bytes, limits.INPUT_BYTES_MAX) if references else given.size_bytes
        )
        with _of_a_peer():
            calls = calls_of(asked.mode, given.args)
        steps = pricing.run_steps(asked.fuel_max, asked.memory_bytes_max, brought_bytes, calls)
        # Nothing is hashed, fetched or kept without a lease.
        terms = self._book.compute_terms(asked.lease_id, asked.customer, steps)
        with ExitStack() as held:
            # What waits is held, too, and a kept module also once others push it out.
            self._hold(held, asked.customer, given_bytes + brought_bytes)
            if kept is not None:
                self._hold(held, asked.customer, len(kept), asked.module)
            granted = await self._grant(asked, header, given, references, brought, terms)
            slot = (asked.customer, asked.nonce)
            found = self._orders.find(slot)
            if found is not None:  # the same order came twice at once
                return found
            self._orders.check_room(asked.customer, self._clock.now_ms())
            if asked.module not in self._modules:
                module = granted.module
                self._modules.put(asked.module, module, asked.customer, len(module))
            output = OutputBuffer(self._clock) if fields.take_bool(header, "stream") else None
            task = asyncio.create_task(self._work(order, granted, steps, output))
            release = held.pop_all().close
        known = self._orders.add(slot, order.id, asked.created_ms, _Run(task, output))
        task.add_done_callback(lambda done: self._keep(slot, done))
        task.add_done_callback(lambda _: release())
        return known

    def _hold(self, held: ExitStack, customer: bytes, size: int, module: bytes = b"") -> None:
        """Count what an order has in memory, until it is released; a module once a customer.

        Raises:
            RateLimited: that would be more than its share, or than there is.
        """
        if not self._modules_held[customer, module] and not self._inputs.take(customer, size):
            raise errors.RateLimited("this node holds as much input of yours, or of all, as it may")
        if module:
            self._modules_held[customer, module] += 1
        held.callback(self._release, customer, size, module)

    def _release(self, customer: bytes, size: int, module: bytes) -> None:
        if module:
            self._modules_held[customer, module] -= 1
        if not self._modules_held[customer, module]:
            del self._modules_held[customer, module]
            self._inputs.give(customer, size)

    async def _grant(  # noqa: PLR0917 - what a request brings, and what it is checked against
        self,
        asked: Order,
        header: dict[str, encoding.Value],
        given: RunInput,
        references: Sequence[tuple[str, bytes]],
        brought: bytes | None,
        terms: lease.RunTerms,
    ) -> GrantedOrder:
        """Return the content of an order; it must match the hashes that the order names."""
        receipts.check_price(asked, terms.price)
        output_bytes = fields.take_int(header, "output_bytes", most=limits.OUTPUT_BYTES_MAX)
        wait_ms = fields.take_int(header, "wait_ms", most=limits.TIMEOUT_MS_MAX)
        module = await self._module(asked.module, brought)
        saved_bytes = len(module) if brought is None else 0
        if references:
            given, here = await read_objects(
                self._reader, self._clock, given, references, asked.given_bytes
            )
            saved_bytes += here
        if asked.given_bytes != len(module) + given.size_bytes:
            raise errors.RecordInvalid("module and input are not as long as the order says")
        digest = await run_sized(self._executor, given.size_bytes, input_hash, given, output_bytes)
        if digest != asked.input:
            raise errors.RecordInvalid("the input is not the one that the order names")
        return GrantedOrder(
            module, given, output_bytes, terms, wait_ms, saved_bytes, brought=brought is not None
        )

    def _check_fresh(self, asked: Order) -> None:
        now_ms = self._clock.now_ms()
        if abs(now_ms - asked.created_ms) > limits.REQUEST_WINDOW_MS:
            raise errors.ClockSkewed(
                f"the order was made {now_ms - asked.created_ms} ms ago by this node's clock"
            )
        if asked.created_ms < self._started_ms:
            raise errors.ReplayRefused("the order was made before this node started")

    async def _module(self, digest: bytes, brought: bytes | None) -> bytes:
        if (kept := self._modules.get(digest)) is not None:
            return kept
        if brought is None:
            raise errors.ModuleUnknown("this provider does not have the module any more")
        if await run_sized(self._executor, len(brought), digest_of, brought) != digest:
            raise errors.RecordInvalid("the module is not the one that the order names")
        return brought

    async def _work(
        self, order: Signed[Order], granted: GrantedOrder, steps: int, output: OutputBuffer | None
    ) -> _Answer:
        asked = order.record
        used = 0
        arrived_ms = self._clock.monotonic_ms()
        await self._book.admit_compute(asked.lease_id, asked.customer, steps, granted.wait_ms)
        try:
            waited_ms = self._clock.monotonic_ms() - arrived_ms
            done = await self._runner.fulfil(order, granted, output, waited_ms)
            outcome = done.receipt.record.outcome
            used = receipts.billed_steps(asked, outcome, done.receipt.record.observed)
        finally:
            self._book.used_compute(asked.lease_id, steps, used)
        return _Answer(done.receipt.raw, done.stdout, done.stderr, done.files)

    def _keep(self, slot: tuple[bytes, bytes], task: asyncio.Task[_Answer]) -> None:
        """Keep an answer for repeated requests; forget a failed order, which was not billed."""
        if task.cancelled() or task.exception() is not None:
            self._orders.drop(slot)
            return
        self._orders.ended(slot, task.result().size_bytes, self._clock.now_ms())


async def read_objects(
    reader: InputReader,
    clock: Clock,
    given: RunInput,
    references: Sequence[tuple[str, bytes]],
    size_max: int,
) -> tuple[RunInput, int]:
    """Return the input with its objects as files, and how many of their bytes were here.

    The customer refers to objects of which this node holds shards; the others are fetched.

    Raises:
        InputUnavailable: one cannot be read from here, or not in time.
        RecordInvalid: a reference is wrong, or objects and files make no input.
        TooLarge: they have more than `size_max` bytes together.
    """
    reading = asyncio.ensure_future(_read_objects(reader, given, references, size_max))
    late = asyncio.ensure_future(clock.sleep_ms(limits.PEER_TIMEOUT_MS))
    try:
        await asyncio.wait([reading, late], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise errors.InputUnavailable("the input's shards do not come in time")
        return reading.result()
    finally:
        for task in (reading, late):
            task.cancel()
        await asyncio.gather(reading, late, return_exceptions=True)


async def _read_objects(
    reader: InputReader, given: RunInput, references: Sequence[tuple[str, bytes]], size_max: int
) -> tuple[RunInput, int]:
    files = list(given.files)
    here = 0
    left = min(size_max, limits.INPUT_BYTES_MAX) - sum(len(data) for _, data in files)
    for name, raw in references:
        try:
            data, received = await reader.read_reference(raw, left)
        except (errors.UnavailableError, errors.CorruptionError) as fault:
            raise errors.InputUnavailable(fault.message) from None
        files.append((name, data))
        here += max(0, len(data) - received)
        left -= len(data)
    whole = RunInput(given.args, given.environment, given.stdin, tuple(sorted(files)))
    with _of_a_peer():
        check_input(whole)
    return whole, here


async def _let_share(task: asyncio.Task[_Answer], patience_ms: int) -> None:
    """Return once an order is done whose answer fits a shared reply.

    Raises:
        JobUnfinished: it takes longer, or its answer is too large for that.
    """
    if not task.done():
        await asyncio.wait([task], timeout=patience_ms / 1000)
    if not task.done():
        raise errors.JobUnfinished("the order still runs", hint="ask for it alone")
    if task.cancelled() or task.exception() is not None:
        return
    done = task.result()
    if (
        done.size_bytes > SHARED_ANSWER_BYTES_MAX
        or len(done.files) > limits.BATCH_CALL_PARTS_MAX - 2
    ):
        raise errors.JobUnfinished("the answer is too large to be shared", hint="ask for it alone")


@contextmanager
def _of_a_peer() -> Iterator[None]:
    """Say of an argument that is wrong that the peer's request is."""
    try:
        yield
    except errors.ArgumentInvalid as fault:
        raise errors.RecordInvalid(fault.message) from None


def _received(
    header: dict[str, encoding.Value], parts: Sequence[merkle.Part]
) -> tuple[RunInput, list[tuple[str, bytes]], bytes | None]:
    """Return the input, references to more of it, and the module, if it is there, of a request."""
    environment: list[tuple[str, str]] = []
    for item in fields.take_list(header, "environment", most=limits.ENVIRONMENT_MAX):
        match item:
            case [str(name), str(text)]:
                environment.append((name, text))
            case _:
                raise errors.RecordInvalid("the field 'environment' must hold pairs of texts")
    names = fields.take_texts(header, "files", most=FILES_MAX)
    referred = fields.take_texts(header, "objects", most=FILES_MAX)
    with_module = fields.take_bool(header, "module")
    bodies = [bytes(part.data) for part in parts]
    if len(bodies) != 1 + len(names) + len(referred) + with_module:
        raise errors.RecordInvalid("the request lacks a part or has one too many")
    given = RunInput(
        tuple(fields.take_texts(header, "args", most=limits.ARGUMENTS_MAX)),
        tuple(environment),
        bodies[0],
        tuple(zip(names, bodies[1 : 1 + len(names)], strict=True)),
    )
    with _of_a_peer():
        check_input(given)
    first = 1 + len(names)
    references = list(zip(referred, bodies[first : first + len(referred)], strict=True))
    return given, references, bodies[-1] if with_module else None
