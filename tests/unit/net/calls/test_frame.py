"""The frame around a message, and everything that is not one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import values
from xsc.base.encoding import encode
from xsc.base.errors import FrameInvalid, TooLarge
from xsc.base.limits import FRAME_HEADER_BYTES_MAX, FRAME_PARTS_MAX, PEER_BODY_BYTES_MAX
from xsc.base.merkle import Part
from xsc.net.calls.frame import head_of, pack_head, unpack

ROOT = bytes(32)


def framed(header, parts=()):
    return pack_head(header, parts) + b"".join(part.data for part in parts)


def raw_frame(value, body=b""):
    raw = encode(value)
    return memoryview(len(raw).to_bytes(4, "big") + raw + body)


parts_of_a_frame = st.lists(
    st.builds(Part, st.binary(max_size=50), st.sampled_from([b"", ROOT])), max_size=5
)


@given(st.dictionaries(st.text(max_size=5), values(), max_size=4), parts_of_a_frame)
def test_what_was_packed_is_unpacked(header, parts):
    frame = unpack(memoryview(framed(header, parts)))
    assert frame.header == header
    assert [Part(bytes(part.data), part.root) for part in frame.parts] == parts


@given(st.dictionaries(st.text(max_size=5), values(), max_size=2), parts_of_a_frame, st.data())
def test_a_frame_cut_or_lengthened_is_refused(header, parts, data):
    whole = framed(header, parts)
    cut = data.draw(st.integers(0, len(whole) - 1))
    for body in (whole[:cut], whole + b"\0"):
        with pytest.raises((FrameInvalid, TooLarge)):
            unpack(memoryview(body))


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_be_refused_or_understood(body):
    try:
        frame = unpack(memoryview(body))
    except (FrameInvalid, TooLarge):
        return
    assert framed(frame.header, frame.parts) == body


def test_parts_are_views_and_the_head_ends_before_them():
    body = memoryview(framed({"a": 1}, [Part(b"xyz", ROOT)]))
    (part,) = unpack(body).parts
    assert part.data.obj is body.obj
    assert bytes(head_of(body)) == bytes(body)[:-3]


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"v": 1, "h": {}},
        {"v": 1, "h": {}, "p": [], "x": 1},
        {"v": 2, "h": {}, "p": []},
        {"v": True, "h": {}, "p": []},
        {"v": 1, "h": [], "p": []},
        {"v": 1, "h": {}, "p": {}},
        {"v": 1, "h": {}, "p": [1]},
        {"v": 1, "h": {}, "p": [[0]]},
        {"v": 1, "h": {}, "p": [[0, ROOT, 0]]},
        {"v": 1, "h": {}, "p": [[-1, ROOT], [1, ROOT]]},
        {"v": 1, "h": {}, "p": [[True, ROOT]]},
        {"v": 1, "h": {}, "p": [["1", ROOT]]},
        {"v": 1, "h": {}, "p": [[0, b"short"]]},
        {"v": 1, "h": {}, "p": [[0, None]]},
        {"v": 1, "h": {}, "p": [[1, ROOT]]},
        {"v": 1, "h": {}, "p": [[2**63, ROOT]]},
    ],
)
def test_headers_that_are_not_of_the_form_are_refused(value):
    with pytest.raises(FrameInvalid):
        unpack(raw_frame(value))


def test_a_header_that_is_not_canonical_is_refused():
    raw = encode({"v": 1, "h": {}, "p": []})
    assert raw[1:3] == b"ah"
    swapped = raw[:1] + raw[4:7] + raw[1:4] + raw[7:]
    with pytest.raises(FrameInvalid):
        unpack(memoryview(len(swapped).to_bytes(4, "big") + swapped))


def test_each_bound_is_held_when_packing():
    with pytest.raises(TooLarge):
        pack_head({}, [Part(b"", ROOT)] * (FRAME_PARTS_MAX + 1))
    with pytest.raises(TooLarge):
        pack_head({"a": bytes(FRAME_HEADER_BYTES_MAX)}, [])
    half = bytes(PEER_BODY_BYTES_MAX // 2)
    with pytest.raises(TooLarge):
        pack_head({}, [Part(half, ROOT), Part(half, ROOT)])


def test_each_bound_is_held_when_unpacking():
    with pytest.raises(TooLarge):
        unpack(raw_frame({"v": 1, "h": {}, "p": [[0, ROOT]] * (FRAME_PARTS_MAX + 1)}))
    with pytest.raises(TooLarge):
        head_of(memoryview((FRAME_HEADER_BYTES_MAX + 1).to_bytes(4, "big")))
    with pytest.raises(TooLarge):
        unpack(memoryview(bytes(PEER_BODY_BYTES_MAX + 1)))
