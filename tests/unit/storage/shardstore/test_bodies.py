import pytest

from xsc.base.errors import StoreDamaged
from xsc.base.merkle import root_of
from xsc.storage.shardstore.bodies import (
    Body,
    IndexEntry,
    column_of_key,
    decode_body,
    decode_entry,
    decode_gone,
    decode_number,
    encode_body,
    encode_entry,
    encode_gone,
    encode_number,
    owner_of,
    record_key,
    sequence_of,
    sequenced,
    shard_key,
)

SHARD = Body(
    shard_key(b"l" * 32, 2**32 - 1, 2**32 - 2, 255, b"c" * 32),
    b"e" * 32,
    root_of(b"data"),
    b"data",
)
RECORD = Body(record_key(b"l" * 32, b"c" * 32), b"e" * 32, b"m" * 32, b"sealed")


@pytest.mark.parametrize("body", [SHARD, RECORD])
def test_a_body_comes_back(body):
    assert decode_body(encode_body(body)) == body


@pytest.mark.parametrize("body", [SHARD, RECORD])
def test_a_cut_body_is_damaged_or_has_other_data(body):
    raw = encode_body(body)
    for size in range(len(raw)):
        try:
            assert decode_body(raw[:size]) != body
        except StoreDamaged:
            continue


def test_a_key_tells_its_place():
    assert column_of_key(SHARD.index_key) == (2**32 - 2, 255, b"c" * 32)
    assert owner_of(SHARD.index_key) == owner_of(RECORD.index_key) == (b"l" * 32, b"c" * 32)
    assert sequence_of(sequenced(b"b", 2**40)) == 2**40
    assert sequenced(b"b", 255) < sequenced(b"b", 256)


def test_entries_numbers_and_notes_come_back():
    entry = IndexEntry(2**40, 0, b"e" * 32, b"r" * 32)
    assert decode_entry(encode_entry(entry)) == entry
    assert decode_number(encode_number(5)) == 5
    assert decode_gone(encode_gone([(b"key", 5)])) == [(b"key", 5)]


@pytest.mark.parametrize("decode", [decode_entry, decode_number, decode_gone, decode_body])
@pytest.mark.parametrize("raw", [b"", b"\x00", b"\xff", b"\x80", b"\xa0", b"\x82\x02\x05"])
def test_anything_else_is_damage(decode, raw):
    with pytest.raises(StoreDamaged):
        decode(raw)
