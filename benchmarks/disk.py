"""How fast one shard store gives the room of deleted bodies back, and whether writers notice.

One StorageNode on LevelDB: filled with shards of 1 MiB, every second object
deleted, reclaimed in slices with the node's own pauses while another customer
goes on storing. Prints how large the directory is beside the live data, and the
worst time that a store took before and meanwhile. Then all that lives is read into a
backup, as `xsc node backup` reads it, while the customer stores: the same figure.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.size import least
from xsc.base.limits import MIB
from xsc.base.log import SilentLog
from xsc.base.merkle import root_of
from xsc.db.leveldb import LevelDBKeyValue
from xsc.node.build import RECLAIM_PAUSE_MS
from xsc.node.home.backup import BODY, frames, new_head, rows_of, seal_of
from xsc.node.system import ThreadExecutor
from xsc.storage.shardstore.bodies import Body, shard_key
from xsc.storage.shardstore.store import StorageNode

OWNER, WRITER = b"o" * 32, b"w" * 32
SEGMENTS = 16
"""Shards of one object at this host: an object of 64 MiB."""


def shard(number: int, segment: int, customer: bytes, data: bytes) -> Body:
    locate = number.to_bytes(32, "big")
    return Body(shard_key(locate, 0, segment, 0, customer), customer, root_of(data), data)


def directory_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


class Writer:
    """Stores one shard after another and remembers how long each took."""

    def __init__(self, node: StorageNode, data: bytes) -> None:
        self.node = node
        self.data = data
        self.delays: list[float] = []
        self.number = 10**9
        self.stopped = False

    async def run(self) -> None:
        while not self.stopped:
            self.number += 1
            begun = time.perf_counter()
            await self.node.store([shard(self.number, 0, WRITER, self.data)])
            self.delays.append(time.perf_counter() - begun)
            await asyncio.sleep(0.05)

    def worst_ms(self) -> float:
        worst, self.delays = max(self.delays, default=0.0), []
        return worst * 1e3


async def back_up(bodies: LevelDBKeyValue, executor: ThreadExecutor) -> tuple[int, float]:
    """Read all bodies into frames, and throw those away; return their bytes and the time."""
    head = new_head(bytes(32), "xsc", "nothing", 0)
    pieces = frames(head, rows_of({BODY: bodies}), seal_of(head))
    begun, size = time.perf_counter(), 0
    while piece := await executor.run(next, pieces, b""):
        size += len(piece)
    return size, time.perf_counter() - begun


async def measure(total_bytes: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="xsc-disk-"))
    bodies = LevelDBKeyValue(folder / "bodies")
    index = LevelDBKeyValue(folder / "index")
    executor = ThreadExecutor(4)
    node = StorageNode(
        capacity_bytes=2**40,
        bodies=bodies,
        index=index,
        executor=executor,
        log=SilentLog(),
    )
    try:
        await node.start()
        data = [os.urandom(MIB) for _ in range(4)]
        objects = total_bytes // MIB // SEGMENTS
        # Objects come together, as they do: their shards lie between each other.
        for segment in range(SEGMENTS):
            for number in range(objects):
                await node.store([shard(number, segment, OWNER, data[number % 4])])
        full = directory_bytes(folder / "bodies")
        writer = Writer(node, data[0])
        writing = asyncio.create_task(writer.run())
        await asyncio.sleep(least(2, 0.2))
        quiet_ms = writer.worst_ms()
        begun = time.perf_counter()
        for number in range(0, objects, 2):
            await node.delete(number.to_bytes(32, "big"), OWNER)
        slices = await node.compactor.compact(lambda: asyncio.sleep(RECLAIM_PAUSE_MS / 1000))
        took_s = time.perf_counter() - begun
        busy_ms = writer.worst_ms()
        saved, save_s = await back_up(bodies, executor)
        save_ms = writer.worst_ms()
        writer.stopped = True
        await writing
        live, size = node.used_bytes, directory_bytes(folder / "bodies")
        print(
            f"  filled {full / MIB:.0f} MiB, deleted every second object: "
            f"{size / MIB:.0f} MiB for {live / MIB:.0f} MiB of live data "
            f"({size / live:.3f} times) after {took_s:.1f} s in {slices} slices"
        )
        print(f"  worst store of 1 MiB: {quiet_ms:.0f} ms before, {busy_ms:.0f} ms meanwhile")
        print(
            f"  backup of {saved / MIB:.0f} MiB in {save_s:.1f} s: "
            f"worst store of 1 MiB {save_ms:.0f} ms meanwhile"
        )
    finally:
        executor.close()
        index.close()
        bodies.close()
        shutil.rmtree(folder)


def run(quick: bool) -> None:
    print("\ndisk: one shard store on LevelDB, half of it deleted while others store")
    asyncio.run(measure(least(256 if quick else 2048, 32) * MIB))
