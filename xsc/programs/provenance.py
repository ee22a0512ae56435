"""Provenance: the signed record of what gave a value, and what such records prove.

Each output has a record of its own. It names program, frame, function, and every input by its
hash and by where it came from; inputs that are outputs themselves are linked to their records.
So records form a chain. A signature says that a node computed this; only a second run proves
that the function gives it (docs/design/programs.md, P1 to P9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from xsc.base.encoding import encode, tagged_sha256
from xsc.identity.envelope import Count, Id32, Record
from xsc.programs.compile import Published
from xsc.programs.limits import (
    ANCESTORS_MAX,
    INPUT_INLINE_BYTES_MAX,
    INPUTS_MAX,
    PROVENANCE_BYTES_MAX,
    PROVENANCE_RECORDS_MAX,
)
from xsc.programs.numbers import TYPES, Value, digest_of, to_space, value_bytes
from xsc.space.record import value_digest

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
    type: Literal[TYPES]  # type: ignore[valid-type]
    digest: Id32
    value: Annotated[bytes, Field(max_length=INPUT_INLINE_BYTES_MAX)] | None
    """Canonical bytes of type and value, where they are few."""
    source: Source
    parents: Annotated[tuple[Link, ...], Field(max_length=ANCESTORS_MAX)]
    """Records of the outputs that it is, or whose values a local variable keeps."""


class ProvenanceOutput(Record):
    """The output that a record is about, and where it went."""

    KIND: ClassVar[str] = "program_output"

    name: Name
    type: Literal[TYPES]  # type: ignore[valid-type]
    digest: Id32
    value: Annotated[bytes, Field(max_length=INPUT_INLINE_BYTES_MAX)] | None
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
    inputs: Annotated[tuple[ProvenanceInput, ...], Field(max_length=INPUTS_MAX)]
    """In the order in which the function takes them."""
    output: ProvenanceOutput
    receipt: Annotated[bytes, Field(max_length=PROVENANCE_BYTES_MAX)] | None
    """The signed execution receipt of a module's run; None for a function."""


@dataclass(frozen=True, slots=True)
class Input:
    """An input as the manager has it."""

    name: str
    type: str
    value: Value
    source: Source


@dataclass(frozen=True, slots=True)
class Output:
    """An output as the manager has it."""

    name: str
    type: str
    value: Value
    path: str = ""
    local: str = ""
    result: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one computation did in one frame.

    Every computation that ran has one, also where its outputs did not change: their records then
    name the inputs that are now behind them.
    """

    program: bytes
    frame: int
    computation: str
    function: str
    version: bytes
    """The hash of the function, or SHA-256 of the module."""
    inputs: tuple[Input, ...]
    """In the order of the function's parameters; for a module in that of their names."""
    outputs: tuple[Output, ...]
    receipt: bytes | None = None
    """The signed execution receipt; None for a function."""


def event_of(place: tuple[str, str], number: int) -> bytes:
    """Return under which event the space keeps one of the records of an output, 32 bytes.

    Args:
        place: computation and output; of an output with a path, "" and the path, so that who knows
            the path alone finds its records.
        number: which of the records that are kept.
    """
    return tagged_sha256("provenance_event", encode([*place, number]))


def place_of(computation: str, output: Published | ProvenanceOutput) -> tuple[str, str]:
    """Return the place of an output, as `event_of` takes it."""
    return ("", output.path) if output.path else (computation, output.name)


def kept_of(outputs: int) -> int:
    """Return how many records each of a program's outputs keeps: fewer where there are many."""
    return max(1, min(1 + ANCESTORS_MAX, PROVENANCE_RECORDS_MAX // max(1, outputs)))


def published_of(output: Output) -> bytes:
    """Return the hash by which a record in the space names an output."""
    return value_digest(to_space(output.type, output.value))


def _inline(raw: bytes) -> bytes | None:
    return raw if len(raw) <= INPUT_INLINE_BYTES_MAX else None


def make_records(
    evaluation: Evaluation, parents: Mapping[str, Sequence[Link]]
) -> tuple[ProvenanceRecord, ...]:
    """Return the records of a computation's outputs, in their order.

    Args:
        evaluation: what was computed.
        parents: by name of an input, the records of what it is.
    """
    inputs = []
    for given in evaluation.inputs:
        raw = value_bytes(given.type, given.value)
        inputs.append(
            ProvenanceInput(
                name=given.name,
                type=given.type,
                digest=digest_of(raw),
                value=_inline(raw),
                source=given.source,
                parents=tuple(parents.get(given.name, ())),
            )
        )
    records = []
    for output in evaluation.outputs:
        raw = value_bytes(output.type, output.value)
        records.append(
            ProvenanceRecord(
                program=evaluation.program,
                frame=evaluation.frame,
                computation=evaluation.computation,
                function=evaluation.function,
                version=evaluation.version,
                inputs=tuple(inputs),
                output=ProvenanceOutput(
                    name=output.name,
                    type=output.type,
                    digest=digest_of(raw),
                    value=_inline(raw),
                    path=output.path,
                    published=published_of(output) if output.path else None,
                    local=output.local,
                    result=output.result,
                ),
                receipt=evaluation.receipt,
            )
        )
    return tuple(records)
