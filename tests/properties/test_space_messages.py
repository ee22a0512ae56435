"""Laws of what replicas send each other: it comes back as it was, and nothing else is read."""

from __future__ import annotations

from dataclasses import replace

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
    read_listed_head,
)
from xsc.space.tree import levels_of, read_levels

PATHS = st.sampled_from(["a", "a/b", "a/b/c", "x.y~z"])
PARTS = st.sampled_from(["a", "b-c", "x.y~z"])
ROWS = st.dictionaries(PATHS, digests(), max_size=3)
PROOFS = st.lists(
    st.tuples(
        st.one_of(st.none(), digests()),
        st.lists(st.tuples(PARTS, digests()), max_size=3).map(tuple),
    ),
    max_size=3,
).map(tuple)
HEADS = st.builds(
    SentHead, digests(), st.one_of(st.just(""), PATHS), st.binary(max_size=9), PROOFS, ROWS
)
SENT = st.builds(
    Sent, digests(), st.binary(max_size=9), st.one_of(st.none(), st.binary(max_size=9))
)
ANSWERS = st.builds(
    Answer, st.lists(SENT, max_size=3), st.lists(HEADS, max_size=3), more=st.booleans()
)
CURSORS = st.builds(
    Cursor, digests(), st.one_of(st.just(""), PATHS), counts(), st.tuples(counts(), counts())
)


SUBSCRIBED = st.lists(CURSORS, max_size=4, unique_by=lambda cursor: (cursor.owner, cursor.prefix))


@given(ANSWERS, HEADS, ROWS, SUBSCRIBED)
def test_reading_undoes_writing(answer, head, rows, cursors):
    assert read_answer(answer_bytes(answer)) == answer
    listed = list(rows.items())
    first, *pages = listing_parts(head, listed)
    assert read_listed_head(first) == replace(head, before={})
    assert [row for page in pages for row in read_listed(page)] == listed
    assert read_cursors([cursor.to_value() for cursor in cursors]) == cursors
    assert read_levels(levels_of(head.proof)) == head.proof


@given(HEADS)
def test_the_size_of_a_head_is_about_what_it_takes(head):
    taken = len(answer_bytes(Answer([], [head], more=False)))
    assert taken <= 2 * head.size_bytes + 1_200


@given(values())
def test_any_other_value_is_refused_by_name(value):
    for read in (read_cursors, read_levels):
        try:
            read(value)
        except XscError:
            continue
        assert isinstance(value, list)
    for read_raw in (read_answer, read_listed_head, read_listed):
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
