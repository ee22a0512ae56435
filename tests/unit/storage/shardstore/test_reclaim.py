"""Which slices are compacted, and that the directory of a real store shrinks by it."""

import itertools
import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.clock import InlineExecutor
from xsc.base.errors import XscError
from xsc.base.ids import ID_BYTES
from xsc.base.limits import KIB, MIB
from xsc.base.log import SilentLog
from xsc.base.merkle import root_of
from xsc.base.units import held_bytes
from xsc.db.leveldb import LevelDBKeyValue
from xsc.node.home.stores import open_stores
from xsc.storage.object.manifest import hash_of
from xsc.storage.shardstore.bodies import Body, record_key, shard_key
from xsc.storage.shardstore.compactor import (
    BUCKET,
    DEAD_SHARE,
    SLICE_BYTES,
    DeadSpace,
    live_by_bucket,
)
from xsc.storage.shardstore.store import StorageNode
from xsc.storage.shardstore.writer import Write

BODY = MIB
OWNER = b"o" * 32


def dense(low, high):
    """Every sequence has a body of 1 MiB."""
    return (high - low) * BODY


@given(st.sets(st.integers(0, 3000)), st.booleans())
def test_slices_are_bounded_apart_and_cover_all_that_is_worth_it(gone, everything):
    space = DeadSpace()
    for sequence in gone:
        space.bury(sequence, BODY)
    assert space.size_bytes == len(gone) * BODY
    planned = space.plan(dense, everything=everything)
    assert all(left.stop <= right.start for left, right in itertools.pairwise(planned))
    covered = set()
    for piece in planned:
        assert dense(piece.start, piece.stop) <= max(SLICE_BYTES, BUCKET * BODY)
        dead = sum(piece.start <= sequence < piece.stop for sequence in gone)
        assert dead
        assert everything or dead * BODY * DEAD_SHARE >= dense(piece.start, piece.stop)
        covered |= {sequence for sequence in gone if piece.start <= sequence < piece.stop}
        space.done(piece)
    if everything:
        assert covered == gone
    # What is left dead is less than one part in DEAD_SHARE of the buckets that hold it.
    left = gone - covered
    buckets = {sequence // BUCKET for sequence in left}
    assert space.size_bytes == len(left) * BODY
    assert len(left) * DEAD_SHARE <= len(buckets) * BUCKET


@given(st.lists(st.booleans(), max_size=400))
def test_a_survey_knows_what_the_deletions_knew(alive):
    known, found = DeadSpace(), DeadSpace()
    for sequence, lives in enumerate(alive):
        if not lives:
            known.bury(sequence, BODY)
    live = live_by_bucket((n, BODY) for n, lives in enumerate(alive) if lives)

    def size_of(low, high):
        return max(0, min(high, len(alive)) - low) * BODY

    found.survey(live, size_of)
    last = max(live, default=-1)
    expected = sum(not lives for n, lives in enumerate(alive) if n // BUCKET <= last)
    assert found.size_bytes == expected * BODY
    assert known.size_bytes >= found.size_bytes


def directory_bytes(path):
    total = 0
    for file in path.iterdir():
        with suppress(FileNotFoundError):  # the database drops files in the background
            total += file.stat().st_size
    return total


async def test_half_of_a_real_store_deleted_leaves_the_directory_at_the_live_data(tmp_path):
    path = tmp_path / "bodies"
    bodies = LevelDBKeyValue(path, write_buffer_bytes=MIB)
    index = LevelDBKeyValue(tmp_path / "index")
    executor = InlineExecutor()

    def node():
        return StorageNode(
            capacity_bytes=2**40,
            bodies=bodies,
            index=index,
            executor=executor,
            log=SilentLog(),
        )

    data = os.urandom(256 * KIB)
    objects = 32
    shards = node()
    await shards.start()
    for segment in range(4):
        for number in range(objects):
            locate = number.to_bytes(32, "big")
            body = Body(shard_key(locate, 0, segment, 0, OWNER), OWNER, root_of(data), data)
            await shards.store([body])
    for number in range(0, objects, 2):
        await shards.delete(number.to_bytes(32, "big"), OWNER)
        if number == objects // 2:
            # What was deleted before a start is reclaimed after it.
            shards = node()
            await shards.start()
            await shards.compactor.survey()
    live = shards.used_bytes
    assert live == objects // 2 * 4 * held_bytes(len(data))
    assert directory_bytes(path) > 1.5 * live
    waits = 0

    async def pause():
        nonlocal waits
        waits += 1

    assert await shards.compactor.compact(pause) == waits + 1 > 0
    assert directory_bytes(path) <= 1.15 * live
    bodies.close()
    index.close()


async def started(stores):
    executor = InlineExecutor()
    node = StorageNode(
        capacity_bytes=2**40,
        bodies=stores.bodies,
        index=stores.index,
        executor=executor,
        log=SilentLog(),
    )
    await node.start()
    return node


@pytest.mark.parametrize("size", [1, 100, 4_000])
@pytest.mark.parametrize("kind", ["shard", "record"])
async def test_what_a_host_counts_covers_what_it_takes_on_its_disk(tmp_path, kind, size):
    """However small the bodies are: else many small ones fill a disk that nobody pays for."""

    def taken():
        return sum(directory_bytes(tmp_path / "db" / name) for name in ("bodies", "index"))

    stores = open_stores(tmp_path / "db", SilentLog())
    empty = taken()
    node = await started(stores)
    for _ in range(60):
        locate, data = os.urandom(ID_BYTES), os.urandom(size)
        if kind == "shard":
            root = root_of(data)
            bodies = [Body(shard_key(locate, 0, s, 5, OWNER), OWNER, root, data) for s in range(60)]
            await node.store(bodies)
        else:
            proof = hash_of(data)
            customers = [os.urandom(ID_BYTES) for _ in range(60)]
            records = [Body(record_key(locate, each), OWNER, proof, data) for each in customers]
            for done in await node.writer.store_together([Write([record]) for record in records]):
                assert not isinstance(done, XscError)
    await node.close()
    stores.close()
    # What was only in logs is in tables now.
    open_stores(tmp_path / "db", SilentLog()).close()
    assert taken() - empty <= node.used_bytes


def tiny(locate, count):
    return [
        Body(shard_key(locate, 0, s, 0, OWNER), OWNER, root_of(b"x"), b"x") for s in range(count)
    ]


async def test_small_bodies_that_are_deleted_give_their_room_back(tmp_path):
    stores = open_stores(tmp_path / "db", SilentLog())
    node = await started(stores)
    for number in range(100):
        locate = number.to_bytes(32, "big")
        bodies = tiny(locate, 64)
        await node.store(bodies)
    stores.close()
    # What was only in logs is in tables now.
    stores = open_stores(tmp_path / "db", SilentLog())
    node = await started(stores)
    for number in range(100):
        await node.delete(number.to_bytes(32, "big"), OWNER)
    before = directory_bytes(tmp_path / "db" / "bodies")
    assert await node.compactor.compact() > 0
    assert directory_bytes(tmp_path / "db" / "bodies") < before // 2
    stores.close()


async def test_who_stores_and_deletes_again_and_again_leaves_nothing_on_the_disk(
    tmp_path, monkeypatch
):
    """Not even a note of each deletion, which nobody would be paid for."""
    monkeypatch.setattr("xsc.storage.shardstore.compactor.GONE_BYTES_MAX", 64 * KIB)
    stores = open_stores(tmp_path / "db", SilentLog())
    node = await started(stores)
    most = 0
    for number in range(40):
        locate = number.to_bytes(32, "big")
        bodies = tiny(locate, 250)
        await node.store(bodies)
        await node.delete(locate, OWNER)
        await node.compactor.compact()
        most = max(most, sum(len(value) for _, value in stores.bodies.scan(b"g", b"h")))
    assert most <= 2 * 64 * KIB
    assert (await node.audit()).whole
    stores.close()
    # What was dropped was not needed: a start finds the same, also without its index.
    for rebuild in (False, True):
        stores = open_stores(tmp_path / "db", SilentLog())
        node = StorageNode(
            capacity_bytes=2**40,
            bodies=stores.bodies,
            index=stores.index,
            executor=InlineExecutor(),
            log=SilentLog(),
        )
        await node.start(rebuild=rebuild)
        assert node.used_bytes == 0
        assert not node.damaged
        stores.close()
