"""Provenance: the signed record of what gave a value, and who makes and keeps such records.

Each output has a record of its own. It names program, frame, function, and every input by its
hash and by where it came from; inputs that are outputs themselves are linked to their records.
So records form a chain. A signature says that a node computed this; only a second run proves
that the function gives it (docs/design/programs.md, P1 to P9).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from xsc.base import encoding, errors
from xsc.base.limits import JOINT_RECORDS_MAX
from xsc.identity.envelope import Count, Id32, Record, Signed, open_signed, seal
from xsc.identity.keys import KeyPair
from xsc.programs import document, limits, numbers
from xsc.programs.compile import CompiledProgram, Published, Read, Step
from xsc.programs.frame import FrameResult
from xsc.space.paths import UserSpacePaths, below
from xsc.space.port import Space
from xsc.space.record import SpaceRecord, value_digest

Sources: TypeAlias = "Mapping[str, tuple[bytes, Signed[SpaceRecord]]]"
"""By variable, the owner and the record in a space that it has its value of."""

Name = Annotated[str, Field(max_length=1024)]


class Source(Record):
    """Where an input came from. `place` is a path, `COMPUTATION.OUTPUT`, or a local variable."""

    KIND: ClassVar[str] = "program_source"

    kind: Literal["value", "default", "set", "given", "space", "computation", "local"]
    """`value` and `default` stand in the program; `set` was set by the node's user, and `given`
    by the node itself."""
    place: Name = ""
    owner: Id32 | None = None
    """Whose space."""
    sequence: Count = 0
    record: Id32 | None = None
    """Id of the record in the space that had the value."""
    value: Id32 | None = None
    """The hash by which that record names its value."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        found = {item is None for item in (self.owner, self.record, self.value)}
        if found != {self.kind != "space"}:
            raise ValueError("an input from the space has an owner and a record, others have none")
        return self


class Link(Record):
    """A provenance record of the same node."""

    KIND: ClassVar[str] = "program_link"

    program: Id32
    event: Id32
    """Where it is kept."""
    record: Id32
    """Its id."""


class ProvenanceInput(Record):
    """One input of a computation."""

    KIND: ClassVar[str] = "program_input"

    name: Name
    type: Literal[numbers.TYPES]  # type: ignore[valid-type]
    digest: Id32
    value: Annotated[bytes, Field(max_length=limits.INPUT_INLINE_BYTES_MAX)] | None
    """Canonical bytes of type and value, where they are few."""
    source: Source
    parents: Annotated[tuple[Link, ...], Field(max_length=limits.ANCESTORS_MAX)]
    """Records of the outputs that it is, or whose values a local variable keeps."""


class ProvenanceOutput(Record):
    """The output that a record is about, and where it went."""

    KIND: ClassVar[str] = "program_output"

    name: Name
    type: Literal[numbers.TYPES]  # type: ignore[valid-type]
    digest: Id32
    value: Annotated[bytes, Field(max_length=limits.INPUT_INLINE_BYTES_MAX)] | None
    path: Name
    """A path of the own space, or ''."""
    published: Id32 | None
    """The hash by which the record at the path names its value; None without a path."""
    local: Name
    """A local variable, or ''."""
    result: Annotated[int, Field(ge=0, lt=2**16)]
    """Which result of a module."""


class ProvenanceRecord(Record):
    """Signed by the node that ran a computation: what gave one of its outputs."""

    KIND: ClassVar[str] = "provenance"

    program: Id32
    frame: Count
    computation: Name
    function: Name
    """The name of a function, or the export of a module."""
    version: Id32
    """The hash of the function, or SHA-256 of the module."""
    inputs: Annotated[tuple[ProvenanceInput, ...], Field(max_length=limits.INPUTS_MAX)]
    """In the order in which the function takes them."""
    output: ProvenanceOutput
    receipt: Annotated[bytes, Field(max_length=limits.PROVENANCE_BYTES_MAX)] | None
    """The signed execution receipt of a module's run; None for a function."""


def event_of(place: tuple[str, str], number: int) -> bytes:
    """Return under which event the space keeps one of the records of an output, 32 bytes.

    Args:
        place: computation and output; of an output with a path, "" and the path, so that who knows
            the path alone finds its records.
        number: which of the records that are kept.
    """
    return encoding.tagged_sha256("provenance_event", encoding.encode([*place, number]))


def place_of(computation: str, output: Published | ProvenanceOutput) -> tuple[str, str]:
    """Return the place of an output, as `event_of` takes it."""
    return ("", output.path) if output.path else (computation, output.name)


def kept_of(outputs: int) -> int:
    """Return how many records each of a program's outputs keeps: fewer where there are many."""
    return max(1, min(1 + limits.ANCESTORS_MAX, limits.PROVENANCE_RECORDS_MAX // max(1, outputs)))


@dataclass(frozen=True, slots=True)
class _Known:
    """A record of an output: the newest, or one of its ancestors."""

    link: Link
    number: int
    frame: int
    digest: bytes
    published: bytes | None


class _Chains:
    """The records that one program keeps, by place, the newest last."""

    def __init__(self, program: CompiledProgram) -> None:
        outputs = [(step.id, output) for step in program.steps for output in step.outputs]
        self.program = program.hash
        self.kept = kept_of(len(outputs))
        self.places = {f"{name}.{output.name}": place_of(name, output) for name, output in outputs}
        self.locals = {
            output.local: place_of(name, output) for name, output in outputs if output.local
        }
        self._of: dict[tuple[str, str], deque[_Known]] = {}

    def known(self, place: tuple[str, str] | None) -> list[_Known]:
        """Return the records of a place, the newest first."""
        return [] if place is None else list(reversed(self._of.get(place, ())))

    def add(self, record: ProvenanceRecord, id_: bytes, number: int | None = None) -> str:
        """Take a record in as the newest of its place; return the path where it is."""
        place = place_of(record.computation, record.output)
        chain = self._of.setdefault(place, deque(maxlen=self.kept))
        if number is None:
            number = (chain[-1].number + 1) % self.kept if chain else 0
        event = event_of(place, number)
        link = Link(program=self.program, event=event, record=id_)
        output = record.output
        chain.append(_Known(link, number, record.frame, output.digest, output.published))
        return below(UserSpacePaths.PROVENANCE, self.program, event)

    def number_at(self, record: ProvenanceRecord, path: str) -> int | None:
        """Return which of the records of its place is at a path; None where it does not belong."""
        place = place_of(record.computation, record.output)
        for number in range(self.kept):
            if path == below(UserSpacePaths.PROVENANCE, self.program, event_of(place, number)):
                return number
        return None


class Recorder:
    """Makes the records of one node's programs."""

    def __init__(self, space: Space, key: KeyPair, network: bytes) -> None:
        self._space = space
        self._key = key
        self._network = network
        self._chains: dict[bytes, _Chains] = {}
        self._writers: dict[str, _Chains] = {}

    def record(
        self,
        program: CompiledProgram,
        result: FrameResult,
        sources: Sources,
        receipts: Mapping[str, bytes],
    ) -> dict[str, bytes]:
        """Return the signed records of a frame by the paths of the own space where they are kept.

        They are written together with the outputs; where that fails, `forget` the program. Each
        output of a computation that ran has one, also one that did not change: its record names
        the inputs that are now behind it.

        Args:
            program: whose frame it was.
            result: of the frame.
            sources: what the variables were read from.
            receipts: of modules, by computation.
        """
        chains = self._chains_of(program)
        made: list[tuple[ProvenanceRecord, bytes]] = []
        paths: list[str] = []
        pointers: dict[str, bytes] = {}
        for ran in result.executed:
            step, (name, version) = ran.step, _function_of(ran.step)
            inputs = tuple(
                self._input(chains, read, value, sources, result.frame)
                for read, value in zip(step.inputs, ran.inputs, strict=True)
                if value is not None
            )
            for output, value in zip(step.outputs, ran.outputs, strict=True):
                record = ProvenanceRecord(
                    program=program.hash,
                    frame=result.frame,
                    computation=step.id,
                    function=name,
                    version=version,
                    inputs=inputs,
                    output=_output(output, value),
                    receipt=receipts.get(step.id),
                )
                body = record.to_bytes()
                made.append((record, body))
                paths.append(chains.add(record, encoding.tagged_sha256(record.KIND, body)))
                if output.path and self._writers.get(output.path) is not chains:
                    self._writers[output.path] = chains
                    pointers[UserSpacePaths.writer(output.path)] = program.hash
        signed = [
            one.raw
            for begin in range(0, len(made), JOINT_RECORDS_MAX)
            for one in seal(made[begin : begin + JOINT_RECORDS_MAX], self._key, self._network)
        ]
        return dict(zip(paths, signed, strict=True)) | pointers

    def forget(self, program: bytes) -> None:
        """Read again from the space what is kept of a program: it was not written, or is gone."""
        if chains := self._chains.pop(program, None):
            self._writers = {
                path: writer for path, writer in self._writers.items() if writer is not chains
            }

    def _chains_of(self, program: CompiledProgram) -> _Chains:
        if program.hash not in self._chains:
            chains = self._chains[program.hash] = _Chains(program)
            prefix = below(UserSpacePaths.PROVENANCE, program.hash)
            for kept in sorted(self._space.ls(prefix), key=lambda item: item.sequence):
                record = self._read(kept.path)
                number = None if record is None else chains.number_at(record.record, kept.path)
                if record is not None and number is not None:
                    chains.add(record.record, record.id, number)
        return self._chains[program.hash]

    def _read(self, path: str) -> Signed[ProvenanceRecord] | None:
        """Return a record of the own space; None where something else stands at its path."""
        value = self._space.get(path).value
        try:
            return open_signed(
                value or b"",
                ProvenanceRecord,
                network=self._network,
                author=self._space.owner,
                size_max=limits.PROVENANCE_BYTES_MAX,
            )
        except errors.XscError:
            return None  # the user may write there too: what is no record proves nothing

    def _input(
        self, chains: _Chains, read: Read, value: numbers.Value, sources: Sources, frame: int
    ) -> ProvenanceInput:
        raw, source = numbers.value_bytes(read.slot.type, value), _source(read, value, sources)
        digest = numbers.digest_of(raw)
        known: list[_Known] = []
        if source.kind == "computation":
            newest = chains.known(chains.places[source.place])[:1]
            known = [one for one in newest if one.digest == digest]
        elif source.kind == "space" and source.owner == self._space.owner:
            writer = self._writers.get(source.place)
            all_ = writer.known(("", source.place)) if writer else []
            known = [one for one in all_ if one.published == source.value][:1]
        elif source.kind == "local":
            all_ = chains.known(chains.locals.get(source.place))
            known = _behind(read.slot.type, value, [one for one in all_ if one.frame < frame])
        return ProvenanceInput(
            name=read.param,
            type=read.slot.type,
            digest=digest,
            value=_inline(raw),
            source=source,
            parents=tuple(one.link for one in known),
        )


def _function_of(step: Step) -> tuple[str, bytes]:
    """Return name and hash of a function, or the export of a module and its hash."""
    call = step.function
    if not isinstance(call, document.ModuleCall):
        return call.name, call.hash
    assert isinstance(call.module, bytes), "a resolved program names modules by hash"
    return call.export, call.module


def _inline(raw: bytes) -> bytes | None:
    return raw if len(raw) <= limits.INPUT_INLINE_BYTES_MAX else None


def _output(output: Published, value: numbers.Value) -> ProvenanceOutput:
    raw = numbers.value_bytes(output.slot.type, value)
    return ProvenanceOutput(
        name=output.name,
        type=output.slot.type,
        digest=numbers.digest_of(raw),
        value=_inline(raw),
        path=output.path,
        published=value_digest(numbers.to_space(output.slot.type, value)) if output.path else None,
        local=output.local,
        result=output.result,
    )


def _source(read: Read, value: numbers.Value, sources: Sources) -> Source:
    variable = read.variable
    if variable.kind == "derived":
        return Source(kind="computation", place=f"{variable.computation}.{variable.output}")
    if variable.kind == "local":
        return Source(kind="local", place=variable.name)
    if variable.kind == "given":
        return Source(kind="given", place=variable.name)
    if variable.kind == "value":
        kept = variable.default is not None and numbers.same(variable.type, value, variable.default)
        return Source(kind="value" if kept else "set")
    if variable.name not in sources:
        return Source(kind="default", place=variable.path)
    owner, signed = sources[variable.name]
    record = signed.record
    return Source(
        kind="space",
        place=record.path,
        owner=owner,
        sequence=record.sequence,
        record=signed.id,
        value=record.digest,
    )


def _behind(type_: str, value: numbers.Value, known: Sequence[_Known]) -> list[_Known]:
    """Return the records whose values a local variable keeps, as far back as both agree."""
    values = value if isinstance(value, tuple) else (value,)
    found: list[_Known] = []
    for kept, one in zip(reversed(values), known, strict=False):
        digest = numbers.digest_of(numbers.value_bytes(numbers.item_of(type_) or type_, kept))
        if digest != one.digest or len(found) == limits.ANCESTORS_MAX:
            break
        found.append(one)
    return found
