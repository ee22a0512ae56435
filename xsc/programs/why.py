"""Follows the records behind a value, and checks each: `xsc program why`.

Records of this node are read from its space, those of peers are asked for. Each is read once,
whoever names it, and all bounds are on their number: a peer decides what it has signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from xsc.api.programs import Provenance
from xsc.base.clock import Executor, InlineExecutor
from xsc.base.errors import ArgumentInvalid, NotFound, UnavailableError, XscError
from xsc.base.ids import short, to_text
from xsc.identity.envelope import Signed, open_signed
from xsc.programs.frame import Call, Fault
from xsc.programs.functions import Functions
from xsc.programs.limits import (
    ANCESTORS_MAX,
    WHY_DEPTH_MAX,
    WHY_LARGE_BYTES_MAX,
    WHY_LINKS_MAX,
    WHY_NODES_MAX,
    WHY_PARTS_MAX,
    WHY_READS_MAX,
)
from xsc.programs.numbers import Value, format_value
from xsc.programs.proof import (
    call_of,
    check_record,
    fault_of_link,
    fault_of_source,
    fault_of_value,
    is_module,
    judge_results,
    kept_value,
    rerun,
    value_in,
)
from xsc.programs.provenance import (
    ProvenanceInput,
    ProvenanceOutput,
    ProvenanceRecord,
    event_of,
)
from xsc.space.paths import UserSpacePaths
from xsc.space.record import (
    RECORD_ENVELOPE_BYTES_MAX,
    Entry,
    SpaceRecord,
    check_value,
    value_digest,
)
from xsc.terms.execution import Number

Read = Callable[[bytes, str], Awaitable[Entry]]
"""Returns what is at a path of an owner; raises NotFound, or UnavailableError."""
Rerun = Callable[[Call], Awaitable["tuple[Number, ...] | Fault | None"]]
"""Calls a module; None where it is not here."""
Parts = Callable[[bytes], "Sequence[tuple[bytes, str, bytes, bytes]]"]
"""Returns what a value that a node gave to its own program was gathered from: owner, path, the
record of the space and its value. Raises XscError where the bytes are no such value."""
_STANDS = {"value": "stands in the program", "default": "the default", "set": "set by the user"}


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
    return None if value is None else format_value(part.type, value)


class Why:
    """One walk from a value to all that is behind it."""

    def __init__(
        self,
        read: Read,
        network: bytes,
        parts: Parts = lambda _: (),
        executor: Executor | None = None,
    ) -> None:
        self._read = read
        self._network = network
        self._parts = parts
        self._executor = executor or InlineExecutor()
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
            raise NotFound(f"nothing is at '{path}' of {short(owner)}", hint="see `xsc space ls`")
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
        if self._reads > WHY_READS_MAX:
            return None
        try:
            return await self._read(owner, path)
        except (NotFound, UnavailableError):
            return None

    async def _record(self, owner: bytes, path: str) -> Signed[ProvenanceRecord] | str:
        """Return the record at a path of an owner, or why there is none that counts."""
        entry = await self._get(owner, path)
        if entry is None or entry.value is None:
            return "gone"
        try:
            return check_record(entry.value, network=self._network, author=owner)
        except XscError as fault:
            return f"forged: {fault.message}"

    async def _published(self, owner: bytes, path: str, digest: bytes) -> Step | str:
        """Return the step of a value at a path; why there is none, or '' without a program."""
        pointer = await self._get(owner, UserSpacePaths.writer(path))
        if pointer is None or pointer.value is None or len(pointer.value) != 32:
            return ""
        program, wrong = pointer.value, "gone"
        events = [event_of(("", path), number) for number in range(1 + ANCESTORS_MAX)]
        paths = [UserSpacePaths.provenance(program, event) for event in events]
        found = await asyncio.gather(*(self._record(owner, place) for place in paths))
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
            if len(self._steps) > WHY_LINKS_MAX:
                step.holds, step.note = False, f"not followed: over {WHY_LINKS_MAX} records"
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
        program, place = step.signed.record.program, given.source.place
        try:
            if given.source.kind == "given":
                path = UserSpacePaths.variable(program, place)
            elif given.source.kind == "computation":
                path = UserSpacePaths.result(program, place.rpartition(".")[0])
            else:
                return None
        except ArgumentInvalid:
            return None
        entry = await self._get(step.owner, path)
        raw = None if entry is None else entry.value
        if raw is None or self._large_bytes + len(raw) > WHY_LARGE_BYTES_MAX:
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
                left = WHY_PARTS_MAX - self._parts_checked
                found = await self._executor.run(self._check_parts, whole, left)
                if found is not None:
                    self._checked[given.digest] = found
                    self._parts_checked += len(found)
        if found is None:
            leaf.holds, leaf.note = False, f"not followed: over {WHY_PARTS_MAX} values"
        else:
            leaf.inputs = found
        return leaf

    def _check_parts(self, whole: bytes, left: int) -> list[tuple[str, Step]] | None:
        """Return what a value was gathered from, each part checked; None where it is too much."""
        if left <= 0:
            return None
        try:
            parts = self._parts(whole)
        except XscError:
            return []  # gathered from no space
        if len(parts) > left:
            return None
        return [(short(part[0]), self._check_part(*part)) for part in parts]

    def _check_part(self, owner: bytes, path: str, record: bytes, value: bytes) -> Step:
        part = Step(owner, path, value_digest(value).hex())
        try:
            signed = open_signed(
                record,
                SpaceRecord,
                network=self._network,
                author=owner,
                size_max=RECORD_ENVELOPE_BYTES_MAX,
            )
            check_value(signed.record, value)
            part.note = f"number {signed.record.sequence}"
            if signed.record.path != path:
                part.holds, part.note = False, f"forged: a record of '{signed.record.path}'"
        except XscError as fault:
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
            signed = await self._record(owner, UserSpacePaths.provenance(link.program, link.event))
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


async def replay(root: Step, functions: Functions, call: Rerun, executor: Executor) -> None:
    """Run every function and module of a tree again, and note whether it gives the same bits."""
    for step in steps_of(root):
        if step.signed is None:
            continue
        record = step.signed.record
        proven: bool | None
        if not is_module(record, functions):
            # Beside the event loop: a peer has chosen the inputs of its records.
            proven, note = await executor.run(partial(rerun, record, functions, step.large))
        else:
            proven, note = await _rerun_module(record, call)
        step.replayed = proven
        if note:
            step.note = f"{step.note}; {note}" if step.note else note


async def _rerun_module(record: ProvenanceRecord, call: Rerun) -> tuple[bool | None, str]:
    wanted = call_of(record)
    if isinstance(wanted, str):
        return None, wanted
    results = await call(wanted)
    if results is None:
        return None, f"module {record.version.hex()[:16]} is not here"
    if isinstance(results, Fault):
        return False, f"the module fails on these inputs: {results.message}"
    return judge_results(record, results)


def shown(root: Step) -> Provenance:
    """Return a tree as it is shown: so deep, and so many steps, at most."""
    left = WHY_NODES_MAX

    def one(step: Step, name: str, *, cut: bool) -> Provenance:
        record = None if step.signed is None else step.signed.record
        return Provenance(
            path=step.path,
            owner=to_text(step.owner),
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
    for depth in range(1, WHY_DEPTH_MAX + 1):
        deeper = []
        for step, name, beside in level:
            taken = 0 if depth == WHY_DEPTH_MAX else min(left, len(step.inputs))
            left -= taken
            made = one(step, name, cut=taken < len(step.inputs))
            beside.append(made)
            deeper += [(behind, each, made.inputs) for each, behind in step.inputs[:taken]]
        level = deeper
    return top[0]
