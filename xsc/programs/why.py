"""What provenance records prove, and the walk along them: `xsc program why`.

That signatures and hashes hold says who claims what. That a function gives what its node
claims is proven by `rerun` alone (docs/design/programs.md, P4 to P8). Records of this node are
read from its space, those of peers are asked for. Each is read once, whoever names it, and all
bounds are on their number: a peer decides what it has signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from xsc.api.programs import Provenance
from xsc.base import clock, encoding, errors, ids
from xsc.identity.envelope import Signed, open_signed
from xsc.programs import document, limits, numbers
from xsc.programs.frame import Call, Fault, Given, given_to, result_as, results_in
from xsc.programs.functions import Functions
from xsc.programs.numbers import Value, digest_of, value_bytes
from xsc.programs.provenance import ProvenanceInput, ProvenanceOutput, ProvenanceRecord, event_of
from xsc.space import record as space_record
from xsc.space.paths import UserSpacePaths, below
from xsc.space.record import Entry, SpaceRecord, value_digest
from xsc.terms.execution import ExecutionReceipt, Order

Read = Callable[[bytes, str], Awaitable[Entry]]
"""Returns what is at a path of an owner; raises NotFound, or UnavailableError."""
Rerun = Callable[[Call], Awaitable["Given | Fault | None"]]
"""Calls a module; None where it is not here."""
Parts = Callable[[bytes], "Sequence[tuple[bytes, str, bytes, bytes]]"]
"""Returns what a value that a node gave to its own program was gathered from: owner, path, the
record of the space and its value. Raises XscError where the bytes are no such value."""
_STANDS = {"value": "stands in the program", "default": "the default", "set": "set by the user"}


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise errors.ProofInvalid(fault)


def value_in(part: ProvenanceInput | ProvenanceOutput) -> Value | None:
    """Return the value of an input or output; None where the record has its hash alone.

    Raises:
        ProofInvalid: it is not of the type, or has another hash.
    """
    if part.value is None:
        return None
    _require(digest_of(part.value) == part.digest, f"'{part.name}' has another hash than its value")
    try:
        found: Any = encoding.decode(part.value)
        _require(
            isinstance(found, list) and len(found) == 2 and found[0] == part.type,
            f"the value of '{part.name}' is not of its type",
        )
        return numbers.from_record(part.type, found[1])
    except errors.XscError as fault:
        raise errors.ProofInvalid(f"the value of '{part.name}': {fault.message}") from None


def check_record(
    raw: bytes, *, network: bytes | None = None, author: bytes | None = None
) -> Signed[ProvenanceRecord]:
    """Return a provenance record, once all that it says of itself holds.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: as `open_signed`.
        ProofInvalid: it contradicts itself.
    """
    signed = open_signed(
        raw, ProvenanceRecord, network=network, author=author, size_max=limits.PROVENANCE_BYTES_MAX
    )
    record, output = signed.record, signed.record.output
    names = {item.name for item in record.inputs}
    _require(len(names) == len(record.inputs), "an input is there twice")
    for item in record.inputs:
        value_in(item)
        stands = item.source.kind in {"value", "default", "set", "given"}
        _require(not (stands and item.parents), f"'{item.name}' has parents, and is no output")
    _require(bool(output.path) == (output.published is not None), "the output has no path")
    found = value_in(output)
    if found is not None and output.path:
        published = value_digest(numbers.to_space(output.type, found))
        _require(published == output.published, "another value was published than the output")
    if record.receipt is not None:
        _check_receipt(signed, record.receipt)
    return signed


def _open_receipt(
    raw: bytes, network: bytes | None
) -> tuple[Signed[ExecutionReceipt], Signed[Order]]:
    most = limits.PROVENANCE_BYTES_MAX
    receipt = open_signed(raw, ExecutionReceipt, network=network, size_max=most)
    return receipt, open_signed(receipt.record.order, Order, network=network, size_max=most)


def _check_receipt(signed: Signed[ProvenanceRecord], raw: bytes) -> None:
    """Refuse a receipt that is not of this run."""
    record = signed.record
    receipt, order = _open_receipt(raw, signed.network)
    outcome = receipt.record.outcome
    _require(
        (order.record.provider, order.record.customer) == (receipt.author, signed.author)
        and order.author == signed.author,
        "the receipt is of a run for another node",
    )
    _require(
        (outcome.module, outcome.function, outcome.trap) == (record.version, record.function, None)
        and (order.record.module, order.record.function) == (record.version, record.function),
        "the receipt is of another function",
    )
    if record.function == document.FILTER:
        ended = (outcome.mode, outcome.exit_code, outcome.input)
        wanted = ("run", 0, order.record.input)
        _require(ended == wanted, "the receipt is of a run that did not end well")
        return  # what it read and wrote, a second run alone shows
    given = given_of(record, {})
    _require(
        given is None or tuple(outcome.arguments) == given == order.record.arguments,
        "the receipt is of other inputs",
    )
    _require(_gives(record, outcome.results), "the receipt has another result")


def _gives(record: ProvenanceRecord, found: Given) -> bool:
    """Say whether the results of a module are the output of a record."""
    output = record.output
    try:
        value = result_as(output.type, results_in(found)[output.result])
    except (errors.XscError, IndexError):
        return False
    return digest_of(value_bytes(output.type, value)) == output.digest


def given_of(record: ProvenanceRecord, large: Mapping[str, Value]) -> Given | None:
    """Return the inputs of a record as its module takes them; None where one is not known.

    Raises:
        ProofInvalid: an export takes no value of such a type.
    """
    call = document.ModuleCall(record.version, record.function)
    values = _values_of(record, large)
    for item in record.inputs:
        takes = call.is_filter or item.type in numbers.EXPORTED
        _require(takes, f"an export takes no {item.type}")
    if None in values:
        return None
    return given_to(call, zip((item.type for item in record.inputs), values, strict=True))  # type: ignore[arg-type]


def _values_of(record: ProvenanceRecord, large: Mapping[str, Value]) -> list[Value | None]:
    """Return the inputs of a record; None for those of which it has the hash, if not among them."""
    return [
        large.get(item.name) if item.value is None else value_in(item) for item in record.inputs
    ]


def fault_of_link(
    signed: Signed[ProvenanceRecord], given: ProvenanceInput, behind: Signed[ProvenanceRecord]
) -> str:
    """Return why a record is not the parent of an input of another, or '' where it is.

    Both were checked alone.
    """
    child, parent = signed.record, behind.record
    source, output = given.source, parent.output
    if behind.author != (source.owner or signed.author):
        return "a record of another node than its source"
    if source.kind == "space":
        if (output.path, output.published) != (source.place, source.value):
            return "another output, or another value of it"
        published = value_in(output)
        if published is None:
            return ""
        return fault_of_value(given, numbers.to_space(output.type, published))
    if parent.program != child.program:
        return "an output of another program"
    if source.kind == "computation":
        if f"{parent.computation}.{output.name}" != source.place:
            return "another output"
        return "" if output.digest == given.digest else "another value of it"
    if output.local != source.place:
        return "an output that is not kept in this variable"
    if output.digest == given.digest:
        return ""
    kept, item = value_in(given), numbers.item_of(given.type)
    items = kept if isinstance(kept, tuple) else ()
    digests = {digest_of(value_bytes(item or "", value)) for value in items}
    return "" if kept is None or output.digest in digests else "a value that it does not keep"


def fault_of_value(given: ProvenanceInput, raw: bytes) -> str:
    """Return why an input is not what a record in the space has, or '' where it is."""
    return "" if kept_value(given, raw) is not None else "another value than its record has"


def fault_of_source(given: ProvenanceInput, entry: Signed[SpaceRecord]) -> str:
    """Return what an input's source says falsely of the record that is now at its path, or ''.

    An older record is gone: nothing is left to compare.
    """
    source, record = given.source, entry.record
    if record.sequence > source.sequence and entry.id != source.record:
        return ""
    same = (entry.id, record.sequence, record.digest)
    named = (source.record, source.sequence, source.value)
    return "" if same == named else "another record than at its path"


def kept_value(given: ProvenanceInput, raw: bytes) -> Value | None:
    """Return the value of an input from its bytes in a space; None where they are another value."""
    try:
        value = numbers.from_space(given.type, raw)
    except errors.ArgumentInvalid:
        return None
    return value if digest_of(value_bytes(given.type, value)) == given.digest else None


def rerun(
    record: ProvenanceRecord, functions: Functions, large: Mapping[str, Value]
) -> tuple[bool | None, str]:
    """Return whether a function gives the output again, and why that cannot be said.

    Args:
        record: of the output.
        functions: those that are here.
        large: inputs of which the record has the hash alone, as far as they are known.
    """
    try:
        function = functions.get(record.function)
    except errors.ProgramInvalid as fault:
        return None, fault.message
    if function.hash != record.version:
        return None, f"this node has another version of {record.function}"
    values = _values_of(record, large)
    if None in values:
        return None, "an input is too large to be in the record, and is not kept any more"
    try:
        bound, type_ = function.bind({item.name: item.type for item in record.inputs})
        given = {item.name: value for item, value in zip(record.inputs, values, strict=True)}
        found = function.run(bound, *(given[name] for name in function.order(given)))
        made = digest_of(value_bytes(type_, numbers.check_value(type_, found)))
    except (errors.XscError, ArithmeticError, LookupError, TypeError, ValueError) as fault:
        return False, f"{record.function} fails on these inputs: {fault}"
    if (type_, made) != (record.output.type, record.output.digest):
        return False, f"{record.function} gives another value"
    return True, ""


def call_of(record: ProvenanceRecord, large: Mapping[str, Value]) -> Call | str:
    """Return the call of a module that gives an output again, or why there is none."""
    given = given_of(record, large)
    if given is None:
        return "an input is too large to be in the record"
    bounds: dict[str, int] = {}
    if record.receipt is not None:
        order = _open_receipt(record.receipt, None)[1].record
        bounds = {
            "fuel": order.fuel_max,
            "memory_bytes": order.memory_bytes_max,
            "timeout_ms": order.timeout_ms,
        }
    call = document.ModuleCall(record.version, record.function, **bounds)
    return Call(record.computation, call, given)


@dataclass(eq=False)
class Step:
    """A value with what is behind it."""

    owner: bytes
    path: str
    value: str | None
    note: str = ""
    """What is wrong, or what it is."""
    holds: bool = True
    """Whether its own signatures and hashes hold, whatever is behind it."""
    signed: Signed[ProvenanceRecord] | None = None
    inputs: list[tuple[str, Step]] = field(default_factory=list)
    verified: bool | None = None
    """Whether it and all behind it hold."""
    replayed: bool | None = None
    large: dict[str, Value] = field(default_factory=dict)
    """Inputs of which its record has the hash alone, where they are kept beside it."""


def _text(part: ProvenanceInput | ProvenanceOutput) -> str | None:
    value = value_in(part)
    return None if value is None else numbers.format_value(part.type, value)


class Why:
    """One walk from a value to all that is behind it."""

    def __init__(
        self,
        read: Read,
        network: bytes,
        parts: Parts = lambda _: (),
        executor: clock.Executor | None = None,
    ) -> None:
        self._read = read
        self._network = network
        self._parts = parts
        self._executor = executor or clock.InlineExecutor()
        self._steps: dict[bytes, Step] = {}
        """By the id of a record."""
        self._next: list[Step] = []
        self._reads = 0
        self._large_bytes = 0
        self._parts_checked = 0
        self._checked: dict[bytes, list[tuple[str, Step]]] = {}
        """What values were gathered from, by their hash: many inputs may name one."""
        self._checking = asyncio.Lock()

    async def walk(self, owner: bytes, path: str) -> Step:
        """Return the value at a path, with all that is behind it, and whether it is verified.

        Raises:
            NotFound: there is no value.
        """
        entry = await self._read(owner, path)
        digest = entry.signed.record.digest
        if entry.value is None or digest is None:
            raise errors.NotFound(
                f"nothing is at '{path}' of {ids.short(owner)}", hint="see `xsc space ls`"
            )
        root = await self._published(owner, path, digest)
        if isinstance(root, str):
            shown = entry.value.decode(errors="replace")
            root = Step(owner, path, shown, root or "no program's output", holds=not root)
        while self._next:
            level, self._next = self._next, []
            await asyncio.gather(*map(self._expand, level))
        _judge(root)
        return root

    async def _get(self, owner: bytes, path: str) -> Entry | None:
        self._reads += 1
        if self._reads > limits.WHY_READS_MAX:
            return None
        try:
            return await self._read(owner, path)
        except (errors.NotFound, errors.UnavailableError):
            return None

    async def _record(
        self, owner: bytes, program: bytes, event: bytes
    ) -> Signed[ProvenanceRecord] | str:
        """Return the record of a program's event at an owner, or why there is none that counts."""
        entry = await self._get(owner, below(UserSpacePaths.PROVENANCE, program, event))
        if entry is None or entry.value is None:
            return "gone"
        try:
            return check_record(entry.value, network=self._network, author=owner)
        except errors.XscError as fault:
            return f"forged: {fault.message}"

    async def _published(self, owner: bytes, path: str, digest: bytes) -> Step | str:
        """Return the step of a value at a path; why there is none, or '' without a program."""
        pointer = await self._get(owner, UserSpacePaths.writer(path))
        if pointer is None or pointer.value is None or len(pointer.value) != 32:
            return ""
        program, wrong = pointer.value, "gone"
        events = [event_of(("", path), number) for number in range(1 + limits.ANCESTORS_MAX)]
        found = await asyncio.gather(*(self._record(owner, program, event) for event in events))
        fitting = []
        for signed in found:
            if isinstance(signed, str):
                wrong = signed if signed != "gone" else wrong
            elif (signed.record.output.path, signed.record.output.published) == (path, digest):
                fitting.append(signed)
        if not fitting:
            return wrong
        return self._step(max(fitting, key=lambda signed: signed.record.frame))

    def _step(self, signed: Signed[ProvenanceRecord]) -> Step:
        if signed.id not in self._steps:
            output = signed.record.output
            path = output.path or f"{signed.record.computation}.{output.name}"
            step = Step(signed.author, path, _text(output), signed=signed)
            self._steps[signed.id] = step
            if len(self._steps) > limits.WHY_LINKS_MAX:
                step.holds, step.note = False, f"not followed: over {limits.WHY_LINKS_MAX} records"
            else:
                self._next.append(step)
        return self._steps[signed.id]

    async def _expand(self, step: Step) -> None:
        assert step.signed is not None
        record = step.signed.record
        found = await asyncio.gather(*(self._inputs(step, given) for given in record.inputs))
        for given, steps in zip(record.inputs, found, strict=True):
            step.inputs += [(given.name, one) for one in steps]

    async def _inputs(self, step: Step, given: ProvenanceInput) -> Sequence[Step]:
        assert step.signed is not None
        source, owner = given.source, step.owner

        def leaf(note: str, *, holds: bool) -> Step:
            return Step(
                source.owner or owner, source.place or given.name, _text(given), note, holds
            )

        if given.value is None and (whole := await self._whole(step, given)) is not None:
            step.large[given.name] = whole
        if source.kind == "given":
            return [await self._gathered(leaf("given by the node", holds=True), step, given)]
        if source.kind in _STANDS:
            return [leaf(_STANDS[source.kind], holds=True)]
        entry = None
        if source.owner is not None:
            entry = await self._get(source.owner, source.place)
            wrong = "" if entry is None else fault_of_source(given, entry.signed)
            if wrong:
                return [leaf(f"not verified: {wrong}", holds=False)]
        if given.parents:
            return [await self._parent(step, given, index) for index in range(len(given.parents))]
        if source.kind == "computation":
            return [leaf("gone", holds=False)]
        if source.kind == "local":
            return [leaf("kept from before the records", holds=True)]
        assert source.owner is not None
        assert source.value is not None
        found = await self._published(source.owner, source.place, source.value)
        if isinstance(found, Step):
            assert found.signed is not None
            wrong = fault_of_link(step.signed, given, found.signed)
            return [leaf(f"forged: {wrong}", holds=False) if wrong else found]
        if found:
            return [leaf(found, holds=False)]
        if entry is None or entry.value is None or entry.signed.id != source.record:
            return [leaf("gone", holds=False)]
        wrong = fault_of_value(given, entry.value)
        return [leaf(f"forged: {wrong}" if wrong else "", holds=not wrong)]

    async def _whole(self, step: Step, given: ProvenanceInput) -> Value | None:
        """Return an input that is too large for its record, from what its program keeps."""
        assert step.signed is not None
        program, source = step.signed.record.program, given.source
        try:
            if source.kind == "given":
                path = UserSpacePaths.variable(program, source.place)
            elif source.kind == "computation":
                path = UserSpacePaths.result(program, source.place.rpartition(".")[2])
                for link in given.parents:
                    behind = await self._record(step.owner, link.program, link.event)
                    if not isinstance(behind, str) and behind.record.output.path:
                        path = behind.record.output.path
            else:
                return None
        except errors.ArgumentInvalid:
            return None
        entry = await self._get(step.owner, path)
        raw = None if entry is None else entry.value
        if raw is None or self._large_bytes + len(raw) > limits.WHY_LARGE_BYTES_MAX:
            return None
        self._large_bytes += len(raw)
        return await self._executor.run(kept_value, given, raw)

    async def _gathered(self, leaf: Step, step: Step, given: ProvenanceInput) -> Step:
        """Put behind a value that a node gave itself what it was gathered from, all checked."""
        whole = step.large.get(given.name) if given.value is None else value_in(given)
        if not isinstance(whole, bytes):
            return leaf
        # One at a time, beside the event loop: a peer has chosen how many parts there are.
        async with self._checking:
            found = self._checked.get(given.digest)
            if found is None:
                left = limits.WHY_PARTS_MAX - self._parts_checked
                found = await self._executor.run(self._check_parts, whole, left)
                if found is not None:
                    self._checked[given.digest] = found
                    self._parts_checked += len(found)
        if found is None:
            leaf.holds, leaf.note = False, f"not followed: over {limits.WHY_PARTS_MAX} values"
        else:
            leaf.inputs = found
        return leaf

    def _check_parts(self, whole: bytes, left: int) -> list[tuple[str, Step]] | None:
        """Return what a value was gathered from, each part checked; None where it is too much."""
        if left <= 0:
            return None
        try:
            parts = self._parts(whole)
        except errors.XscError:
            return []  # gathered from no space
        if len(parts) > left:
            return None
        return [(ids.short(part[0]), self._check_part(*part)) for part in parts]

    def _check_part(self, owner: bytes, path: str, record: bytes, value: bytes) -> Step:
        part = Step(owner, path, value_digest(value).hex())
        try:
            signed = open_signed(
                record,
                SpaceRecord,
                network=self._network,
                author=owner,
                size_max=SpaceRecord.ENVELOPE_BYTES_MAX,
            )
            space_record.check_value(signed.record, value)
            part.note = f"number {signed.record.sequence}"
            if signed.record.path != path:
                part.holds, part.note = False, f"forged: a record of '{signed.record.path}'"
        except errors.XscError as fault:
            part.holds, part.note = False, f"forged: {fault.message}"
        return part

    async def _parent(self, step: Step, given: ProvenanceInput, index: int) -> Step:
        assert step.signed is not None
        link = given.parents[index]
        owner, path = step.owner, given.source.place
        known = self._steps.get(link.record)
        signed: Signed[ProvenanceRecord] | str
        if known is not None and known.signed is not None and known.owner == owner:
            signed = known.signed
        else:
            signed = await self._record(owner, link.program, link.event)
        if not isinstance(signed, str) and signed.id != link.record:
            signed = "gone"
        if isinstance(signed, str):
            return Step(owner, path, _text(given), signed, holds=False)
        if wrong := fault_of_link(step.signed, given, signed):
            return Step(owner, path, _text(given), f"forged: {wrong}", holds=False)
        return self._step(signed)


def _judge(root: Step) -> None:
    """Say of each step whether it and all behind it hold; what is behind itself does not."""
    stack: list[tuple[Step, Iterator[tuple[str, Step]]]] = [(root, iter(root.inputs))]
    open_ = {root}
    while stack:
        step, rest = stack[-1]
        for _, behind in rest:
            if behind in open_:
                behind.holds, behind.note = False, "a circle: it is behind itself"
            elif behind.verified is None:
                open_.add(behind)
                stack.append((behind, iter(behind.inputs)))
                break
        else:
            stack.pop()
            open_.discard(step)
            step.verified = step.holds and all(one.verified for _, one in step.inputs)


def steps_of(root: Step) -> list[Step]:
    """Return every step of a tree once, the root first."""
    found, seen = [root], {root}
    for step in found:
        for _, behind in step.inputs:
            if behind not in seen:
                seen.add(behind)
                found.append(behind)
    return found


async def replay(root: Step, functions: Functions, call: Rerun, executor: clock.Executor) -> None:
    """Run every function and module of a tree again, and note whether it gives the same bits."""
    for step in steps_of(root):
        if step.signed is None:
            continue
        record = step.signed.record
        proven: bool | None
        if record.receipt is None and functions.has(record.function):
            # Beside the event loop: a peer has chosen the inputs of its records.
            proven, note = await executor.run(partial(rerun, record, functions, step.large))
        else:
            proven, note = await _rerun_module(step, call)
        step.replayed = proven
        if note:
            step.note = f"{step.note}; {note}" if step.note else note


async def _rerun_module(step: Step, call: Rerun) -> tuple[bool | None, str]:
    assert step.signed is not None
    record = step.signed.record
    wanted = call_of(record, step.large)
    if isinstance(wanted, str):
        return None, wanted
    results = await call(wanted)
    if results is None:
        return None, f"module {record.version.hex()[:16]} is not here"
    if isinstance(results, Fault):
        return False, f"the module fails on these inputs: {results.message}"
    return (True, "") if _gives(record, results) else (False, "the module gives another value")


def shown(root: Step) -> Provenance:
    """Return a tree as it is shown: so deep, and so many steps, at most."""
    left = limits.WHY_NODES_MAX

    def one(step: Step, name: str, *, cut: bool) -> Provenance:
        record = None if step.signed is None else step.signed.record
        return Provenance(
            path=step.path,
            owner=ids.to_text(step.owner),
            input=name,
            value=step.value,
            verified=bool(step.verified),
            function=None if record is None else record.function,
            version=None if record is None else record.version.hex(),
            replayed=step.replayed,
            note="; ".join(filter(None, [step.note, "more is behind it" if cut else ""])),
            inputs=[],
        )

    # The nearest come first, so that a wide tree is cut at its far end.
    top: list[Provenance] = []
    level = [(root, "", top)]
    for depth in range(1, limits.WHY_DEPTH_MAX + 1):
        deeper = []
        for step, name, beside in level:
            taken = 0 if depth == limits.WHY_DEPTH_MAX else min(left, len(step.inputs))
            left -= taken
            made = one(step, name, cut=taken < len(step.inputs))
            beside.append(made)
            deeper += [(behind, each, made.inputs) for each, behind in step.inputs[:taken]]
        level = deeper
    return top[0]
