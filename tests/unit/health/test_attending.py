"""A call ends as silence once its peer is not there, and never before."""

import asyncio

import pytest

from tests.settle import settle
from xsc.base.clock import ManualClock
from xsc.base.errors import PeerSilent, RateLimited
from xsc.health.attending import ATTEND_FIRST_MS, ATTEND_LAST_MS, Attended

PEER = b"p" * 32


class World:
    """A peer that takes long, and is there for a while."""

    def __init__(self, takes_ms, leaves_ms=10**9):
        self.clock = ManualClock()
        self.begun_ms = self.clock.now_ms()
        self.takes_ms = takes_ms
        self.leaves_ms = leaves_ms
        self.asked = []
        self.ended = False
        self.fault = None

    @property
    def now_ms(self):
        return self.clock.now_ms() - self.begun_ms

    async def call(self, peer, method, header, parts=(), *, timeout_ms=None):
        try:
            await self.clock.sleep_ms(self.takes_ms)
        finally:
            self.ended = True
        if self.fault is not None:
            raise self.fault
        return peer, method, header, parts, timeout_ms

    async def is_there(self, peer):
        assert peer == PEER
        self.asked.append(self.now_ms)
        return self.now_ms < self.leaves_ms

    async def play(self):
        attended = Attended(self.clock, self, self.is_there)
        call = asyncio.create_task(attended.call(PEER, "do", {"a": 1}, (), timeout_ms=7))
        while not call.done():
            await settle()
            if not call.done():
                self.clock.advance_to(self.clock.next_ms())
        await settle()
        # Nobody watches any more.
        assert self.clock.next_ms() is None
        return await call


async def test_a_quick_call_asks_nobody():
    world = World(ATTEND_FIRST_MS - 1)
    assert await world.play() == (PEER, "do", {"a": 1}, (), 7)
    assert world.asked == []


async def test_a_long_call_of_who_is_there_is_let_end_and_asked_after_ever_more_rarely():
    world = World(60_000)
    await world.play()
    gaps = [later - before for before, later in zip([0, *world.asked], world.asked, strict=False)]
    assert gaps[0] == ATTEND_FIRST_MS
    assert gaps == sorted(gaps)
    assert gaps[-1] == ATTEND_LAST_MS


@pytest.mark.parametrize("leaves_ms", [0, 600, 5_000, 50_000])
async def test_a_call_of_who_is_gone_ends_as_silence(leaves_ms):
    world = World(60_000, leaves_ms)
    with pytest.raises(PeerSilent, match="stopped answering"):
        await world.play()
    assert world.ended
    assert world.now_ms <= max(ATTEND_FIRST_MS, leaves_ms + ATTEND_LAST_MS)


async def test_what_the_peer_answers_stays_its_answer():
    world = World(700)
    world.fault = RateLimited("too many")
    with pytest.raises(RateLimited):
        await world.play()


async def test_a_time_that_ran_out_within_the_call_stays_that():
    world = World(10)
    world.fault = TimeoutError("of the call itself")
    with pytest.raises(TimeoutError):
        await world.play()


async def test_who_gives_up_ends_call_and_watch():
    world = World(60_000)
    attended = Attended(world.clock, world, world.is_there)
    call = asyncio.create_task(attended.call(PEER, "do", {}))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0)
    assert world.clock.next_ms() is None
