"""Segments read column by column: in order, within their room, and only what was sealed."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.settle import settle
from tests.unit.storage.world import World, content, put
from xsc.base.errors import RecordInvalid, ShardsInsufficient
from xsc.storage.object.erasure import Code, encode
from xsc.storage.object.segment import Opener, Place, seal
from xsc.storage.transfer.get import ByteBudget, SegmentDecoder, row_bytes

MIB = 2**20
KEY, NONCE = b"k" * 32, b"n" * 12


@given(st.lists(st.integers(0, 10), max_size=30), st.data())
def test_room_is_given_in_order_and_never_more_than_there_is(sizes, data):
    async def play():
        budget = ByteBudget(10)
        tickets = [budget.ticket(size) for size in sizes]
        held = []
        while True:
            given_to = [ticket.done() for ticket in tickets]
            assert given_to == sorted(given_to, reverse=True)
            done = sum(given_to)
            freed = sum(held)
            assert sum(sizes[:done]) - freed <= 10
            if done < len(sizes):
                # Whoever is next does not fit.
                assert sum(sizes[: done + 1]) - freed > 10
            if len(held) == done:
                assert done == len(sizes)
                return
            held.append(sizes[len(held)])
            budget.free(held[-1])

    asyncio.run(play())


async def test_room_goes_past_who_has_given_up():
    budget = ByteBudget(10)
    first, second, third = (budget.ticket(size) for size in (10, 9, 1))
    second.cancel()
    budget.free(10)
    assert first.done()
    assert third.done()


def sealed(length, code, tag=None):
    plain = content(length)
    place = Place(b"l" * 32, 3, length, final=False)
    ciphertext, right = seal(KEY, NONCE, place, plain)
    opener = Opener(KEY, NONCE, tag or right, place)
    return (
        plain,
        encode(ciphertext, code),
        lambda: SegmentDecoder(opener, place, code, ByteBudget(2**20)),
    )


@pytest.mark.parametrize("code", [Code(1, 1), Code(2, 1), Code(3, 2), Code(4, 0)])
@pytest.mark.parametrize("length", [1, 5, 99, 16 * 1024 * 3 + 1])
async def test_any_k_shards_in_any_order_open_the_columns_in_order(code, length):
    for order in itertools.permutations(range(code.n), code.k):
        plain, shards, intake_of = sealed(length, code)
        decoder = intake_of()
        edges = [0, *itertools.accumulate(row_bytes(length, code))]
        opened = b""
        taken = set()
        for column in order:
            decoder.take(column, shards[column])
            taken.add(column)
            opened += b"".join(decoder.opened())
            run = next(row for row in range(code.k + 1) if row not in taken or row == code.k)
            assert opened == plain[: edges[run]]
        assert decoder.is_open == (run == code.k)
        decoder.complete({column: shards[column] for column in order})
        assert opened + b"".join(decoder.opened()) == plain
        assert decoder.is_open


@pytest.mark.parametrize("late", [False, True])
async def test_the_last_column_waits_for_the_tag(late):
    code = Code(3, 2)
    plain, shards, intake_of = sealed(900, code, tag=bytes(16))
    decoder = intake_of()
    for column in (0, 1) if late else (0, 1, 2):
        decoder.take(column, shards[column])
    with pytest.raises(RecordInvalid, match="segment 3 does not open"):
        decoder.complete({column: shards[column] for column in (0, 1, 4 if late else 2)})
    assert b"".join(decoder.opened()) == plain[:600]
    assert not decoder.is_open


async def test_a_shard_of_another_size_is_no_part_of_the_segment():
    _, shards, intake_of = sealed(900, Code(3, 2))
    decoder = intake_of()
    decoder.take(0, bytes(shards[0]) + b"x")
    decoder.take(1, shards[1])
    with pytest.raises(RecordInvalid, match="not as long as it should be"):
        decoder.complete(dict(enumerate(shards[:3])))
    assert not list(decoder.opened())


async def gets(world, reader):
    """Return how many shards were asked for, once nothing more happens."""
    await settle()
    return [method for _, method in world[reader].calls].count("storage.get")


async def test_no_more_than_a_segment_is_ever_asked_for_ahead():
    world = await World(8).start()
    data = content(9 * MIB)
    capability = (await put(world[0], data)).capability
    reader = await world[7].service.open(capability)
    stream = reader.stream()
    got = [await anext(stream)]
    assert await gets(world, 7) == 4
    async for piece in stream:
        got.append(piece)
        # This piece is not taken yet, so that it counts; the columns of the last segment are
        # a quarter as long.
        asked = await gets(world, 7)
        taken = len(got) - 1
        assert asked == min(12, 4 + taken) if taken < 5 else asked == 12
    assert b"".join(got) == data


async def test_nothing_comes_of_an_object_whose_first_segment_cannot_be_had():
    world = await World(8).start()
    capability = (await put(world[0], content(9 * MIB))).capability
    for index in (2, 3, 5):
        world[index].up = False
    reader = await world[7].service.open(capability)
    stream = reader.stream()
    with pytest.raises(ShardsInsufficient, match="of segment 0 "):
        await anext(stream)
