"""Laws of what replicas send each other: it comes back as it was, and nothing else is read."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import counts, digests, values
from xsc.base.encoding import encode
from xsc.base.errors import XscError
from xsc.space.messages import (
    Answer,
    Cursor,
    Sent,
    SentHead,
    answer_bytes,
    listing_parts,
    read_answer,
    read_cursors,
    read_listed,
)
from xsc.space.paths import SECTIONS

PATHS = st.sampled_from(["a", "a/b", "a/b/c", "x.y~z"])
ROWS = st.dictionaries(PATHS, digests(), max_size=3)
NAMES = st.sampled_from(sorted(SECTIONS))
HEADS = st.builds(
    SentHead, digests(), st.binary(max_size=9), st.dictionaries(NAMES, ROWS, max_size=3)
)
SENT = st.builds(
    Sent, digests(), st.binary(max_size=9), st.one_of(st.none(), st.binary(max_size=9))
)
ANSWERS = st.builds(
    Answer, st.lists(SENT, max_size=3), st.lists(HEADS, max_size=3), more=st.booleans()
)
CURSORS = st.builds(Cursor, digests(), NAMES, counts(), st.tuples(counts(), counts()))


ASKED = st.lists(CURSORS, max_size=4, unique_by=lambda cursor: (cursor.owner, cursor.section))


@given(ANSWERS, st.binary(max_size=9), ROWS, ASKED)
def test_reading_undoes_writing(answer, head, rows, cursors):
    assert read_answer(answer_bytes(answer)) == answer
    listed = list(rows.items())
    first, *pages = listing_parts(head, listed)
    assert first == head
    assert [row for page in pages for row in read_listed(page)] == listed
    assert read_cursors([cursor.to_value() for cursor in cursors]) == cursors


@given(values())
def test_any_other_value_is_refused_by_name(value):
    with suppress(XscError):
        read_cursors(value)
        assert isinstance(value, list)
    for read_raw in (read_answer, read_listed):
        try:
            read_raw(encode(value))
        except XscError:
            continue
        assert isinstance(value, list)


@given(ANSWERS, st.data())
def test_a_changed_byte_is_refused_or_another_answer(answer, data):
    raw = bytearray(answer_bytes(answer))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = read_answer(bytes(raw))
    except XscError:
        return
    assert answer_bytes(found) == bytes(raw)
