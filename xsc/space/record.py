"""What an owner signs in its space: records, tombstones and heads.

A record is metadata: path, sequence, stamp, and the hash of a value. The value is apart: it
travels beside its record where it is small, and is fetched by its hash where it is not. The
owner is the author of the envelope. docs/design/space.md. Vectors: `tests/vectors/space.json`.
"""

from __future__ import annotations

import base64
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Self, TypeAlias, TypeVar

from pydantic import Field, model_validator

from xsc.base import encoding, errors
from xsc.base.limits import KIB
from xsc.identity.envelope import Count, Id32, Record, Signed, open_signed
from xsc.space import itc, messages, paths
from xsc.space.limits import CLOCK_BYTES_MAX, FUTURE_MS_MAX, VALUE_BYTES_MAX, VALUE_INLINE_BYTES_MAX

R = TypeVar("R", "SpaceRecord", "SpaceHead")
Sequence = Annotated[int, Field(ge=1, lt=2**63)]
Json: TypeAlias = "str | dict[str, str] | None"
"""A value in JSON: text, {"base64": text}, or null for a deleted one."""


class SpaceRecord(Record):
    """One version of one path: the value of a hash, or a tombstone where there is no hash."""

    ENVELOPE_BYTES_MAX: ClassVar[int] = CLOCK_BYTES_MAX + 8 * KIB

    path: str
    sequence: Sequence
    written_ms: Count
    domain: Id32
    stamp: bytes
    digest: Id32 | None
    size_bytes: Annotated[int, Field(ge=0, le=VALUE_BYTES_MAX)]

    @model_validator(mode="after")
    def _is_well_formed(self) -> Self:
        paths.check_path(self.path)
        itc.read_event(self.stamp)
        if self.digest is None and self.size_bytes:
            raise ValueError("a tombstone has no value, and so no size")
        return self

    @property
    def causality(self) -> itc.Stamp:
        """The stamp as it is compared."""
        return itc.Stamp(self.domain, itc.read_event(self.stamp))


class SpaceHead(Record):
    """What is live in a space at a sequence: a hash for each section that is not empty."""

    ENVELOPE_BYTES_MAX: ClassVar[int] = 32 * KIB

    sequence: Count
    written_ms: Count
    sections: Annotated[tuple[tuple[str, Id32], ...], Field(max_length=len(paths.SECTIONS))]
    """Names and hashes, in the order of names."""

    @model_validator(mode="after")
    def _is_well_formed(self) -> Self:
        names = [name for name, _ in self.sections]
        if names != sorted(set(names)) or not paths.SECTIONS.issuperset(names):
            raise ValueError("a head has each section once, in the order of their names")
        return self

    @property
    def place(self) -> tuple[int, int]:
        """Sequence and date, by which heads are ordered."""
        return self.sequence, self.written_ms

    def hash_of(self, section: str) -> bytes | None:
        """Return the hash of a section; None where it is empty."""
        at = bisect_left(self.sections, section, key=_name)
        named = at < len(self.sections) and self.sections[at][0] == section
        return self.sections[at][1] if named else None


def _name(row: tuple[str, bytes]) -> str:
    return row[0]


def section_hash(ids: Mapping[str, bytes]) -> bytes | None:
    """Return the hash of a section by the paths and record ids that are live in it."""
    rows: list[encoding.Value] = [[path, ids[path]] for path in sorted(ids)]
    return encoding.tagged_sha256("space_section", encoding.encode(rows)) if rows else None


@dataclass(frozen=True, slots=True)
class Entry:
    """A record with its value."""

    signed: Signed[SpaceRecord]
    value: bytes | None
    """None where the record is a tombstone, or the value was not loaded."""

    @property
    def sent(self) -> messages.Sent:
        """The entry as it is passed on: a large value does not travel beside its record."""
        large = self.value is not None and len(self.value) > VALUE_INLINE_BYTES_MAX
        return messages.Sent(self.signed.author, self.signed.raw, None if large else self.value)


@dataclass(frozen=True, slots=True)
class Change:
    """A record that was stored, as watchers are told of it."""

    owner: bytes
    path: str
    sequence: int
    value: bytes | None
    """None where the path was deleted, or the value is not loaded."""
    signed: Signed[SpaceRecord] | None = field(default=None, compare=False, repr=False)
    """The record; None where its owner has it no more, and left no tombstone."""

    @classmethod
    def of(cls, signed: Signed[SpaceRecord], value: bytes | None) -> Self:
        """Return the change that a record is."""
        record = signed.record
        return cls(signed.author, record.path, record.sequence, value, signed)

    @property
    def entry(self) -> Entry | None:
        """What is at the path now; None where there is nothing."""
        return None if self.signed is None else Entry(self.signed, self.value)

    @property
    def loaded(self) -> bool:
        """Whether the value is here; one that is too large does not come beside its record."""
        return self.value is not None or self.signed is None or self.signed.record.digest is None


def value_digest(value: bytes) -> bytes:
    """Return the hash by which a record names its value, 32 bytes."""
    return encoding.tagged_sha256("space_value", value)


def open_dated(
    raw: bytes, kind: type[R], *, owner: bytes, network: bytes, now_ms: int
) -> Signed[R]:
    """Return a record or head of an owner, once everything about it was checked.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: as `open_signed`; also a false path or stamp.
        ClockSkewed: dated more than FUTURE_MS_MAX ahead.
    """
    size_max = kind.ENVELOPE_BYTES_MAX
    signed = open_signed(raw, kind, network=network, author=owner, size_max=size_max)
    ahead_ms = signed.record.written_ms - now_ms
    if ahead_ms > FUTURE_MS_MAX:
        raise errors.ClockSkewed(
            f"dated {ahead_ms // 1000} s in the future, allowed are {FUTURE_MS_MAX // 1000}"
        )
    return signed


def open_sent(
    sent: messages.Sent, owner: bytes, network: bytes, now_ms: int
) -> Signed[SpaceRecord]:
    """Return a record that was sent, verified; a small value must be beside it.

    Raises:
        XscError: as `open_dated` and `check_value`.
    """
    signed = open_dated(sent.raw, SpaceRecord, owner=owner, network=network, now_ms=now_ms)
    record = signed.record
    is_small = record.digest is not None and record.size_bytes <= VALUE_INLINE_BYTES_MAX
    if is_small and sent.value is None:
        raise errors.RecordInvalid(f"the value of '{record.path}' is not beside its record")
    if sent.value is not None:
        check_value(record, sent.value)
    return signed


def check_value(record: SpaceRecord, value: bytes) -> bytes:
    """Return the value of a record.

    Raises:
        RecordInvalid: the record is a tombstone, or names another value.
    """
    if len(value) != record.size_bytes or value_digest(value) != record.digest:
        raise errors.RecordInvalid("the value is not the one that the record names")
    return value


def to_json(value: bytes | None) -> Json:
    """Return a value as JSON shows it."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
