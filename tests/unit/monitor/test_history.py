"""The ring keeps the newest samples within its bounds, whatever clock and disk do."""

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.unit.monitor.test_alerts import Told
from tests.unit.monitor.test_conditions import PEER, PEER_ROW, WELL
from xsc.base.clock import InlineExecutor
from xsc.base.errors import SpaceExhausted, StoreDamaged
from xsc.base.keyvalue import prefix_end
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.monitor import history

MINUTE = history.SAMPLE_MS


class Ring:
    def __init__(self):
        self.state, self.log, self.full = MemoryKeyValue(), Told(), False
        self.reopen()

    def reopen(self):
        ports = (InlineExecutor(), None, self.log, self.state, self.commit)
        self.history = history.History(Context(None, b"", None, None, *ports))

    async def commit(self, changes):
        if self.full:
            raise SpaceExhausted("the disk is full")
        self.state.write(changes, sync=True)

    async def add(self, at_ms, **fields):
        await self.history.add(replace(WELL, at_ms=at_ms, **fields))

    async def times(self, since_ms=0, points=2_000, samples=10**6):
        return [row.at_ms for row in await self.history.read(since_ms, samples, points, [PEER])]

    def rows(self):
        return list(self.state.scan(history.ROWS, prefix_end(history.ROWS)))


async def test_a_sample_says_what_was_measured():
    ring = Ring()
    await ring.add(5, peers=[replace(PEER_ROW, balance_micro=-7, availability_ppm=3)])
    (row,) = await ring.history.read(0, 1, 1, [PEER])
    assert (row.at_ms, row.margin, row.used_bytes) == (5, 1, 0)
    assert [(p.peer, p.balance_micro, p.availability_ppm) for p in row.peers] == [(PEER, -7, 3)]
    (gone,) = await ring.history.read(0, 1, 1, [])
    assert gone.peers[0].peer == PEER[: history.PEER_BYTES]


async def test_no_more_samples_and_bytes_than_the_bounds(monkeypatch):
    monkeypatch.setattr(history, "SAMPLES_MAX", 10)
    ring = Ring()
    for number in range(25):
        await ring.add(number * MINUTE)
        if number == 12:
            ring.reopen()
    assert await ring.times() == [number * MINUTE for number in range(15, 25)]
    assert len(ring.rows()) == 10
    monkeypatch.setattr(history, "HISTORY_BYTES_MAX", 1_000)
    for number in range(25, 30):
        await ring.add(number * MINUTE, peers=[PEER_ROW] * number)
        assert sum(len(raw) for _, raw in ring.rows()) <= 1_000
    assert (await ring.times())[-1] == 29 * MINUTE


async def test_a_clock_that_jumps_loses_nothing():
    ring = Ring()
    times = [MINUTE, 2 * MINUTE, 10**13, 3 * MINUTE, 0, 4 * MINUTE]
    for at_ms in times:
        await ring.add(at_ms)
    assert await ring.times() == times


async def test_a_full_disk_costs_samples_and_one_line():
    ring = Ring()
    await ring.add(1)
    ring.full = True
    for number in range(2, 6):
        await ring.add(number * MINUTE)
    assert [event for event, _ in ring.log.lines] == ["node.sample_lost"]
    ring.full = False
    await ring.add(6 * MINUTE)
    assert await ring.times() == [1, 6 * MINUTE]


@pytest.mark.parametrize("points", [1, 2, 3, 7, 10, 100])
async def test_samples_are_thinned_out_evenly_and_the_newest_stays(points):
    ring = Ring()
    for number in range(10):
        await ring.add(number * MINUTE)
    found = await ring.times(points=points)
    assert len(found) <= points
    assert found[-1] == 9 * MINUTE
    assert len({b - a for a, b in pairwise(found)}) <= 1
    assert await ring.times(since_ms=8 * MINUTE) == [8 * MINUTE, 9 * MINUTE]
    assert await ring.times(samples=2) == [8 * MINUTE, 9 * MINUTE]


async def test_every_changed_byte_is_said_or_read():
    ring = Ring()
    await ring.add(1)
    ((key, raw),) = ring.rows()
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 0xFF
        ring.state.write([(key, bytes(changed))], sync=True)
        try:
            await ring.times()
        except StoreDamaged:
            continue


async def test_a_restart_adds_no_sample_before_its_time():
    ring = Ring()
    await ring.add(MINUTE)
    ring.reopen()
    await ring.add(MINUTE + 10_000)
    await ring.add(2 * MINUTE)
    assert await ring.times() == [MINUTE, 2 * MINUTE]
