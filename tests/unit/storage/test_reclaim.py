"""Which slices are compacted, and that the directory of a real store shrinks by it."""

import itertools
import os

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.clock import InlineExecutor
from xsc.base.limits import KIB, MIB
from xsc.base.log import SilentLog
from xsc.base.merkle import root_of
from xsc.db.group import GroupCommit
from xsc.db.leveldb import LevelDBKeyValue
from xsc.storage.bodies import ShardBody
from xsc.storage.reclaim import BUCKET, DEAD_SHARE, SLICE_BYTES, DeadSpace, live_by_bucket
from xsc.storage.shards import StorageNode

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
    assert all(left.high <= right.low for left, right in itertools.pairwise(planned))
    covered = set()
    for piece in planned:
        assert dense(piece.low, piece.high) <= max(SLICE_BYTES, BUCKET * BODY)
        dead = sum(piece.low <= sequence < piece.high for sequence in gone)
        assert dead
        assert everything or dead * BODY * DEAD_SHARE >= dense(piece.low, piece.high)
        covered |= {sequence for sequence in gone if piece.low <= sequence < piece.high}
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
    return sum(file.stat().st_size for file in path.iterdir())


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
            commit=GroupCommit(bodies, executor).commit,
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
            body = ShardBody(locate, 0, segment, 0, OWNER, OWNER, root_of(data), data)
            await shards.store([body])
    for number in range(0, objects, 2):
        await shards.delete(number.to_bytes(32, "big"), OWNER)
        if number == objects // 2:
            # What was deleted before a start is reclaimed after it.
            shards = node()
            await shards.start()
            await shards.survey()
    live = shards.used_bytes
    assert live == objects // 2 * 4 * len(data)
    assert directory_bytes(path) > 1.5 * live
    waits = 0

    async def pause():
        nonlocal waits
        waits += 1

    assert await shards.compact(pause) == waits + 1 > 0
    assert directory_bytes(path) <= 1.15 * live
    bodies.close()
    index.close()
