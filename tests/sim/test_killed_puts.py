"""What is left of a put that cannot go on: it goes, and both sides count what is there."""

import asyncio

import pytest

from tests.sim.network import content, get, put, run, stream
from tests.sim.test_repair import agree
from xsc.base.errors import XscError
from xsc.base.limits import MIB
from xsc.storage.transfer.journal import PREFIX, UPLOADS_INTERVAL_MS


def lies(world):
    return [node.shards.used_bytes for node in world.nodes]


def rows(world):
    return [key for key, _ in world.disks[0].state.scan(PREFIX, PREFIX + b"\xff")]


async def begun(world, moment_ms, size=9 * MIB):
    """Put an object whole and break off another; return the first, and what lies then."""
    world.net.delay_ms = (20, 40)
    kept = await put(world.nodes[0], content(300_000, seed=1))
    before = lies(world)
    putting = asyncio.ensure_future(put(world.nodes[0], content(size, seed=2)))
    await world.clock.sleep_ms(moment_ms)
    return kept, before, putting


@pytest.mark.parametrize(
    ("moment_ms", "power", "size"),
    [
        (90, False, 9 * MIB),
        (130, False, 9 * MIB),
        (90, True, 9 * MIB),
        (40, False, 300_000),
        (60, False, 300_000),
        (60, False, 1_000),
    ],
)
def test_what_a_killed_put_has_sent_is_deleted_once_its_owner_is_back(moment_ms, power, size):
    """After a kill the owner's counts are there still, after a power loss they are not."""

    async def play(world):
        kept, before, putting = await begun(world, moment_ms, size)
        if not power:
            world.disks[0].state.write([], sync=True)
        assert not putting.done()
        await world.crash(0)
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        await world.restart(0)
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        if power:
            # Nothing names it any more: hosts drop what has no record.
            for node in world.nodes:
                await node.sweeper.round()
            await world.skip(26 * 3_600_000, 13 * 3_600_000)
            for node in world.nodes:
                await node.sweeper.round(everything=True)
        else:
            await world.until(lambda: lies(world) == before, 2 * UPLOADS_INTERVAL_MS)
        assert lies(world) == before
        assert rows(world) == []
        # What it was told of none of is counted by the hosts.
        await world.nodes[0].market.settlement.settle_all()
        await agree(world)
        assert await get(world.nodes[3], kept) == content(300_000, seed=1)

    run(41, 7, play)


def test_what_a_failed_stream_has_left_at_a_silent_host_is_deleted_once_that_is_back():
    async def play(world):
        _, before, putting = await begun(world, 90)
        # It takes the place of nobody: too few are left.
        for index in range(1, 7):
            await world.crash(index)
        with pytest.raises(XscError):
            await putting
        for index in range(1, 7):
            await world.restart(index)
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        # Where nothing had arrived, hosts are asked all the same.
        await world.until(
            lambda: lies(world) == before and rows(world) == [], 3 * UPLOADS_INTERVAL_MS
        )
        await agree(world)

    run(42, 7, play)


def test_after_a_kill_a_deletion_is_taken_off_whatever_a_put_may_have_left_at_a_host():
    """What may lie there, and the host does not count, is not missing of what records name."""

    async def play(world):
        kept, _, putting = await begun(world, 90)
        world.disks[0].state.write([], sync=True)
        await world.crash(0)
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        await world.restart(0)
        owner = world.nodes[0]
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        await owner.market.settlement.settle_all()
        await agree(world)
        await owner.storage.rm(kept)
        await agree(world)

    run(43, 7, play)


@pytest.mark.parametrize(
    ("counts_first", "moments_ms"),
    [(True, (90,)), (False, (90,)), (True, (180, 100)), (False, (180, 100))],
)
def test_what_a_put_that_goes_on_finds_at_a_host_is_counted_once(counts_first, moments_ms):
    """Also the record, which comes with the last segment."""

    async def play(world):
        world.net.delay_ms = (20, 40)
        data = content(9 * MIB, seed=2)

        def begin():
            return world.nodes[0].storage.put(
                stream(data), name="on", size_hint=len(data), resume=b"u" * 32
            )

        for moment_ms in moments_ms:
            putting = asyncio.ensure_future(begin())
            await world.clock.sleep_ms(moment_ms)
            assert not putting.done()
            await world.crash(0)
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)
            await world.restart(0)
            owner = world.nodes[0]
            await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
            if counts_first:
                await owner.market.settlement.settle_all()
        done = await begin()
        if not counts_first:
            await owner.market.settlement.settle_all()
        await agree(world)
        await owner.storage.rm(done.capability)
        await agree(world)

    run(44, 7, play)
