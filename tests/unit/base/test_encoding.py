"""Canonical bytes: golden values, and everything that must be refused."""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any

import cbor2
import libipld
import pytest

from tests.strategies import vectors
from xsc.base.encoding import (
    _LINK,
    CONTAINER_BYTES,
    RECORD_DEPTH_MAX,
    Value,
    _bytes_head,
    decode,
    domain,
    encode,
    tagged_sha256,
)
from xsc.base.errors import RecordInvalid, TooLarge
from xsc.base.limits import FRAME_HEADER_BYTES_MAX, RECORD_BYTES_MAX

GOLDEN = vectors("encoding")


def plain(shown: Any) -> Value:
    """Undo the vectors' notation of bytes and maps."""
    if isinstance(shown, list):
        return [plain(item) for item in shown]
    if isinstance(shown, dict):
        if "hex" in shown:
            return bytes.fromhex(shown["hex"])
        return {key: plain(item) for key, item in shown["map"]}
    return shown


@pytest.mark.parametrize("case", GOLDEN["accepted"], ids=lambda case: case["hex"][:24])
def test_golden_values_encode_to_their_bytes_and_back(case):
    value, raw = plain(case["value"]), bytes.fromhex(case["hex"])
    assert encode(value) == raw
    assert decode(raw) == value
    assert type(decode(raw)) is type(value)


@pytest.mark.parametrize("case", GOLDEN["refused"], ids=lambda case: case["why"])
def test_what_is_not_canonical_is_refused(case):
    with pytest.raises(RecordInvalid):
        decode(bytes.fromhex(case["hex"]))


@pytest.mark.parametrize("case", GOLDEN["tagged_sha256"], ids=lambda case: case["hex"][:8])
def test_tagged_hashes(case):
    parts = [bytes.fromhex(part) for part in case["parts"]]
    assert tagged_sha256(case["tag"], *parts).hex() == case["hex"]


def test_the_tag_ends_before_the_content_begins():
    assert domain("entry") == b"XSC/1/entry\0"
    assert tagged_sha256("ab", b"c") != tagged_sha256("a", b"bc")


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        float("nan"),
        2**64,
        -(2**64) - 1,
        {1: 2},
        {b"k": 1},
        {None: 1},
        (1, 2),
        {1, 2},
        bytearray(b"x"),
        memoryview(b"x"),
        object(),
        [1, {"a": [0.0]}],
        "half a pair: \ud800",
        {"\udfff": 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_outside_of_the_format_are_refused(value):
    with pytest.raises(RecordInvalid):
        encode(value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({1: 2}, "a key is not text"),
        ({"a": 1, 2: 3}, "a key is not text"),
        ([0, {"a": [{b"k": 1}]}], "a key is not text"),
        (2**64, "outside of 64 bits"),
        (-(2**64) - 1, "outside of 64 bits"),
        ({"a": [1, 2**64]}, "outside of 64 bits"),
        ([None, "x", b"x", (1,)], "tuple cannot be encoded"),
        (["\ud800"], "half a surrogate pair"),
        # What is within its bounds is never named.
        ([2**64 - 1, -(2**64), None, b"", True, "", {"a": 1}, "\ud800"], "half a surrogate pair"),
        ({"a": None, "b": [b""], "c": "\ud800"}, "half a surrogate pair"),
        ({"\ud800": 1}, "half a surrogate pair"),
    ],
)
def test_what_is_wrong_with_a_value_is_named(value, says):
    with pytest.raises(RecordInvalid, match=says):
        encode(value)


def nested(depth: int) -> Value:
    value: Value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_is_bounded_both_ways():
    deepest = nested(RECORD_DEPTH_MAX)
    assert decode(encode(deepest)) == deepest
    with pytest.raises(RecordInvalid, match="nested deeper"):
        encode(nested(RECORD_DEPTH_MAX + 1))
    with pytest.raises(RecordInvalid, match="nested deeper"):
        decode(b"\x81" * (RECORD_DEPTH_MAX + 1) + b"\x01")
    with pytest.raises(RecordInvalid):
        decode(b"\xa1\x60" * 100_000 + b"\x01")


def test_a_list_that_holds_itself_is_refused():
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(RecordInvalid, match="nested deeper"):
        encode(ring)


def test_the_size_is_checked_before_anything_is_parsed():
    with pytest.raises(TooLarge, match="262145"):
        decode(b"\xff" * (RECORD_BYTES_MAX + 1))
    assert decode(encode(b"x" * 100), size_max=102) == b"x" * 100
    with pytest.raises(TooLarge):
        decode(encode(b"x" * 100), size_max=101)


def looks_like_a_cid(raw: bytes) -> bool:
    return libipld.encode_dag_cbor(raw) != cbor2.dumps(raw, canonical=True)


def test_bytes_that_look_like_a_cid_stay_bytes():
    """A regression: libipld's encoder writes them as tag 42, one hash in some 2 500."""
    made = bytes([0x01, 0x71, 0x12, 0x20]) + bytes(32)
    found = (hashlib.sha256(seed.to_bytes(4, "big")).digest() for seed in range(100_000))
    hashed = next(digest for digest in found if looks_like_a_cid(digest))
    assert looks_like_a_cid(made)
    for raw in (made, hashed):
        encoded = encode(raw)
        assert encoded == bytes([0x58, len(raw)]) + raw
        assert decode(encoded) == raw
        assert decode(encode({"root": raw, "list": [raw]})) == {"root": raw, "list": [raw]}


LINKED: list[Any] = [
    b"\x01\x55\x00\x00",
    bytes([0x01, 0x71, 0x12, 0x20]) + bytes(32),
    (1).to_bytes(8, "little"),
]
LOOK_ALIKES: list[Any] = [
    0xD82A,
    0xD82A4100,
    -11,
    216,
    b"\xd8\x2a\x41\x00",
    b"\xd8\x2a",
    b"\xd8",
    b"\xff\xd8\x2a\x58\x20\x00",
    b"\xff",
    b"",
    bytes(0xD82A),
]
OTHERS: list[Any] = [0, 24, 2**64 - 1, True, None, "", "é*"]


def drawn(rng: Random, depth: int) -> Value:
    if not depth or rng.random() < 0.4:
        return rng.choice(rng.choice((LINKED, LOOK_ALIKES, OTHERS)))
    if rng.random() < 0.6:
        return [drawn(rng, depth - 1) for _ in range(rng.randrange(5))]
    return {rng.choice("abé") * rng.randrange(1, 3): drawn(rng, depth - 1) for _ in range(3)}


def test_exactly_one_byte_string_stands_for_what_looks_like_links():
    """cbor2 alone says what is canonical; none of its bytes changed passes for another value."""
    rng = Random(7)
    assert all(map(looks_like_a_cid, LINKED))
    for _ in range(500):
        value = drawn(rng, 3)
        raw = cbor2.dumps(value, canonical=True)
        assert encode(value) == raw
        assert decode(raw, size_max=2**24) == value
        linked = libipld.encode_dag_cbor(value)
        place, byte = rng.randrange(len(raw)), bytes([rng.randrange(256)])
        for other in (
            linked,
            raw[:place] + byte + raw[place + 1 :],
            raw[:place] + raw[place + 1 :],
            raw[:place] + rng.choice((b"\xd8\x2a", b"\x18", b"\x58")) + raw[place:],
        ):
            try:
                read = decode(other, size_max=2**24)
            except RecordInvalid:
                continue
            assert cbor2.dumps(read, canonical=True) == other


def test_the_head_of_a_link_becomes_that_of_its_bytes():
    """Else all that looks like a link is encoded by the slow encoder."""
    for size in range(1, 256):
        head = bytes([0x40 | size]) if size < 24 else bytes([0x58, size])
        link = _LINK.match(b"\xd8\x2a" + head + b"\0" + bytes(size - 1))
        bare = cbor2.dumps(bytes(size - 1))
        assert _bytes_head(link) == bare[: len(bare) - size + 1]


def test_keys_are_ordered_by_length_and_then_by_bytes():
    raw = encode({"b": 1, "aa": 2, "a": 3, "é": 4, "": 5})
    assert list(decode(raw)) == ["", "a", "b", "aa", "é"]


@pytest.mark.parametrize("empty", [[], {}], ids=["lists", "maps"])
@pytest.mark.parametrize("size_max", [4 * 1024, RECORD_BYTES_MAX, FRAME_HEADER_BYTES_MAX])
def test_a_value_has_so_many_lists_and_maps_for_its_bound(empty, size_max):
    """A byte each, they take a hundred bytes and a microsecond: a request could stop a node."""
    most = size_max // CONTAINER_BYTES
    for inner in (
        [empty] * (most - 1),
        {"a": [empty] * (most // 2), "b": [{"c": empty}] * ((most - most // 2 - 3) // 2)},
        [[[empty]] * 1] + [empty] * (most - 4),
    ):
        assert decode(encode(inner), size_max=size_max) == inner
    for inner in ([empty] * most, [[empty]] * (most // 2), {"a": [empty] * most}):
        with pytest.raises(RecordInvalid, match="more lists and maps"):
            decode(encode(inner), size_max=size_max)
    leaves = [0] * (size_max - 9)
    assert decode(encode(leaves), size_max=size_max) == leaves
