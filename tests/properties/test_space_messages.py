"""Laws of what replicas send each other: it comes back as it was, and nothing else is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import counts, digests, values
from xsc.base.encoding import encode
from xsc.base.errors import XscError
from xsc.space.limits import ANSWER_BYTES_MAX
from xsc.space.messages import Answer, Cursor, Listed, Question, Sent, SentHead
from xsc.space.paths import SECTIONS

PATHS = st.sampled_from(["a", "a/b", "a/b/c", "x.y~z"])
NAMES = st.sampled_from(sorted(SECTIONS))


def some(items, most=3):
    return st.lists(items, max_size=most).map(tuple)


IDS = some(st.tuples(PATHS, digests()))
HEADS = st.builds(SentHead, digests(), st.binary(max_size=9), some(st.tuples(NAMES, IDS)))
SENT = st.builds(
    Sent, digests(), st.binary(max_size=9), st.one_of(st.none(), st.binary(max_size=9))
)
ANSWERS = st.builds(Answer, records=some(SENT), heads=some(HEADS), more=st.booleans())
LISTS = st.builds(Listed, head=st.binary(max_size=9), ids=IDS)
CURSORS = st.builds(Cursor, digests(), NAMES, counts(), counts(), counts())
ASKED = st.lists(CURSORS, max_size=4, unique_by=lambda cursor: (cursor.owner, cursor.section)).map(
    tuple
)
QUESTIONS = st.builds(Question, cursors=ASKED)


@given(st.one_of(ANSWERS, LISTS, QUESTIONS))
def test_reading_undoes_writing(said):
    assert type(said).from_bytes(said.to_bytes(), size_max=ANSWER_BYTES_MAX) == said


@given(values())
def test_any_other_value_is_refused_by_name(value):
    for kind in (Answer, Listed, Question):
        with pytest.raises(XscError):
            kind.from_bytes(encode(value))


@given(ANSWERS, st.data())
def test_a_changed_byte_is_refused_or_another_answer(answer, data):
    raw = bytearray(answer.to_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = Answer.from_bytes(bytes(raw))
    except XscError:
        return
    assert found.to_bytes() == bytes(raw)
