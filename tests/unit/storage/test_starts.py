"""What a start reads, and what the loss of the end of a log leaves to be found."""

import asyncio

import pytest

from tests.unit.storage.shardstore.test_store import (
    ALICE,
    BOB,
    LEASE,
    LOCATE,
    Disk,
    record,
    shard,
    wanted,
)
from xsc.base.clock import InlineExecutor
from xsc.base.errors import SpaceExhausted
from xsc.base.log import SilentLog
from xsc.base.units import held_bytes
from xsc.db.leveldb import LevelDBKeyValue
from xsc.db.memory import MemoryKeyValue
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.store import StorageNode


class Counting(MemoryKeyValue):
    """Counts the rows that are gone through."""

    rows = 0

    def scan(self, start, stop=None, *, reverse=False):
        for item in super().scan(start, stop, reverse=reverse):
            self.rows += 1
            yield item


async def started(disk):
    disk.index.rows = disk.bodies.rows = 0
    return await disk.node()


async def filled(count=200):
    disk = Disk()
    disk.bodies, disk.index = Counting(), Counting()
    node = await disk.node()
    for segment in range(count):
        await node.store([shard(segment=segment)])
    return disk, node


async def test_a_start_after_a_clean_end_does_not_go_through_the_index():
    disk, node = await filled()
    usage = dict(node.usage)
    await node.close()
    node = await started(disk)
    assert (dict(node.usage), node.used_bytes) == (usage, 200 * held_bytes(4))
    assert disk.index.rows + disk.bodies.rows < 10
    assert not disk.recovery.rebuilt
    # Only once: what comes after this start, it does not speak of.
    node = await started(disk)
    assert disk.index.rows > 200
    assert dict(node.usage) == usage


async def test_after_a_kill_it_does_and_finds_what_the_index_has_lost():
    disk, node = await filled()
    await node.close()
    node = await disk.node()
    await node.store([shard(segment=1000)])
    lost = shard(segment=7).index_key
    disk.index.write([(lost, None)], sync=True)
    node = await started(disk)
    assert disk.recovery.rebuilt
    assert node.used_bytes == 201 * held_bytes(4)


@pytest.mark.parametrize("change", [None, b"", b"\x82\x01\x00"])
async def test_a_note_of_a_clean_end_that_does_not_fit_counts_as_none(change):
    disk, node = await filled(20)
    await node.close()
    disk.index.write([(formats.CLOSED, change), (shard(segment=3).index_key, None)], sync=True)
    await disk.node()
    assert disk.recovery.rebuilt


async def test_a_clean_end_waits_for_those_that_write():
    disk, node = await filled(0)
    writing = [asyncio.ensure_future(node.store([shard(segment=n)])) for n in range(5)]
    await asyncio.sleep(0)
    await node.close()
    await asyncio.gather(*writing)
    assert (await started(disk)).used_bytes == 5 * held_bytes(4)
    assert disk.index.rows < 10


async def test_a_store_that_was_never_started_or_is_full_notes_nothing():
    disk = Disk()
    node = StorageNode(
        capacity_bytes=10,
        bodies=disk.bodies,
        index=disk.index,
        executor=InlineExecutor(),
        log=SilentLog(),
    )
    await node.close()
    assert not list(disk.index.scan(b""))
    node = await disk.node()

    def full(changes, *, sync):
        raise SpaceExhausted("the disk is full")

    disk.index.write = full
    with pytest.raises(SpaceExhausted):
        await node.close()


def cut_the_end(folder, record_number):
    """Flip the high byte of a record's length: LevelDB takes what follows for never written."""
    (log,) = folder.glob("*.log")
    raw = bytearray(log.read_bytes())
    place = 0
    for _ in range(record_number):
        place += 7 + int.from_bytes(raw[place + 4 : place + 6], "little")
    raw[place + 5] ^= 0x80
    log.write_bytes(raw)


async def on_disk(folder):
    stores = LevelDBKeyValue(folder / "bodies"), LevelDBKeyValue(folder / "index")
    executor = InlineExecutor()
    node = StorageNode(
        capacity_bytes=10**9,
        bodies=stores[0],
        index=stores[1],
        executor=executor,
        log=SilentLog(),
    )
    await node.start()
    return stores, node


@pytest.mark.parametrize("clean", [True, False])
async def test_the_lost_end_of_a_log_is_found_and_told_as_damage(tmp_path, clean):
    stores, node = await on_disk(tmp_path)
    for segment in range(10):
        await node.store([shard(segment=segment)])
    await node.store([record()])
    await node.store([shard(segment=99, customer=BOB)])
    await node.delete(LOCATE, BOB)
    used = node.used_bytes
    if clean:
        await node.close()
    for store in stores:
        store.close()
    cut_the_end(tmp_path / "bodies", 6)
    stores, node = await on_disk(tmp_path)
    await node.store([shard(segment=50)])
    await node.compactor.survey()
    assert {damage.reason for damage in node.damaged} == {"gone"}
    # Four of ten shards and the record: what was deleted is no loss.
    assert len(node.damaged) == 5
    assert node.used_bytes == used + held_bytes(4)
    (lost,) = await node.get(LOCATE, 0, [wanted(segment=9)])
    assert lost.state == "corrupt"
    stat = await node.stat(LOCATE, 0, record().proof)
    assert stat.record == "corrupt"
    # It is stored anew, or deleted: nothing of the loss is left.
    for segment in range(10):
        await node.store([shard(segment=segment)])
    await node.delete(LOCATE, ALICE)
    await node.compactor.survey()
    assert not node.damaged
    assert dict(node.usage) == {}
    assert LEASE not in node.usage
    for store in stores:
        store.close()


async def test_a_store_without_a_loss_has_none(tmp_path):
    stores, node = await on_disk(tmp_path)
    for segment in range(10):
        await node.store([shard(segment=segment)])
    # The highest sequences are deleted: that is no loss, either.
    await node.delete(LOCATE, ALICE, frozenset({0}))
    await node.store([shard(1)])
    await node.delete(LOCATE, ALICE)
    for store in stores:
        store.close()
    stores, node = await on_disk(tmp_path)
    await node.compactor.survey()
    assert not node.damaged
    for store in stores:
        store.close()
