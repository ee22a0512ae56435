"""A disk that takes no more: what is asked is refused, what is held is given."""

import contextlib
import subprocess
import sys

import pytest

from tests.unit.storage.shardstore.test_store import ALICE, LOCATE, Disk, shard, wanted
from tests.unit.storage.world import World, content, get, put
from xsc.base.errors import SpaceExhausted
from xsc.base.merkle import root_of
from xsc.base.units import held_bytes
from xsc.db.memory import MemoryKeyValue
from xsc.storage.object.erasure import StorageShard
from xsc.storage.object.inventory import FoundShard
from xsc.storage.shardstore import index
from xsc.terms.lease import LeaseHandle

CHILD = """
import asyncio, resource, signal, sys
from pathlib import Path
from tests.unit.storage.shardstore.test_store import ALICE, LOCATE, shard, wanted
from xsc.base.clock import InlineExecutor
from xsc.base.errors import SpaceExhausted
from xsc.base.log import SilentLog
from xsc.base.merkle import root_of
from xsc.base.units import held_bytes
from xsc.node.home.stores import open_stores
from xsc.storage.shardstore.store import StorageNode

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def main():
    stores = open_stores(Path(sys.argv[1]), SilentLog())
    executor = InlineExecutor()
    node = StorageNode(
        capacity_bytes=2**40,
        bodies=stores.bodies,
        index=stores.index,
        executor=executor,
        log=SilentLog(),
    )
    await node.start()
    limit = int(sys.argv[2])
    data = bytes(10_000)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        try:
            for segment in range(1000):
                await node.store([shard(segment=segment, data=data)])
        except SpaceExhausted as fault:
            assert "\\n" not in fault.message
        else:
            raise SystemExit("it was never full")
        assert node.writer.reserved_bytes == 0
    if sys.argv[3] == "room":
        # The same process goes on, and what was refused is taken now.
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, -1))
        used = node.used_bytes
        await node.store([shard(segment=3000, data=data)])
        assert node.used_bytes == used + held_bytes(len(data))
        audit = await node.audit(deep=True)
        assert audit.whole, audit
        await node.delete(LOCATE, ALICE)
        assert node.used_bytes == 0
        assert (await node.audit()).whole
        await node.store([shard(segment=segment, data=data) for segment in range(7)])
        assert node.writer._behind is None
    held = node.used_bytes // held_bytes(len(data))
    found = await node.get(LOCATE, 0, [wanted(data, segment=s) for s in range(held)])
    assert {item.state for item in found} == {"ok"}
    audit = await node.audit(deep=True)
    if not limit:
        assert audit.whole
        await node.store([shard(segment=2000, data=data)])
    stores.close()
    print(held)

asyncio.run(main())
"""


def child(folder, limit, then=""):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(limit), then],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_full_disk_refuses_serves_and_is_whole_when_there_is_room_again(tmp_path):
    held = child(tmp_path / "db", 200_000)
    assert held > 5
    assert child(tmp_path / "db", 0) >= held


@pytest.mark.parametrize("limit", [3_000, 200_000])
def test_a_full_disk_that_has_room_again_takes_more_without_a_restart(tmp_path, limit):
    assert child(tmp_path / "db", limit, "room") == 7
    assert child(tmp_path / "db", 0) == 7


class Full(MemoryKeyValue):
    """Takes so many more writes."""

    room = 10**9

    def write(self, changes, *, sync):
        if self.room <= 0:
            raise SpaceExhausted("the disk is full")
        self.room -= 1
        super().write(changes, sync=sync)


@pytest.mark.parametrize("store", ["bodies", "index"])
async def test_wherever_the_room_ends_reads_go_on_and_a_start_puts_it_right(store):
    for room in range(6):
        disk = Disk()
        disk.bodies, disk.index = Full(), Full()
        node = await disk.node()
        await node.store([shard(0)])
        getattr(disk, store).room = room
        for column in range(1, 4):
            with contextlib.suppress(SpaceExhausted):
                await node.store([shard(column)])
        assert node.writer.reserved_bytes == 0
        assert await node.get(LOCATE, 0, [wanted()]) == [FoundShard("ok", b"data")]
        getattr(disk, store).room = min(room, 2)
        refused = False
        for _ in range(4):
            try:
                await node.delete(LOCATE, ALICE)
                await node.store([shard(0)])
            except SpaceExhausted:
                refused = True
        assert refused
        assert node.writer.reserved_bytes == 0
        (found,) = await node.get(LOCATE, 0, [wanted()])
        assert found.data in (None, b"data")
        # A body that was deleted while its entry could not be is noted: that goes, too.
        await node.audit(deep=True)
        getattr(disk, store).room = 10**9
        node = await disk.node()
        audit = await node.audit(deep=True)
        assert audit.whole
        await node.store([shard(9)])
        await node.delete(LOCATE, ALICE)
        assert node.used_bytes == 0


async def test_a_host_whose_disk_is_full_is_replaced_and_goes_on_serving():
    world = await World(8).start()
    data = content(9 * 2**20 + 1)
    done = await put(world[0], data)
    full = world.by_id[done.hosts[0]]

    def write(changes, *, sync):
        raise SpaceExhausted("the disk is full")

    full.bodies.write = write
    again = await put(world[0], data)
    assert full.id not in again.hosts
    assert await get(world[0], again.capability) == data
    assert await get(world[3], done.capability) == data
    states = [row.state for row in (await world[0].service.stat(done.capability)).hosts]
    assert states == ["ok"] * 6


@pytest.mark.parametrize("failing", ["bodies", "index"])
@pytest.mark.parametrize("batch", [0, 1, 2])
async def test_a_lease_counts_what_is_there_after_a_deletion_that_failed_midway(
    monkeypatch, failing, batch
):
    monkeypatch.setattr(index, "DELETE_BATCH", 2)
    world = await World(2).start()
    customer, host = world[0], world[1]
    lease_id = customer.lease_id(host.id)
    bodies = [shard(segment=n, customer=customer.id, lease=lease_id) for n in range(6)]
    host.book.used[lease_id] = await host.node.store(bodies)
    store = getattr(host, failing)
    real, writes = store.write, []

    def write(changes, *, sync):
        writes.append(changes)
        if len(writes) == batch + 1:
            raise SpaceExhausted("the disk is full")
        real(changes, sync=sync)

    store.write = write
    client = customer.service._client
    with pytest.raises(SpaceExhausted):
        await client.delete(host.id, LOCATE, final=True)
    gone = 2 * (batch + (failing == "index"))
    assert host.book.used == {lease_id: held_bytes(4, 1) * (6 - gone)}
    await client.delete(host.id, LOCATE, final=True)
    assert host.book.used == {lease_id: 0}
    assert host.node.used_bytes == 0


async def test_a_lease_counts_what_was_stored_where_the_index_could_not_be_written():
    world = await World(2).start()
    host = world[1]
    lease = LeaseHandle(host.id, world[0].lease_id(host.id))
    real, failed = host.index.write, []

    def write(changes, *, sync):
        if not failed:
            failed.append(changes)
            raise SpaceExhausted("the disk is full")
        real(changes, sync=sync)

    host.index.write = write
    client, data = world[0].service._client, b"data"
    shards = [(0, StorageShard(0, data, root_of(data)))]
    with pytest.raises(SpaceExhausted):
        await client.store(lease, LOCATE, 0, shards=shards, record=None)
    assert host.book.used == {lease.lease_id: held_bytes(4, 1)}
    # What lies there already counts once; so does what is deleted.
    await client.store(lease, LOCATE, 0, shards=shards, record=None)
    assert host.book.used == host.node.usage == {lease.lease_id: held_bytes(4, 1)}
    await client.delete(host.id, LOCATE, final=True)
    assert host.book.used == {lease.lease_id: 0}
