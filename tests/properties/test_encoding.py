"""Laws of the encoding: every value comes back, and no value has two byte strings."""

from __future__ import annotations

import cbor2
import libipld
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import values
from xsc.base.encoding import RECORD_DEPTH_MAX, Value, decode, encode
from xsc.base.errors import RecordInvalid


def same(left: Value, right: Value) -> bool:
    """Equal, and of equal types all the way down: `True` is not `1` here."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


def canonical_or_refused(raw: bytes) -> None:
    try:
        value = decode(raw)
    except RecordInvalid:
        return
    assert encode(value) == raw


@given(values())
def test_decoding_undoes_encoding(value):
    assert same(decode(encode(value)), value)


@given(values(), values())
def test_different_values_have_different_bytes(left, right):
    assert (encode(left) == encode(right)) == same(left, right)


@given(st.dictionaries(st.text(max_size=4), st.integers(0, 30), max_size=8), st.randoms())
def test_the_order_of_insertion_leaves_no_trace(value, random):
    pairs = list(value.items())
    random.shuffle(pairs)
    assert encode(dict(pairs)) == encode(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_canonical(raw):
    canonical_or_refused(raw)


@given(values(), st.data())
def test_changed_bytes_are_refused_or_canonical(value, data):
    raw = bytearray(encode(value))
    place = data.draw(st.integers(0, len(raw) - 1))
    how = data.draw(st.sampled_from(["replace", "insert", "delete", "cut"]))
    byte = data.draw(st.integers(0, 255))
    if how == "replace":
        raw[place] = byte
    elif how == "insert":
        raw.insert(place, byte)
    elif how == "delete":
        del raw[place]
    else:
        del raw[place:]
    canonical_or_refused(bytes(raw))


def test_all_strings_of_two_bytes_are_refused_or_canonical():
    for first in range(256):
        canonical_or_refused(bytes([first]))
        for second in range(256):
            canonical_or_refused(bytes([first, second]))


@given(st.integers(0, 4), st.integers(0, 2**64 - 1), st.sampled_from([1, 2, 4, 8]))
def test_a_head_longer_than_it_must_be_is_refused(major, number, width):
    """Shortest form, for every major type that carries a number in its head."""
    number %= 256**width
    raw = bytes([major << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[width]]) + number.to_bytes(width, "big")
    needed = 0 if number < 24 else next(w for w in (1, 2, 4, 8) if number < 256**w)
    if needed < width:
        try:
            decode(raw + b"\x00" * min(number, 100))
        except RecordInvalid:
            return
        raise AssertionError(raw.hex())
    canonical_or_refused(raw)


@given(st.integers(0, RECORD_DEPTH_MAX + 3), st.booleans())
def test_depth_is_counted_alike_in_both_directions(depth, maps):
    value: Value = 0
    for _ in range(depth):
        value = {"": value} if maps else [value]
    raw = (b"\xa1\x60" if maps else b"\x81") * depth + b"\x00"
    for attempt in (lambda: encode(value) == raw, lambda: same(decode(raw), value)):
        try:
            assert attempt()
            assert depth <= RECORD_DEPTH_MAX
        except RecordInvalid:
            assert depth > RECORD_DEPTH_MAX


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number % 128 + 128, number // 128])


def links() -> st.SearchStrategy[bytes]:
    """Return byte strings that are content identifiers of IPLD, or nearly."""
    digests = st.binary(min_size=32, max_size=32)
    return st.one_of(
        digests.map(lambda digest: b"\x12\x20" + digest),
        digests.map(lambda digest: b"\x01\x71\x12\x20" + digest),
        digests.map(lambda digest: b"\x01\x55\x1e\x20" + digest[:31]),
        st.integers(0, 2**16).map(lambda number: number.to_bytes(4, "little")),
        st.binary(max_size=6).map(lambda rest: b"\xd8\x2a" + rest),
        st.sampled_from([b"\x01\0\0\0", b"\x01\x55\0\xff" + bytes(255)]).map(
            lambda link: libipld.encode_dag_cbor([link, b"x"])
        ),
        st.integers(0, 260).map(lambda size: b"\x01\x55\0" + varint(size) + bytes(size)),
    )


@given(values(), st.lists(links(), max_size=4))
def test_bytes_are_those_of_the_reference_also_where_they_look_like_links(value, found):
    whole: Value = {"value": value, "found": list(found)}
    assert encode(whole) == cbor2.dumps(whole, canonical=True)
    assert same(decode(encode(whole)), whole)
