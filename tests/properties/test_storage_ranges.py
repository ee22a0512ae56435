"""A range is the slice of the object, from as few bytes as hold it, and never a wrong byte."""

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.storage.world import Answer, World, content, finished, get, put
from xsc.base.errors import ShardsInsufficient
from xsc.base.limits import KIB, LEAF_BYTES, MIB, SEGMENT_BYTES
from xsc.base.merkle import leaf_count, leaf_hashes, prove_span, root_of, span_holds
from xsc.storage.object.erasure import Code, cut
from xsc.storage.object.segment import (
    Place,
    decipher_at,
    is_whole,
    open_sealed,
    pieces_of,
    rebuild_span,
    seal,
)

KEY, NONCE = bytes(range(32)), bytes(range(12))
LARGE = SEGMENT_BYTES + 200 * KIB + 7
"""A whole segment, and one whose shards have four leaves, the last of 2050 bytes."""


def near(points, end):
    found = {point + step for point in points for step in (-1, 0, 1)}
    return sorted(point for point in found if 0 <= point <= end)


# Spans of leaves


@pytest.mark.parametrize("leaves", range(1, 18))
@pytest.mark.parametrize("short", [0, 1, LEAF_BYTES - 1])
def test_every_span_of_every_small_shard_proves_itself(leaves, short):
    data = content(leaves * LEAF_BYTES - short)
    root, hashes = root_of(data), leaf_hashes(data)
    for first, stop in itertools.combinations(range(leaves + 1), 2):
        path = prove_span(hashes, first, stop)
        span = data[first * LEAF_BYTES : stop * LEAF_BYTES]
        assert span_holds(root, len(data), first, span, path)
        assert len(path) <= 2 * leaves.bit_length()


@pytest.mark.parametrize("leaves", [1, 2, 3, 5, 7, 8])
def test_no_span_proves_another_and_no_path_can_be_changed(leaves):
    data = content(leaves * LEAF_BYTES - 5)
    size, root, hashes = len(data), root_of(data), leaf_hashes(data)
    for first, stop in itertools.combinations(range(leaves + 1), 2):
        path = prove_span(hashes, first, stop)
        span = data[first * LEAF_BYTES : stop * LEAF_BYTES]
        for other in range(-1, leaves + 1):
            assert span_holds(root, size, other, span, path) == (other == first)
        for index in range(0, len(span), LEAF_BYTES):
            for place in (index, min(index + LEAF_BYTES, len(span)) - 1):
                bad = bytearray(span)
                bad[place] ^= 0x10
                assert not span_holds(root, size, first, bytes(bad), path)
        assert not span_holds(root, size, first, span + b"x", path)
        assert not span_holds(root, size, first, span[:-1], path)
        assert not span_holds(root, size, first, b"", path)
        assert not span_holds(root, size + 1, first, span, path)
        assert not span_holds(root, size - 1, first, span, path)
        assert not span_holds(root, size, first, span, [*path, bytes(32)])
        for index in range(len(path)):
            assert not span_holds(root, size, first, span, path[:index])
            changed = [*path[:index], bytes(32), *path[index + 1 :]]
            assert not span_holds(root, size, first, span, changed)


def test_an_empty_shard_has_one_empty_leaf():
    assert span_holds(root_of(b""), 0, 0, b"", prove_span(leaf_hashes(b""), 0, 1))
    assert not span_holds(root_of(b""), 0, 1, b"", [])


# Deciphering from anywhere


@pytest.mark.parametrize("size", [1, 15, 16, 17, 48, 100])
def test_every_piece_of_a_small_segment_is_what_gcm_gives(size):
    place = Place(b"l" * 32, 0, size, final=True)
    ciphertext, tag = seal(KEY, NONCE, place, content(size))
    plain = open_sealed(KEY, NONCE, tag, place, ciphertext)
    for start, stop in itertools.combinations(range(size + 1), 2):
        assert decipher_at(KEY, NONCE, start, ciphertext[start:stop]) == plain[start:stop]


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=12, max_size=12), st.data())
def test_any_piece_of_a_full_segment_is_what_gcm_gives(key, nonce, draw):
    size = draw.draw(st.sampled_from([SEGMENT_BYTES, SEGMENT_BYTES - 1, 70_000]))
    start = draw.draw(st.integers(0, size - 1))
    stop = draw.draw(st.integers(start + 1, min(size, start + 4 * LEAF_BYTES)))
    plain = memoryview(content(SEGMENT_BYTES))[:size]
    ciphertext, _ = seal(key, nonce, Place(b"l" * 32, 7, size, final=False), plain)
    assert decipher_at(key, nonce, start, ciphertext[start:stop]) == plain[start:stop]


# Which leaves


CODES = [Code(4, 2), Code(1, 2), Code(3, 1), Code(2, 0)]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("length", [1, 5, 16 * KIB, 70_001, 4 * 3 * LEAF_BYTES, 300 * KIB + 3])
def test_the_pieces_of_a_range_are_the_range_from_the_fewest_leaves(code, length):
    data = content(length)
    shards = cut(data, code)
    size = code.shard_bytes(length)
    edges = [column * size for column in range(code.k + 1)]
    leaves = [edge + n * LEAF_BYTES for edge in edges for n in (0, 1, 2)]
    for start, stop in itertools.combinations(near([*edges, *leaves, length], length), 2):
        pieces = pieces_of(start, stop, length, code)
        joined, needed = b"", set()
        for piece in pieces:
            span = piece.span
            low = span.first * LEAF_BYTES
            held = memoryview(shards[piece.column].data)[low : low + span.size_bytes]
            assert len(held) == span.size_bytes
            joined += bytes(held[piece.low : piece.high])
            needed |= {(piece.column, leaf) for leaf in range(span.first, span.stop)}
        assert joined == data[start:stop]
        exact = {(at // size, at % size // LEAF_BYTES) for at in (start, stop - 1)}
        exact |= {
            (at // size, at % size // LEAF_BYTES) for at in [*leaves, *edges] if start <= at < stop
        }
        assert exact <= needed
        for piece in pieces:
            # The first and the last leaf of each piece hold a byte of the range.
            assert piece.low < LEAF_BYTES
            assert piece.high > piece.span.size_bytes - LEAF_BYTES
        # Where a shard of zeros pads the last row, not all data columns hold bytes.
        if is_whole(start, stop, length, code):
            assert len(needed) == code.k * leaf_count(size)


@pytest.mark.parametrize("code", [Code(4, 2), Code(1, 2), Code(3, 3)])
def test_a_lost_column_comes_back_leaf_by_leaf_from_any_k_others(code):
    length = code.k * (2 * LEAF_BYTES + 100) - 1
    shards = cut(content(length), code)
    for column in range(code.k):
        (piece,) = pieces_of(
            column * code.shard_bytes(length), column * code.shard_bytes(length) + 1, length, code
        )
        others = [other for other in range(code.n) if other != column]
        for chosen in itertools.combinations(others, code.k):
            for first, stop in itertools.combinations(range(4), 2):
                span = type(piece.span)(first, stop, piece.span.shard_bytes)
                at = slice(first * LEAF_BYTES, first * LEAF_BYTES + span.size_bytes)
                leaves = {other: memoryview(shards[other].data)[at] for other in chosen}
                want = bytes(memoryview(shards[column].data)[at])
                assert bytes(rebuild_span(leaves, code, column, span)) == want


# Through a network of hosts


def counted(host, counts):
    def count(method, answer):
        if method == "storage.get":
            counts.append(sum(len(part) for part in answer.parts))
        return answer

    host.corrupt = count


def budget(start, stop, size):
    """The bytes of all leaves that hold a byte of the range."""
    need = 0
    for index in range(start // SEGMENT_BYTES, (stop - 1) // SEGMENT_BYTES + 1):
        origin = index * SEGMENT_BYTES
        length = min(SEGMENT_BYTES, size - origin)
        low, high = max(0, start - origin), min(length, stop - origin)
        need += sum(piece.span.size_bytes for piece in pieces_of(low, high, length, Code(4, 2)))
    return need


async def test_ranges_between_all_edges_are_slices_from_only_their_leaves():
    world = await World(8).start()
    data = content(LARGE)
    capability = (await put(world[0], data)).capability
    counts = []
    for host in world.hosts:
        counted(host, counts)
    shard = -(-(200 * KIB + 7) // 4)
    edges = [0, LEAF_BYTES, MIB, 2 * MIB, SEGMENT_BYTES - LEAF_BYTES, SEGMENT_BYTES, LARGE]
    edges += [SEGMENT_BYTES + column * shard for column in range(4)]
    edges += [SEGMENT_BYTES + shard + leaf * LEAF_BYTES for leaf in range(1, 4)]
    pairs = list(itertools.combinations(near(edges, LARGE), 2))
    # Three goes into no row of the pairs evenly, so that each edge begins and ends some.
    for start, stop in pairs if "TEST_LONG" in os.environ else pairs[::3]:
        counts.clear()
        assert await get(world[7], capability, start=start, stop=stop) == data[start:stop]
        assert sum(counts) == budget(start, stop, LARGE)


@given(st.data())
async def test_any_range_with_any_two_hosts_gone_is_a_slice(draw):
    world = await World(8).start()
    size = draw.draw(st.sampled_from([1, 4096, 4097, 70_000, 200 * KIB + 7, LARGE]))
    data = content(size)
    capability = (await put(world[0], data)).capability
    start = draw.draw(st.integers(0, size))
    stop = draw.draw(st.integers(start, size))
    lost = draw.draw(st.sets(st.integers(1, 6), max_size=2))
    for index in lost:
        world[index].up = False
    counts = []
    for host in world.hosts:
        counted(host, counts)
    assert await get(world[7], capability, start=start, stop=stop) == data[start:stop]
    assert sum(counts) <= 4 * budget(start, stop, size) if size > 4096 and start < stop else True


async def test_a_missing_column_costs_the_same_leaves_of_k_others():
    world = await World(8).start()
    data = content(SEGMENT_BYTES)
    capability = (await put(world[0], data)).capability
    counts = []
    for host in world.hosts:
        counted(host, counts)
    world[1].up = False
    assert await get(world[7], capability, start=5, stop=6) == data[5:6]
    assert counts == [LEAF_BYTES] * 4


@pytest.mark.parametrize("place", [0, 1000, LEAF_BYTES - 1])
@pytest.mark.parametrize("liars", [(1,), (1, 2), (1, 3)])
async def test_a_corrupt_leaf_is_caught_reported_and_rebuilt(place, liars):
    world = await World(8).start()
    data = content(SEGMENT_BYTES)
    capability = (await put(world[0], data)).capability

    def corrupt(method, answer):
        if method != "storage.get":
            return answer
        bad = [bytearray(part) for part in answer.parts]
        for part in bad:
            part[place] ^= 1
        return Answer(answer.header, [memoryview(bytes(part)) for part in bad])

    for liar in liars:
        world[liar].corrupt = corrupt
    assert await get(world[7], capability, start=10, stop=2000) == data[10:2000]
    assert (world[1].id, "shard_mismatch") in world[7].reports
    for liar in (1, 2, 3):
        world[liar].corrupt = corrupt
    with pytest.raises(ShardsInsufficient):
        await get(world[7], capability, start=10, stop=2000)


async def test_every_leaf_of_a_range_is_checked():
    world = await World(8).start()
    data = content(SEGMENT_BYTES)
    capability = (await put(world[0], data)).capability
    for leaf in range(3):

        def corrupt(method, answer, leaf=leaf):
            if method != "storage.get":
                return answer
            bad = bytearray(answer.parts[0])
            bad[leaf * LEAF_BYTES + 7] ^= 0x40
            return Answer(answer.header, [memoryview(bytes(bad))])

        world[7].reports.clear()
        world[1].corrupt = corrupt
        stop = 3 * LEAF_BYTES
        assert await get(world[7], capability, start=0, stop=stop) == data[:stop]
        assert world[7].reports == [(world[1].id, "shard_mismatch")]


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("proofs"),
        lambda header: header.update(proofs=[]),
        lambda header: header.update(proofs=[[b"short"]]),
        lambda header: header.update(proofs=[7]),
        lambda header: header.update(proofs=[[bytes(32)] * 65]),
        lambda header: header.update(proofs=[[], []]),
    ],
)
async def test_an_answer_without_its_proof_is_refused_and_reported(change):
    world = await World(8).start()
    data = content(SEGMENT_BYTES)
    capability = (await put(world[0], data)).capability

    def corrupt(method, answer):
        if method == "storage.get":
            change(answer.header)
        return answer

    world[1].corrupt = corrupt
    assert await get(world[7], capability, start=0, stop=10) == data[:10]
    assert (world[1].id, "record_invalid") in world[7].reports


async def test_a_late_host_is_raced_for_its_leaves():
    world = await World(8).start()
    data = content(SEGMENT_BYTES)
    capability = (await put(world[0], data)).capability
    world[1].delay = lambda method: 10_000 if method == "storage.get" else 0
    begun = world.clock.now_ms()
    assert await finished(world, get(world[7], capability, start=9, stop=99)) == data[9:99]
    assert world.clock.now_ms() - begun == 50
