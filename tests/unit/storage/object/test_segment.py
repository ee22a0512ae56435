from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import vectors
from xsc.base.errors import RecordInvalid
from xsc.base.limits import SEGMENT_BYTES as FULL
from xsc.storage.object.segment import Opener, Place, count, length_of, open_sealed, seal

KEY, NONCE, PLACE = b"k" * 32, b"n" * 12, Place(b"l" * 32, 3, 20, False)
PLAIN = bytes(range(20))


@pytest.mark.parametrize("case", vectors("segment")["cases"])
def test_sealing_gives_the_pinned_bytes(case):
    value = {
        name: bytes.fromhex(item) if isinstance(item, str) else item for name, item in case.items()
    }
    place = Place(value["locate"], value["index"], len(value["plain"]), value["final"])
    ciphertext, tag = seal(value["content_key"], value["nonce"], place, value["plain"])
    assert (bytes(ciphertext), tag) == (value["ciphertext"], value["tag"])
    assert (
        open_sealed(value["content_key"], value["nonce"], tag, place, ciphertext) == value["plain"]
    )


@pytest.mark.parametrize(
    "place",
    [
        replace(PLACE, locate=b"m" * 32),
        replace(PLACE, index=4),
        replace(PLACE, length=19),
        replace(PLACE, final=True),
    ],
)
def test_a_segment_opens_only_in_its_place(place):
    ciphertext, tag = seal(KEY, NONCE, PLACE, PLAIN)
    with pytest.raises(RecordInvalid):
        open_sealed(KEY, NONCE, tag, place, ciphertext)


def test_every_flipped_byte_is_refused():
    ciphertext, tag = seal(KEY, NONCE, PLACE, PLAIN)
    for index in range(20):
        bad = bytearray(ciphertext)
        bad[index] ^= 1
        with pytest.raises(RecordInvalid):
            open_sealed(KEY, NONCE, tag, PLACE, bytes(bad))
    for index in range(16):
        bad = bytearray(tag)
        bad[index] ^= 0x80
        with pytest.raises(RecordInvalid):
            open_sealed(KEY, NONCE, bytes(bad), PLACE, ciphertext)


def test_ciphertext_is_as_long_as_plaintext():
    ciphertext, tag = seal(KEY, NONCE, PLACE, PLAIN)
    assert len(ciphertext) == 20
    assert len(tag) == 16


@pytest.mark.parametrize(
    ("size", "lengths"),
    [(1, [1]), (FULL, [FULL]), (FULL + 1, [FULL, 1]), (3 * FULL - 1, [FULL, FULL, FULL - 1])],
)
def test_only_the_last_segment_is_shorter(size, lengths):
    assert count(size) == len(lengths)
    assert [length_of(index, size) for index in range(len(lengths))] == lengths


def open_pieces(key, nonce, tag, place, pieces):
    opener = Opener(key, nonce, tag, place)
    plain = b"".join(opener.update(piece) for piece in pieces)
    opener.finish()
    return plain


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_a_segment_in_pieces_opens_like_a_whole_one(plain, cuts):
    place = replace(PLACE, length=len(plain))
    ciphertext, tag = seal(KEY, NONCE, place, plain)
    edges = [0, *sorted(min(at, len(plain)) for at in cuts), len(plain)]
    pieces = [ciphertext[low:high] for low, high in pairwise(edges)]
    assert open_pieces(KEY, NONCE, tag, place, pieces) == plain
    with pytest.raises(RecordInvalid):
        open_pieces(KEY, NONCE, bytes(16), place, pieces)
    with pytest.raises(RecordInvalid):
        open_pieces(KEY, NONCE, tag, replace(place, index=4), pieces)
    with pytest.raises(RecordInvalid):
        open_pieces(KEY, NONCE, tag, place, [*pieces, b"x"])
    with pytest.raises(RecordInvalid, match="not as long as it should be"):
        open_pieces(KEY, NONCE, tag, replace(place, length=len(plain) + 1), pieces)
    if plain:
        at = cuts[0] % len(plain) if cuts else 0
        bad = bytearray(b"".join(pieces))
        bad[at] ^= 1
        with pytest.raises(RecordInvalid):
            open_pieces(KEY, NONCE, tag, place, [bytes(bad)])
