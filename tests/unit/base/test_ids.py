"""Text forms of identifiers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import ArgumentInvalid
from xsc.base.ids import SHORT_CHARS, TEXT_CHARS, from_text, node_id_from_text, short, to_text


@given(st.binary(min_size=1, max_size=80))
def test_text_comes_back_as_the_same_bytes(raw):
    text = to_text(raw)
    assert from_text(text) == raw
    assert text == text.lower()
    assert "=" not in text


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567", max_size=60))
def test_exactly_one_text_stands_for_some_bytes(text):
    try:
        raw = from_text(text)
    except ArgumentInvalid:
        return
    assert to_text(raw) == text


@pytest.mark.parametrize(
    "text",
    ["", "A", "MZXW6", "mzxw6===", "mz xw6", "mzxw6\n", "mzxw1", "mzxw8", "a", "abc", "mzxw7", "ä"],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ArgumentInvalid):
        from_text(text)


@pytest.mark.parametrize(
    ("raw", "text"), [(b"f", "my"), (b"fo", "mzxq"), (b"foo", "mzxw6"), (b"foobar", "mzxw6ytboi")]
)
def test_the_vectors_of_rfc_4648(raw, text):
    assert to_text(raw) == text


def test_node_ids_have_one_length():
    text = to_text(bytes(range(32)))
    assert len(text) == TEXT_CHARS
    assert node_id_from_text(text) == bytes(range(32))
    assert short(bytes(range(32))) == text[:SHORT_CHARS]
    for wrong in (text[:-1], text + "a", short(bytes(32))):
        with pytest.raises(ArgumentInvalid, match="52 characters") as caught:
            node_id_from_text(wrong)
        assert caught.value.hint


def test_a_node_id_with_stray_bits_is_refused():
    text = to_text(bytes(32))
    with pytest.raises(ArgumentInvalid, match="stray"):
        node_id_from_text(text[:-1] + "b")
