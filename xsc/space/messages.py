"""What replicas ask each other, as plain values; see docs/design/space.md, S2 to S7.

Readers refuse what is malformed. Records and heads inside are envelopes; `xsc.space.sync` verifies
them before they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid
from xsc.space.limits import ANSWER_BYTES_MAX, CURSORS_MAX, PAGE_BYTES, PAGE_RECORDS, RECORDS_MAX
from xsc.space.paths import SECTIONS, check_path


@dataclass(frozen=True, slots=True)
class Cursor:
    """One section of an owner, as a replica is asked for it."""

    owner: bytes
    section: str
    after: int
    """This replica has sent what is up to this sequence."""
    head: tuple[int, int]
    """Sequence and date of the head that the subscriber has."""

    def to_value(self) -> Value:
        """Return the cursor as plain values."""
        return [self.owner, self.section, self.after, *self.head]


@dataclass(frozen=True, slots=True)
class Sent:
    """A record that is passed on, with its value where that is small."""

    owner: bytes
    raw: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class SentHead:
    """A head that is passed on."""

    owner: bytes
    raw: bytes
    before: dict[str, dict[str, bytes]]
    """Of each section for which it is shown, the ids of records that have changed since."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a replica has for some cursors."""

    records: list[Sent]
    heads: list[SentHead]
    more: bool
    """Whether there is more than an answer holds; heads of such cursors come later."""


def read_section(name: Value) -> str:
    """Return the name of a section.

    Raises:
        RecordInvalid: there is none of that name.
    """
    if not isinstance(name, str) or name not in SECTIONS:
        raise RecordInvalid("not a section of a space")
    return name


def _count(number: Value) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63


def read_cursors(value: Value) -> list[Cursor]:
    """Return the cursors of a question.

    Raises:
        RecordInvalid: malformed, or over CURSORS_MAX.
    """
    if not isinstance(value, list) or len(value) > CURSORS_MAX:
        raise RecordInvalid(f"a question has a list of at most {CURSORS_MAX} cursors")
    cursors = []
    for row in value:
        match row:
            case [bytes(owner), section, int(after), int(sequence), int(written_ms)] if len(
                owner
            ) == 32 and all(map(_count, row[2:])):
                place = (sequence, written_ms)
                cursors.append(Cursor(owner, read_section(section), after, place))
            case _:
                raise RecordInvalid("not a cursor")
    if len({(cursor.owner, cursor.section) for cursor in cursors}) < len(cursors):
        raise RecordInvalid("two cursors of one section")
    return cursors


def _rows(rows: Iterable[tuple[str, bytes]]) -> Value:
    return [[path, record] for path, record in rows]


def _read_rows(value: Value) -> list[tuple[str, bytes]]:
    if not isinstance(value, list) or len(value) > RECORDS_MAX:
        raise RecordInvalid(f"not a list of at most {RECORDS_MAX} paths")
    rows = []
    for row in value:
        match row:
            case [str(path), bytes(record)] if len(record) == 32:
                rows.append((check_path(path), record))
            case _:
                raise RecordInvalid("not a path with the id of its record")
    return rows


def _head_value(head: SentHead) -> Value:
    sections: list[Value] = [[at, _rows(before.items())] for at, before in head.before.items()]
    return [head.owner, head.raw, sections]


def _read_head(value: Value) -> SentHead:
    match value:
        case [bytes(owner), bytes(raw), list(rows)] if len(owner) == 32 and len(rows) <= len(
            SECTIONS
        ):
            before = {}
            for row in rows:
                match row:
                    case [section, changed]:
                        before[read_section(section)] = dict(_read_rows(changed))
                    case _:
                        raise RecordInvalid("not a section with what has changed in it")
            return SentHead(owner, raw, before)
    raise RecordInvalid("not a head that is passed on")


def answer_bytes(answer: Answer) -> bytes:
    """Return the bytes of an answer."""
    records: list[Value] = [[sent.owner, sent.raw, sent.value] for sent in answer.records]
    heads: list[Value] = [_head_value(head) for head in answer.heads]
    return encode([records, heads, answer.more])


def read_answer(raw: bytes) -> Answer:
    """Return the answer of bytes.

    Raises:
        TooLarge, RecordInvalid: over ANSWER_BYTES_MAX, PAGE_RECORDS records or CURSORS_MAX heads,
            or malformed.
    """
    match decode(raw, size_max=ANSWER_BYTES_MAX):
        case [list(rows), list(heads), bool(more)]:
            if len(rows) > PAGE_RECORDS or len(heads) > CURSORS_MAX:
                raise RecordInvalid(
                    f"an answer has at most {PAGE_RECORDS} records and {CURSORS_MAX} heads"
                )
            records = []
            for row in rows:
                match row:
                    case [bytes(owner), bytes(envelope), (bytes() | None) as value] if (
                        len(owner) == 32
                    ):
                        records.append(Sent(owner, envelope, value))
                    case _:
                        raise RecordInvalid("not a record that is passed on")
            return Answer(records, [_read_head(head) for head in heads], more)
    raise RecordInvalid("not an answer of a replica")


def listing_parts(head: bytes, rows: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """Return the bodies of a listing: its head, and the rows in pages."""
    parts = [head]
    page: list[tuple[str, bytes]] = []
    left = PAGE_BYTES
    for path, record in rows:
        page.append((path, record))
        left -= len(path) + 40
        if left <= 0:
            parts.append(encode(_rows(page)))
            page, left = [], PAGE_BYTES
    return [*parts, encode(_rows(page))] if page else parts


def read_listed(raw: bytes) -> list[tuple[str, bytes]]:
    """Return the rows of one page of a listing.

    Raises:
        TooLarge, RecordInvalid: over ANSWER_BYTES_MAX, or malformed.
    """
    return _read_rows(decode(raw, size_max=ANSWER_BYTES_MAX))
