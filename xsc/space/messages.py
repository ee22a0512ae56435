"""What replicas ask each other; see docs/design/space.md, S2 to S7.

Readers refuse what is malformed. Records and heads inside are envelopes; `xsc.space.sync` verifies
them before they are stored.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, NamedTuple, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from xsc.base.errors import RecordInvalid
from xsc.identity.envelope import Count, Id32, Record
from xsc.space import limits, paths


def check_section(name: object) -> str:
    """Return the name of a section.

    Raises:
        RecordInvalid: there is none of that name.
    """
    if not isinstance(name, str) or name not in paths.SECTIONS:
        raise RecordInvalid("not a section of a space")
    return name


Section = Annotated[str, AfterValidator(check_section)]
Path = Annotated[str, AfterValidator(paths.check_path)]
Ids: TypeAlias = "tuple[tuple[Path, Id32], ...]"
"""Paths, and the ids of their records."""


class Cursor(NamedTuple):
    """One section of an owner, as a replica is asked for it."""

    owner: Id32
    section: Section
    after: Count
    """This replica has sent what is up to this sequence."""
    sequence: Count
    """Of the head that the subscriber has."""
    written_ms: Count

    @property
    def head(self) -> tuple[int, int]:
        """Sequence and date, by which heads are ordered."""
        return self.sequence, self.written_ms


class Question(Record):
    """What a replica is asked for."""

    cursors: Annotated[tuple[Cursor, ...], Field(max_length=limits.CURSORS_MAX)]

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        if len({(at.owner, at.section) for at in self.cursors}) < len(self.cursors):
            raise ValueError("two cursors of one section")
        return self


class Sent(NamedTuple):
    """A record that is passed on, with its value where that is small."""

    owner: Id32
    raw: bytes
    value: bytes | None


class SentHead(NamedTuple):
    """A head that is passed on."""

    owner: Id32
    raw: bytes
    before: Annotated[tuple[tuple[Section, Ids], ...], Field(max_length=len(paths.SECTIONS))]
    """Of each section for which it is shown, the ids of records that have changed since."""


class Answer(Record):
    """What a replica has for some cursors."""

    BYTES_MAX: ClassVar[int] = limits.ANSWER_BYTES_MAX

    records: Annotated[tuple[Sent, ...], Field(max_length=limits.PAGE_RECORDS)]
    heads: Annotated[tuple[SentHead, ...], Field(max_length=limits.CURSORS_MAX)]
    more: bool
    """Whether there is more than an answer holds; heads of such cursors come later."""


class Listed(Record):
    """What is live in a section, by the head that is shown of it."""

    BYTES_MAX: ClassVar[int] = limits.LISTING_BYTES_MAX

    head: bytes
    ids: Annotated[Ids, Field(max_length=limits.RECORDS_MAX)]
