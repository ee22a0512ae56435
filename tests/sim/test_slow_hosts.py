"""Reads while hosts stall and crawl: they take as long as ever, and cost few bytes more."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations

import pytest

from tests.sim.network import content, get, put, run
from xsc.base.limits import KIB, MIB
from xsc.storage.transfer.latency import REPROBE_INTERVAL_MS

DELAY_MS = 10
RATE = 20 * MIB
READS = 120
OWNER, READER = 0, 7


@dataclass
class Tally:
    """How long reads took, and how many shards were asked for, needed or not."""

    asked: dict[int, int] = field(default_factory=dict)
    times: list[int] = field(default_factory=list)

    def percentile(self, share):
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def prepare(world, size, objects=2):
    for index in range(world.count):
        world.net.set_rate(world.name(index), DELAY_MS, RATE)
    stored = []
    for seed in range(objects):
        data = content(size, seed)
        stored.append((await put(world.nodes[OWNER], data), data))
    return stored


async def read_all(world, stored, reads, pause_ms=500):
    tally = Tally()
    seen = len(world.net.trace)
    for number in range(reads):
        capability, data = stored[number % len(stored)]
        begun = world.clock.now_ms()
        assert await get(world.nodes[READER], capability) == data
        tally.times.append(world.clock.now_ms() - begun)
        await world.clock.sleep_ms(pause_ms)
    for event in world.net.trace[seen:]:
        if (event.source, event.what) != (world.name(READER), "sent"):
            continue
        if event.path.endswith("storage.get"):
            host = int(event.target.removeprefix("node-"))
            tally.asked[host] = tally.asked.get(host, 0) + 1
    return tally


async def data_columns(world, stored):
    """Return how many shards of data columns all reads need from each host but the reader."""
    needed = Counter()
    for capability, _ in stored:
        stat = await world.nodes[OWNER].storage.stat(capability)
        data_hosts = (world.index_of(host.node) for host in stat.hosts[:4])
        needed.update({host: READS // len(stored) for host in data_hosts if host != READER})
    return needed


async def with_two_in_common(world, stored):
    """Return two objects that have two hosts of data columns in common, beside the reader."""
    for pair in combinations(stored, 2):
        needed = await data_columns(world, pair)
        if sum(count == READS for count in needed.values()) >= 2:
            return pair
    raise AssertionError("no two objects have two hosts in common")


@pytest.mark.parametrize("size", [64 * KIB, MIB])
def test_with_one_host_stalled_and_one_crawling_reads_take_as_long_as_ever(size):
    async def play(world):
        stored = await with_two_in_common(world, await prepare(world, size, objects=12))
        healthy = await read_all(world, stored, READS)
        # While all is well hosts of data columns are asked, for one shard a read, and nobody else.
        assert healthy.asked == await data_columns(world, stored)
        # Both hold data columns of both objects.
        stalled, crawling, *_ = sorted(healthy.asked, key=lambda host: -healthy.asked[host])
        assert healthy.asked[stalled] == healthy.asked[crawling] == READS
        world.net.stall(world.name(stalled), "storage.get")
        world.net.set_rate(world.name(crawling), DELAY_MS, RATE // 100)
        return healthy, await read_all(world, stored, READS)

    (healthy, ill), _ = run(62, 8, play)
    assert ill.percentile(0.99) <= 2 * healthy.percentile(0.5)
    # Shards of one size each: whatever was asked for counts, though it never came.
    assert sum(ill.asked.values()) <= 1.35 * sum(healthy.asked.values())


def test_a_host_that_is_well_again_is_used_again():
    async def play(world):
        stored = await prepare(world, 64 * KIB)
        before = await read_all(world, stored, 8)
        stalled = max(before.asked, key=before.asked.get)
        world.net.stall(world.name(stalled), "storage.get")
        await read_all(world, stored, 20)
        meanwhile = await read_all(world, stored, 20)
        world.net.resume(world.name(stalled), "storage.get")
        await read_all(world, stored, 4, pause_ms=2 * REPROBE_INTERVAL_MS)
        return before, meanwhile, await read_all(world, stored, 8)

    (before, meanwhile, after), _ = run(63, 8, play)
    stalled = max(before.asked, key=before.asked.get)
    assert before.asked[stalled] == 8
    assert meanwhile.asked.get(stalled, 0) <= 1
    assert after.asked == before.asked
