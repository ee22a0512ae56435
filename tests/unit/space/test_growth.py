"""A space stays as large as what is live in it, on LevelDB and in memory."""

from __future__ import annotations

import asyncio
import gc
import os

import pytest

from tests.unit.memory import made_for
from tests.unit.space.test_store import record
from xsc.db.leveldb import LevelDBKeyValue
from xsc.node.system import ThreadExecutor
from xsc.space import replicas as stores
from xsc.space.store import SpaceStore

UPDATES = 100_000 if "TEST_LONG" in os.environ else 20_000
CELLS = 1_000
AT_ONCE = 500


class Disk(LevelDBKeyValue):
    """A database that notes what was compacted."""

    def __init__(self, path):
        super().__init__(path)
        self.path = path
        self.compacted = []

    def compact(self, start, stop):
        self.compacted.append((start, stop))
        super().compact(start, stop)

    def files_bytes(self):
        return sum(file.stat().st_size for file in self.path.iterdir())


@pytest.fixture
def made(tmp_path, alice, network):
    """Makes stores on the disk."""
    disks = []

    def make(name, executor=None):
        disk = Disk(tmp_path / name)
        disks.append(disk)
        return disk, SpaceStore(disk, made_for(alice, network, executor=executor))

    yield make
    for disk in disks:
        disk.close()


def cells(turn):
    """Return the next values of as many cells as are written at once."""
    first = turn * AT_ONCE % CELLS
    return {f"cells/c{cell}": b"%d" % turn for cell in range(first, first + AT_ONCE)}


async def test_after_any_run_of_updates_and_one_compaction_a_disk_is_as_large_as_a_fresh_one(made):
    disk, store = made("old")
    turns = UPDATES // AT_ONCE
    for turn in range(turns):
        await store.put_all(cells(turn))
        if turn == turns // 10:
            objects = len(gc.get_objects())
    gc.collect()
    assert len(gc.get_objects()) < 1.05 * objects
    await store.sign_head()
    assert (await store.compact()).records == CELLS + 1  # the interval of the clock is one
    fresh, other = made("fresh")
    for turn in range(turns - CELLS // AT_ONCE, turns):
        await other.put_all(cells(turn))
    await other.sign_head()
    await other.compact()
    assert disk.files_bytes() <= 1.2 * fresh.files_bytes()
    for turn in (turns - 2, turns - 1):
        for path, value in cells(turn).items():
            assert store.get(path, store.owner).value == value


async def test_a_compaction_goes_in_steps_while_puts_go_on(made, bob, network, monkeypatch):
    """Others' records, archived ones and proofs come through it as well."""
    monkeypatch.setattr(stores.limits, "COMPACT_STEP_BYTES", 16 * 1024)
    executor = ThreadExecutor(2)
    disk, store = made("old", executor)
    store._keep_versions = 1
    await store.take(bob.node_id, [(record(bob, network, "b"), b"v")])
    for turn in range(20):
        await store.put_all(cells(turn))
    await store.sign_head()
    await store.compact()  # only what is in tables counts for the size of a step
    disk.compacted.clear()
    compacting = asyncio.create_task(store.compact())
    puts = 0
    while not compacting.done():
        await store.put_all({f"meanwhile/{puts}": b"new"})
        puts += 1
    await compacting
    executor.close()
    assert len({start for start, _ in disk.compacted}) >= 3
    assert puts > 3
    assert disk.compacted[0][0] == b"\0"
    assert disk.compacted[-1][1] == b"\xff"
    again = SpaceStore(disk, made_for(store._key, network))
    assert len(again.ls("meanwhile", store.owner)) == puts
    assert len(again.ls("cells", store.owner)) == CELLS
    assert again.get("b", bob.node_id).value == b"v"
    assert await again.cursor(store.owner, "") == 20 * AT_ONCE + 1
    assert sum(1 for _ in disk.scan(stores.ARCHIVE, b"b")) == CELLS
