"""What a reader that went away was given last: exact, bounded, and not asked for again."""

import itertools
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.storage.world import World, content, get, put
from xsc.base.limits import READ_AHEAD_KEPT_MS
from xsc.storage.transfer.read_ahead_cache import (
    READ_AHEAD_BYTES,
    READ_AHEAD_READS_MAX,
    READ_AHEAD_TOTAL_BYTES_MAX,
    ReadAheadCache,
)

MIB = 2**20
ONE, OTHER = (b"l" * 32, b"m" * 32), (b"l" * 32, b"n" * 32)


def given_to(read_ahead, data, cuts=(), start=0, key=ONE):
    """Let a read give these bytes, cut there."""
    cached = read_ahead.begin(key, start)
    edges = [0, *cuts, len(data)]
    for low, high in itertools.pairwise(edges):
        read_ahead.give(cached, memoryview(data)[low:high])
    return cached


@given(st.integers(0, 40), st.lists(st.integers(0, 20)), st.integers(0, 70), st.booleans())
def test_what_is_taken_is_what_was_given_there(start, cuts, at, left):
    read_ahead = ReadAheadCache()
    data = bytes(range(20))
    cached = given_to(read_ahead, data, sorted(cuts), start)
    if left:
        read_ahead.end(cached, 0, taken=False)
    found = b"".join(read_ahead.take(ONE, at, 0))
    assert found == (data[at - start :] if start <= at < start + len(data) else b"")
    assert read_ahead.take(OTHER, at, 0) == []


def test_a_reader_that_took_all_ends_what_is_kept_of_those_before():
    read_ahead = ReadAheadCache()
    for start, data in ((0, b"abc"), (2, b"cde"), (7, b"hij")):
        read_ahead.end(given_to(read_ahead, data, start=start), 0, taken=False)
    read_ahead.end(given_to(read_ahead, b"abc", key=OTHER), 0, taken=False)
    reading = given_to(read_ahead, b"abc")
    read_ahead.end(given_to(read_ahead, b"def", start=3), 0, taken=True)
    # What lies behind its end, belongs to another object, or is still being read.
    assert read_ahead.size_bytes == 9
    assert b"".join(read_ahead.take(ONE, 1, 0)) == b"bc"
    assert b"".join(read_ahead.take(ONE, 8, 0)) == b"ij"
    read_ahead.end(reading, 0, taken=True)
    assert read_ahead.take(ONE, 1, 0) == []


def test_of_one_read_is_kept_what_sockets_and_a_client_hold():
    read_ahead = ReadAheadCache()
    cached = read_ahead.begin(ONE, 0)
    for number in range(20):
        read_ahead.give(cached, bytes([number]) * MIB)
        assert read_ahead.size_bytes == min((number + 1) * MIB, READ_AHEAD_BYTES)
    read_ahead.end(cached, 0, taken=False)
    behind = 20 * MIB - READ_AHEAD_BYTES
    assert read_ahead.take(ONE, behind - 1, 0) == []
    assert (
        b"".join(read_ahead.take(ONE, behind + 5, 0))[:MIB]
        == bytes([15]) * (MIB - 5) + bytes([16]) * 5
    )


def test_of_all_reads_is_kept_what_may_be():
    read_ahead = ReadAheadCache()
    piece = bytes(MIB)
    reads = [read_ahead.begin((bytes([number]) * 32, b""), 0) for number in range(10)]
    for _ in range(READ_AHEAD_BYTES // MIB):
        for cached in reads:
            read_ahead.give(cached, piece)
            assert read_ahead.size_bytes <= READ_AHEAD_TOTAL_BYTES_MAX
    assert read_ahead.size_bytes == READ_AHEAD_TOTAL_BYTES_MAX
    # Who began last has all, and who began first nothing.
    assert (reads[0].size_bytes, reads[-1].size_bytes) == (0, READ_AHEAD_BYTES)
    read_ahead.end(reads[-1], 0, taken=False)
    assert len(read_ahead.take(reads[-1].key, 0, 0)) == READ_AHEAD_BYTES // MIB


def test_no_more_readers_are_remembered_than_may_be_and_none_for_long():
    read_ahead = ReadAheadCache()
    for number in range(READ_AHEAD_READS_MAX + 3):
        read_ahead.end(
            given_to(read_ahead, b"data", key=(bytes([number]) * 32, b"")), number, taken=False
        )
    assert read_ahead.size_bytes == READ_AHEAD_READS_MAX * 4
    assert read_ahead.take((bytes([2]) * 32, b""), 0, 0) == []
    assert read_ahead.take((bytes([3]) * 32, b""), 0, 0) != []
    reading = given_to(read_ahead, b"data")
    read_ahead.expire(READ_AHEAD_KEPT_MS + 10)
    # Those that left after that moment, and the one that still reads.
    assert read_ahead.size_bytes == (READ_AHEAD_READS_MAX + 2 - 10) * 4 + 4
    read_ahead.expire(2**40)
    assert read_ahead.size_bytes == 4
    read_ahead.end(reading, 0, taken=True)
    assert read_ahead.size_bytes == 0


async def read_until(host, capability, size_bytes, start=0):
    """Take so much from there on, and go away; return what was given."""
    got = bytearray()
    reader = await host.service.open(capability)
    async with aclosing(reader.stream(start)) as stream:
        async for piece in stream:
            got += piece
            if len(got) >= size_bytes:
                break
    return bytes(got)


def asked(host):
    return [method for _, method in host.calls].count("storage.get")


@pytest.mark.parametrize("lost", [0, 1, MIB, 4 * MIB + 99_999, READ_AHEAD_BYTES])
async def test_a_client_that_is_killed_costs_a_segment_whatever_it_had_not_read(lost):
    world = await World(8).start()
    data = content(14 * MIB + 5)
    capability = (await put(world[0], data)).capability
    reader = world[7]
    got = await read_until(reader, capability, 6 * MIB)
    assert got == data[: len(got)]
    back = len(got) - lost
    assert got[:back] + await read_until(reader, capability, 2**30, back) == data
    # 16 shards are the object, 4 were on their way when the reader left.
    assert asked(reader) <= 16 + 4
    assert reader.service.read_ahead.size_bytes == 0


async def test_a_client_that_is_killed_again_and_again_costs_a_segment_each_time():
    world = await World(8).start()
    data = content(12 * MIB)
    capability = (await put(world[0], data)).capability
    got, kills = b"", 0
    while len(got) < len(data):
        more = await read_until(world[7], capability, 2 * MIB, len(got))
        # Most of it lay in the sockets, and comes once more.
        lost = 0 if len(got) + len(more) == len(data) else len(more) * 2 // 3
        got += more[: len(more) - lost]
        kills += 1
    assert got == data
    assert kills > 5
    assert asked(world[7]) <= 12 + 4 * kills


async def test_two_readers_of_one_object_take_nothing_from_each_other():
    world = await World(8).start()
    data = content(9 * MIB)
    capability = (await put(world[0], data)).capability
    reader = await world[7].service.open(capability)
    async with aclosing(reader.stream()) as first:
        got = bytes(await anext(first))
        # It still reads, by all that is known here, when the same is asked for again.
        assert await get(world[7], capability) == data
        async for piece in first:
            got += piece
    assert got == data


async def test_a_range_ends_where_it_should_also_from_what_is_kept():
    world = await World(8).start()
    data = content(9 * MIB)
    capability = (await put(world[0], data)).capability
    await read_until(world[7], capability, 3 * MIB)
    before = asked(world[7])
    reader = await world[7].service.open(capability)
    part = b"".join([bytes(piece) async for piece in reader.stream(MIB + 7, MIB + 9)])
    assert part == data[MIB + 7 : MIB + 9]
    assert asked(world[7]) == before
