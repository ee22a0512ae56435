"""Buys runs of WebAssembly programs, and puts both sides of a run together.

Reads the module, parses the arguments, has the market choose a provider,
orders, and believes nothing before the receipt was checked against the order,
the lease's price and what was delivered. The provider's side is
`xsc.compute.jobs.executor`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from xsc.base.bounded import Bounded
from xsc.base.clock import Clock, Entropy, Executor, run_sized
from xsc.base.encoding import Value
from xsc.base.errors import (
    ArgumentInvalid,
    InputUnavailable,
    JobUnfinished,
    LeaseExhausted,
    ModuleUnknown,
    PeerSilent,
    RateLimited,
    ReceiptInvalid,
    RecordInvalid,
    SandboxFailed,
    TooLarge,
    XscError,
)
from xsc.base.fields import take_bytes, take_texts
from xsc.base.limits import (
    COMPILE_MS_DEFAULT,
    FRAME_HEADER_BYTES_MAX,
    MODULE_LOST_MS,
    MODULES_REMEMBERED_MAX,
    NEAR_BYTES_LEAST,
    OUTPUT_FILES_MAX,
    PEER_BODY_BYTES_MAX,
    PEER_TIMEOUT_MS,
    PROGRAMS_REMEMBERED_MAX,
    PROVIDERS_TRIED_MAX,
)
from xsc.base.log import Log
from xsc.base.merkle import Part, root_of
from xsc.compute.jobs.evidence import EvidenceBook
from xsc.compute.jobs.executor import RUN, Delivered, Granted, Provider
from xsc.compute.jobs.locality import Holders, check_objects, referred_to, saved_max, spared
from xsc.compute.jobs.output_buffer import Tape
from xsc.compute.jobs.quorum import Quorum
from xsc.compute.jobs.receipts import billed_steps, check_compiled, check_receipt, given_hash
from xsc.compute.jobs.replicated import Errand, Panel, Verified
from xsc.compute.jobs.streams import Streams, settle_tape
from xsc.compute.ports import (
    Caller,
    ComputeBook,
    ComputeLease,
    ComputeLeases,
    Handler,
    InputObject,
    InputReader,
    Reply,
)
from xsc.compute.wasm import rows as batches
from xsc.compute.wasm.inputs import RunInput, digest_of, input_hash, is_output_path
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.program import Program, read
from xsc.compute.wasm.sandbox import Mode, Sandbox, is_trap, trap_error
from xsc.compute.wasm.values import format_bits, format_number, parse_arguments
from xsc.compute.worker.quick import PATIENCE_MS, Quick
from xsc.identity.batch_signer import BatchSigner
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.terms.execution import ExecutionReceipt, Grant, Number, Order
from xsc.terms.lease import OWN_LEASE
from xsc.terms.pricing import run_steps

_NONCE_BYTES = 16
_ROOM_BYTES = FRAME_HEADER_BYTES_MAX + 4096


@dataclass(frozen=True, slots=True)
class Execution:
    """What an invocation gave. The receipt proves all of it but the text forms."""

    results: list[str]
    numbers: tuple[Number, ...]
    """The results as raw bits."""
    stdout: bytes
    stderr: bytes
    fuel_used: int
    memory_peak_bytes: int
    wall_ms: int
    provider: bytes
    amount_micro: int
    trap: XscError | None
    """The error to raise, where the run did not come to its end."""
    receipt: bytes
    """The signed execution receipt."""
    verified: Verified | None = None
    """Who else ran it, where several were asked."""
    saved_bytes: int = 0
    """How much of module and input the provider did not have to receive."""
    compiled_bytes: int = 0
    """The module's size, where compiling it is billed as well."""


@dataclass(frozen=True, slots=True)
class RunExecution:
    """What a WASI command gave."""

    exit_code: int | None
    """None where the run did not come to its end."""
    stdout: bytes
    stderr: bytes
    files: dict[str, bytes]
    """What the program left in /out, by path."""
    fuel_used: int
    memory_peak_bytes: int
    wall_ms: int
    provider: bytes
    amount_micro: int
    trap: XscError | None
    receipt: bytes
    verified: Verified | None = None
    saved_bytes: int = 0
    compiled_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """What came of one call of a batch."""

    results: list[str]
    fuel_used: int
    trap: XscError | None


@dataclass(frozen=True, slots=True)
class BatchExecution:
    """What a batch gave, one item a call, in order."""

    items: list[Item]
    fuel_used: int
    memory_peak_bytes: int
    wall_ms: int
    provider: bytes
    amount_micro: int
    trap: XscError | None
    """The error to raise, where the batch as a whole was ended; then there are no items."""
    receipt: bytes
    saved_bytes: int = 0
    compiled_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Task:
    """What the customer wants, checked as far as it can be without an engine."""

    module: bytes
    module_hash: bytes
    mode: Mode
    function: str
    arguments: tuple[Number, ...]
    results: tuple[str, ...]
    given: RunInput
    limits: Limits
    row: tuple[str, ...] = ()
    """The result types of each call of a batch."""
    grants: tuple[Grant, ...] = ()
    tape: Tape | None = None
    """Where to show what it writes."""
    objects: tuple[InputObject, ...] = ()
    """What it reads beside the files that are at hand."""
    brought_to: set[bytes] = field(default_factory=set)
    """The nodes to which the module was sent."""

    @property
    def given_bytes(self) -> int:
        """Module and input together."""
        objects = sum(item.size_bytes for item in self.objects)
        return len(self.module) + self.given.size_bytes + objects

    def steps(self, *, compiling: bool) -> int:
        """Return the fuel steps that it costs at most, with or without compiling the module."""
        compiled_bytes = len(self.module) if compiling else 0
        return run_steps(self.limits.fuel, self.limits.memory_bytes, compiled_bytes, self.calls)

    @property
    def calls(self) -> int:
        """The calls of a batch, and 0 of another job."""
        return batches.calls_of(self.mode, self.given.args)


class ComputeService:
    """Both sides of a run."""

    def __init__(
        self,
        *,
        key: KeyPair,
        network: bytes,
        clock: Clock,
        entropy: Entropy,
        executor: Executor,
        caller: Caller,
        leases: ComputeLeases,
        book: ComputeBook,
        sandbox: Sandbox,
        evidence: EvidenceBook,
        inputs: InputReader,
        log: Log,
        compile_ms: int = COMPILE_MS_DEFAULT,
    ) -> None:
        """Put it together; `compile_ms` is how long others may compile a module for this node."""
        self._key = key
        self._network = network
        self._clock = clock
        self._entropy = entropy
        self._executor = executor
        self._caller = caller
        self._leases = leases
        self._sandbox = sandbox
        self._holders = Holders()
        self._log = log
        self._compile_ms = compile_ms
        self._panel = Panel(
            key=key, network=network, clock=clock, leases=leases, evidence=evidence, log=log
        )
        self._programs: Bounded[bytes, Program] = Bounded(PROGRAMS_REMEMBERED_MAX)
        self._quick = Quick()
        self._lost: Bounded[tuple[bytes, bytes], int] = Bounded(MODULES_REMEMBERED_MAX)
        """When this node heard of a worker lost, by provider and module."""
        self._signer = BatchSigner(key, network)
        self._provider = Provider(
            key=key,
            network=network,
            clock=clock,
            executor=executor,
            book=book,
            sandbox=sandbox,
            inputs=inputs,
            signer=self._signer,
            log=log,
        )
        self._streams = Streams(caller, clock, self._provider.tape_of)

    async def start(self) -> None:
        """Start the sandbox."""
        await self._sandbox.start()

    async def stop(self) -> None:
        """Stop the sandbox; orders that run are not answered."""
        await self._provider.stop()
        await self._sandbox.stop()

    def describe(self) -> dict[str, Value]:
        """Return what the sandbox says of itself."""
        return self._sandbox.describe()

    def handlers(self) -> dict[str, Handler]:
        """Return what peers may call."""
        return {**self._provider.handlers(), **self._streams.handlers()}

    # The customer's side

    async def invoke(
        self,
        module: bytes,
        function: str,
        arguments: Sequence[str],
        limits: Limits,
        *,
        on: bytes | None = None,
        local: bool = False,
        grants: Sequence[Grant] = (),
        quorum: Quorum | None = None,
    ) -> Execution:
        """Call an exported function with numbers.

        Args:
            module: the WebAssembly binary.
            function: the name of an export.
            arguments: texts, parsed by the function's signature.
            limits: what the run may use, and hence cost.
            on: the provider; None lets the market choose.
            local: run it here, ask nobody and pay nothing.
            grants: what the program may see of the provider's world; nobody can verify it then.
            quorum: have several providers run it, and believe and pay those that agree.

        Raises:
            ModuleInvalid, ExportUnknown, SignatureMismatch: it cannot run.
            NoOffers, PeerSilent, SandboxFailed: nobody ran it.
            ReceiptInvalid: the provider's receipt breaks a rule.
            NoAgreement: providers contradict each other.
        """
        program, digest = await self._inspect(module)
        signature = program.signature(function)
        numbers = parse_arguments(arguments, function, signature)
        task = _Task(
            module, digest, "invoke", function, numbers, signature.results, RunInput(), limits
        )
        done = await self._execute(_granting(task, grants), on=on, local=local, quorum=quorum)
        outcome = done.receipt.record.outcome
        return Execution(
            results=[format_number(number) for number in outcome.results],
            numbers=outcome.results,
            stdout=done.stdout,
            stderr=done.stderr,
            fuel_used=outcome.fuel_used,
            memory_peak_bytes=outcome.memory_peak_bytes,
            wall_ms=done.receipt.record.observed.wall_ms,
            provider=done.receipt.author,
            amount_micro=done.receipt.record.amount_micro,
            trap=trap_error(outcome.trap) if outcome.trap is not None else None,
            receipt=done.receipt.raw,
            saved_bytes=done.receipt.record.observed.saved_bytes,
            compiled_bytes=done.receipt.record.observed.compiled_bytes,
            verified=done.verified,
        )

    async def invoke_batch(
        self,
        module: bytes,
        function: str,
        calls: Sequence[Sequence[str]],
        limits: Limits,
        *,
        item_fuel: int | None = None,
        on: bytes | None = None,
        local: bool = False,
        grants: Sequence[Grant] = (),
    ) -> BatchExecution:
        """Call an exported function for each of many sets of arguments, under one order.

        Every call has an instance of its own; one that traps does not stop the others.

        Args:
            module, function, on, local, grants: as for `invoke`.
            calls: the arguments of each.
            limits: fuel and time are those of all calls together, memory that of each.
            item_fuel: most fuel of one call; all of the fuel where None.

        Raises:
            XscError: as `invoke`; nothing is run where one set of arguments is wrong.
        """
        program, digest = await self._inspect(module)
        signature = program.signature(function)
        if not signature.callable:
            parse_arguments((), function, signature)  # says why
        batches.check_size(len(calls), signature, limits.output_bytes)
        if item_fuel is not None and not 1 <= item_fuel <= limits.fuel:
            raise ArgumentInvalid(f"the fuel of one call must be from 1 to {limits.fuel}")
        shape = batches.Shape(len(calls), limits.fuel if item_fuel is None else item_fuel)
        table = await self._executor.run(batches.table_of, calls, function, signature)
        given = RunInput(args=shape.texts(), stdin=table)
        task = _Task(module, digest, "batch", function, (), (), given, limits, signature.results)
        done = await self._execute(_granting(task, grants), on=on, local=local)
        outcome = done.receipt.record.outcome
        items = [] if outcome.trap else await self._executor.run(_items, task, done)
        return BatchExecution(
            items=items,
            fuel_used=outcome.fuel_used,
            memory_peak_bytes=outcome.memory_peak_bytes,
            wall_ms=done.receipt.record.observed.wall_ms,
            provider=done.receipt.author,
            amount_micro=done.receipt.record.amount_micro,
            trap=trap_error(outcome.trap) if outcome.trap is not None else None,
            receipt=done.receipt.raw,
            saved_bytes=done.receipt.record.observed.saved_bytes,
            compiled_bytes=done.receipt.record.observed.compiled_bytes,
        )

    async def run(  # noqa: PLR0917 - a command has that many inputs
        self,
        module: bytes,
        args: Sequence[str],
        env: Mapping[str, str],
        stdin: bytes,
        files: Mapping[str, bytes],
        limits: Limits,
        *,
        on: bytes | None = None,
        local: bool = False,
        grants: Sequence[Grant] = (),
        quorum: Quorum | None = None,
        tape: Tape | None = None,
        objects: Sequence[InputObject] = (),
    ) -> RunExecution:
        """Run a WASI command. Input files are found at /in/NAME; errors as for `invoke`.

        So are objects; a provider that holds shards of one reads it itself.

        What it writes can be read from `tape` while it runs, and the run be cancelled there;
        not where several providers run it.

        Raises:
            ArgumentInvalid, TooLarge: an input is malformed or over a bound.
        """
        given = RunInput(
            tuple(args), tuple(sorted(env.items())), stdin, tuple(sorted(files.items()))
        )
        check_objects(given, objects)
        program, digest = await self._inspect(module)
        program.signature("_start")
        task = _Task(module, digest, "run", "_start", (), (), given, limits, tape=tape)
        if objects:
            task = replace(task, objects=tuple(objects))
        done = await self._execute(_granting(task, grants), on=on, local=local, quorum=quorum)
        outcome = done.receipt.record.outcome
        return RunExecution(
            exit_code=outcome.exit_code,
            stdout=done.stdout,
            stderr=done.stderr,
            files=dict(done.files),
            fuel_used=outcome.fuel_used,
            memory_peak_bytes=outcome.memory_peak_bytes,
            wall_ms=done.receipt.record.observed.wall_ms,
            provider=done.receipt.author,
            amount_micro=done.receipt.record.amount_micro,
            trap=trap_error(outcome.trap) if outcome.trap is not None else None,
            receipt=done.receipt.raw,
            saved_bytes=done.receipt.record.observed.saved_bytes,
            compiled_bytes=done.receipt.record.observed.compiled_bytes,
            verified=done.verified,
        )

    async def _inspect(self, module: bytes) -> tuple[Program, bytes]:
        """Return what a module declares and its hash; one that came lately is not read again."""
        digest = await run_sized(self._executor, len(module), digest_of, module)
        known = self._programs.get(digest)
        if known is None:
            known = await self._executor.run(read, module)
            self._programs.put(digest, known)
        return known, digest

    async def _execute(
        self, task: _Task, *, on: bytes | None, local: bool, quorum: Quorum | None = None
    ) -> Delivered:
        if quorum is not None:
            if local or on is not None:
                raise ArgumentInvalid("several providers cannot be one that is named")
            if task.grants:
                raise ArgumentInvalid("what is granted the real time or chance cannot be verified")
            return await self._verify(task, quorum)
        own = self._key.node_id
        if local or on == own:
            return await self._run_here(task)
        ordered: dict[bytes, Signed[Order]] = {}
        last: XscError | None = None
        # Where somebody has the module, it need not be paid for, as a rule.
        compiling = not self._holders.of(task.module_hash)
        for _ in range(PROVIDERS_TRIED_MAX):
            steps = task.steps(compiling=compiling)
            lease = await self._leases.lease_compute(
                fuel_steps=steps, on=on, saved=self._spared(task)
            )
            if lease.node == own:
                return await self._run_here(task)
            # Under the same lease the same order is asked for again: it is run once.
            if lease.lease_id not in ordered:
                ordered[lease.lease_id] = await self._order(task, lease.node, lease.lease_id)
            try:
                return await self._buy(task, lease, ordered[lease.lease_id])
            except (PeerSilent, SandboxFailed, RateLimited) as fault:
                self._log.warning(
                    "provider did not run the order", provider=lease.node.hex(), reason=fault.code
                )
                last = fault
                if task.tape is not None and task.tape.size_bytes:
                    break  # another run would not begin with what was shown
            except LeaseExhausted as fault:
                if compiling or lease.node not in task.brought_to:
                    raise
                compiling, last = True, fault
        assert last is not None
        raise last

    def _spared(self, task: _Task) -> Mapping[bytes, int]:
        """Return how much of a job each node has that has enough of it to matter."""
        if task.given_bytes < NEAR_BYTES_LEAST:
            return {}
        return spared(task.objects, len(task.module), self._holders.of(task.module_hash))

    async def _verify(self, task: _Task, quorum: Quorum) -> Delivered:
        """Have several providers run it."""

        async def order(lease: ComputeLease, like: Order | None) -> Signed[Order]:
            if like is None:
                return await self._order(task, lease.node, lease.lease_id)
            made = like.model_copy(update={"provider": lease.node, "lease_id": lease.lease_id})
            return sign(made, self._key, self._network)

        async def ask(lease: ComputeLease, signed: Signed[Order]) -> Delivered:
            return await self._ask(task, lease, signed)

        errand = Errand(task.steps(compiling=True), order, ask)
        done, verified = await self._panel.run(errand, quorum)
        return replace(done, verified=verified)

    async def _order(self, task: _Task, provider: bytes, lease_id: bytes) -> Signed[Order]:
        digest = await run_sized(
            self._executor,
            task.given.size_bytes,
            input_hash,
            task.given,
            task.limits.output_bytes,
            [(item.name, item.digest) for item in task.objects],
        )
        order = Order(
            nonce=self._entropy.token(_NONCE_BYTES),
            lease_id=lease_id,
            customer=self._key.node_id,
            provider=provider,
            module=task.module_hash,
            mode=task.mode,
            function=task.function,
            arguments=task.arguments,
            input=digest,
            fuel_max=task.limits.fuel,
            memory_bytes_max=task.limits.memory_bytes,
            timeout_ms=task.limits.timeout_ms,
            created_ms=self._clock.now_ms(),
            grants=task.grants,
            given_bytes=0 if lease_id == OWN_LEASE else task.given_bytes,
        )
        return await self._signer.sign(order)

    async def _run_here(self, task: _Task) -> Delivered:
        task = await _brought(task, task.objects)
        order = await self._order(task, self._key.node_id, OWN_LEASE)
        granted = Granted(task.module, task.given, task.limits.output_bytes, 0)
        return await self._provider.fulfil(order, granted, task.tape)

    async def _buy(self, task: _Task, lease: ComputeLease, order: Signed[Order]) -> Delivered:
        done = await self._ask(task, lease, order)
        receipt = done.receipt.record
        steps = billed_steps(order.record, receipt.outcome, receipt.observed)
        await self._leases.spent(lease.lease_id, steps, receipt.amount_micro)
        return done

    async def _ask(self, task: _Task, lease: ComputeLease, order: Signed[Order]) -> Delivered:
        """Return what a provider delivers, checked; nothing is paid."""
        tape = task.tape
        if tape is None:
            return await self._ask_quietly(task, lease, order)
        attending = asyncio.create_task(
            self._streams.attend(lease.node, order.record.nonce, tape, task.limits.output_bytes)
        )
        try:
            done = await self._ask_quietly(task, lease, order)
        finally:
            attending.cancel()
            await asyncio.gather(attending, return_exceptions=True)
        settle_tape(tape, done.stdout, done.stderr)
        return done

    async def _ask_quietly(
        self, task: _Task, lease: ComputeLease, order: Signed[Order]
    ) -> Delivered:
        timeout_ms = task.limits.timeout_ms + self._compile_ms + PEER_TIMEOUT_MS
        function = (task.module_hash, task.function)
        referred = referred_to(lease.node, task.objects)
        with_module = False
        reply: Reply | None = None
        while reply is None:
            header, parts = await self._pack(task, order, referred, with_module=with_module)
            try:
                if not with_module:
                    reply = await self._ask_shared(task, lease, header, parts)
                if reply is None:
                    reply = await self._caller.call(
                        lease.node, RUN, header, parts, timeout_ms=timeout_ms
                    )
            except ModuleUnknown:
                self._holders.forget(task.module_hash, lease.node)
                if with_module:
                    raise
                with_module = True
                task.brought_to.add(lease.node)
            except InputUnavailable:
                if not referred:
                    raise
                referred = []
        size_bytes = sum(len(part) for part in reply.parts)
        most = saved_max(lease.node, referred, 0 if with_module else len(task.module))
        done = await run_sized(
            self._executor, size_bytes, self._check_reply, task, lease, order, reply, most
        )
        self._holders.note(task.module_hash, lease.node)
        if done.receipt.record.outcome.trap == "worker_lost":
            self._lost.put((lease.node, task.module_hash), self._clock.now_ms())
        if task.mode == "invoke":
            receipt = done.receipt.record
            self._quick.took(function, receipt.outcome.fuel_used, receipt.observed.wall_ms)
        return done

    async def _pack(
        self,
        task: _Task,
        order: Signed[Order],
        referred: Sequence[InputObject],
        *,
        with_module: bool,
    ) -> tuple[dict[str, Value], list[Part]]:
        """Return the message that asks for an order, with all that the provider does not have.

        Raises:
            TooLarge: no message can hold it.
        """
        task = await _brought(task, [item for item in task.objects if item not in referred])
        header: dict[str, Value] = {
            "order": order.raw,
            "args": list(task.given.args),
            "environment": [[name, text] for name, text in task.given.environment],
            "files": [name for name, _ in task.given.files],
            "output_bytes": task.limits.output_bytes,
            "module": with_module,
            "stream": task.tape is not None,
            "objects": [item.name for item in referred],
        }
        bodies = [task.given.stdin, *(data for _, data in task.given.files)]
        bodies += [item.reference for item in referred]
        if sum(map(len, bodies)) + len(task.module) + _ROOM_BYTES > PEER_BODY_BYTES_MAX:
            raise TooLarge(
                f"module and input are over {PEER_BODY_BYTES_MAX - _ROOM_BYTES} bytes together",
                hint="run it on this node with --local",
            )
        if with_module:
            bodies.append(task.module)
        return header, await run_sized(self._executor, sum(map(len, bodies)), _bind, bodies)

    async def _ask_shared(
        self, task: _Task, lease: ComputeLease, header: dict[str, Value], parts: Sequence[Part]
    ) -> Reply | None:
        """Return the answer to a quick order, which may share its request; None: ask alone."""
        function = (task.module_hash, task.function)
        if task.mode != "invoke" or function not in self._quick:
            return None
        try:
            return await self._caller.call(
                lease.node, RUN, {**header, "patience_ms": PATIENCE_MS}, parts
            )
        except JobUnfinished:
            self._quick.failed(function)
            return None
        except PeerSilent:
            self._quick.failed(function)
            raise

    def _is_lost_again(self, provider: bytes, order: Order) -> bool:
        """Say whether an order was made after a worker was lost there by the same module."""
        heard_ms = self._lost.get((provider, order.module))
        return heard_ms is not None and (
            heard_ms < order.created_ms < heard_ms + MODULE_LOST_MS // 2
        )

    def _check_reply(
        self, task: _Task, lease: ComputeLease, order: Signed[Order], reply: Reply, saved_most: int
    ) -> Delivered:
        raw = take_bytes(reply.header, "receipt")
        names = take_texts(reply.header, "files", most=OUTPUT_FILES_MAX)
        if len(reply.parts) != 2 + len(names):
            raise ReceiptInvalid("the provider's answer lacks a part")
        if not all(map(is_output_path, names)) or len(set(names)) != len(names):
            raise ReceiptInvalid("the provider returned a file that no program can have left")
        bodies = [bytes(part) for part in reply.parts]
        done = Delivered(
            open_signed(raw, ExecutionReceipt, network=self._network, author=lease.node),
            bodies[0],
            bodies[1],
            tuple(zip(names, bodies[2:], strict=True)),
        )
        output = given_hash(task.mode, done.stdout, done.stderr, done.files)
        broken = check_receipt(
            order, done.receipt.record, lease.price, results=task.results, output=output
        )
        trap = done.receipt.record.outcome.trap
        if trap == "cancelled" and (task.tape is None or not task.tape.cancelled.is_set()):
            broken = "nobody has cancelled it"
        passed_ms = self._clock.now_ms() - order.record.created_ms
        if (
            trap in ("cancelled", "compile_limit")
            and done.receipt.record.observed.wall_ms > passed_ms
        ):
            broken = "it bills more time than has passed"
        if trap == "worker_lost" and self._is_lost_again(lease.node, order.record):
            broken = "the provider lost a worker by this module before, and ran it all the same"
        if broken is None:
            sent = lease.node in task.brought_to
            broken = check_compiled(done.receipt.record, len(task.module) if sent else 0)
        if broken is None and done.receipt.record.observed.calls != task.calls:
            broken = "it bills other calls than the batch has"
        if broken is None and done.receipt.record.observed.saved_bytes > saved_most:
            broken = "it says that bytes were saved which were sent, or which it cannot have had"
        if broken is None and sum(map(len, bodies)) > task.limits.output_bytes:
            broken = "more was delivered than the order allows"
        if broken is None and task.mode == "batch" and done.receipt.record.outcome.trap is None:
            _, fuel = _rows(task, done)
            if fuel != done.receipt.record.outcome.fuel_used:
                broken = "its fuel is not the sum of that of its calls"
        if broken is not None:
            raise ReceiptInvalid(f"the provider's receipt is refused: {broken}")
        return done


def _granting(task: _Task, grants: Sequence[Grant]) -> _Task:
    return replace(task, grants=tuple(sorted(set(grants)))) if grants else task


def _rows(task: _Task, done: Delivered) -> tuple[list[batches.Row], int]:
    try:
        return batches.read_rows(
            batches.shape_of(task.given.args),
            task.row,
            done.stdout,
            done.stderr,
            fuel=task.limits.fuel,
            timeout_ms=task.limits.timeout_ms,
            is_trap=is_trap,
        )
    except RecordInvalid as fault:
        raise ReceiptInvalid(f"the batch's results are refused: {fault.message}") from None


def _items(task: _Task, done: Delivered) -> list[Item]:
    rows, _ = _rows(task, done)
    return [
        Item(
            [format_bits(kind, bits) for kind, bits in row.results],
            row.fuel_used,
            trap_error(row.trap) if row.trap is not None else None,
        )
        for row in rows
    ]


async def _brought(task: _Task, objects: Sequence[InputObject]) -> _Task:
    """Return a task with these objects as files that are at hand."""
    if not objects:
        return task
    files = [*task.given.files, *[(item.name, await item.read()) for item in objects]]
    given = replace(task.given, files=tuple(sorted(files)))
    return replace(
        task, given=given, objects=tuple(item for item in task.objects if item not in objects)
    )


def _bind(bodies: Sequence[bytes]) -> list[Part]:
    return [Part(body, root_of(body)) for body in bodies]
