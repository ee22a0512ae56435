"""Room that holders share: totals, shares, what only small takers get, and who waits for what."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import PEER_BODY_BYTES_MAX, SMALL_BODIES_BYTES
from xsc.base.room import Room
from xsc.net.calls.quota import (
    ANSWERS_A_PEER_BYTES_MAX,
    ANSWERS_BYTES_MAX,
    REQUEST_BODIES_A_PEER_BYTES_MAX,
    REQUEST_BODIES_BYTES_MAX,
)
from xsc.net.transport.http import REPLIES_A_PEER_BYTES_MAX, REPLIES_BYTES_MAX
from xsc.node.api.deployments import SERVICE_BODIES_AN_ADDRESS_BYTES_MAX, SERVICE_BODIES_BYTES_MAX

TOTAL, SHARE, SMALL = 100, 40, 10
STEPS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(-60, 60), st.booleans()), max_size=200
)


@given(STEPS)
def test_nobody_has_more_than_a_share_and_all_no_more_than_the_total(steps):
    room, held = Room(TOTAL, SHARE, small=SMALL), dict.fromkeys("abcdef", 0)
    for holder, size, large in steps:
        if size < 0:
            given = min(-size, held[holder])
            room.give(holder, given)
            held[holder] -= given
            continue
        least = SMALL if large else 0
        fits = held[holder] + size <= SHARE and sum(held.values()) + size <= TOTAL - least
        assert room.take(holder, size, large=large) == fits
        held[holder] += size if fits else 0
        assert {name: room.held(name) for name in held} == held


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, SHARE)), max_size=30))
async def test_all_who_wait_come_in_once_others_have_left(asked):
    """Each gives back as soon as it has room; a cancelled one takes nothing along."""
    room, most = Room(TOTAL, SHARE), 0

    async def one(holder: str, size: int) -> None:
        nonlocal most
        await room.wait(holder, size, large=True)
        most = max(most, sum(map(room.held, "abcd")))
        try:
            await asyncio.sleep(0)
        finally:
            room.give(holder, size)

    tasks = [asyncio.create_task(one(*ask)) for ask in asked]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert [room.held(holder) for holder in "abcd"] == [0] * 4
    for task in tasks[1::3] + tasks[2::3]:
        assert task.exception() is None
    assert most <= TOTAL


async def waiting(room: Room, holder: str, size: int, *, large: bool = True) -> asyncio.Task[None]:
    task = asyncio.create_task(room.wait(holder, size, large=large))
    await asyncio.sleep(0)
    return task


async def test_who_has_used_up_its_share_waits_for_itself_alone():
    room = Room(TOTAL, SHARE)
    await room.wait("a", SHARE)
    behind = await waiting(room, "a", 1)
    assert not behind.done()
    await asyncio.wait_for(room.wait("b", SHARE), 1)
    room.give("b", SHARE)
    await asyncio.sleep(0)
    assert not behind.done()
    room.give("a", 1)
    await asyncio.wait_for(behind, 1)


async def test_small_ones_pass_those_who_wait_for_the_total():
    room = Room(TOTAL, SHARE, small=SMALL)
    for holder in "abc":
        await room.wait(holder, 30, large=True)
    large = await waiting(room, "d", 30)
    other = await waiting(room, "e", 1)
    assert not large.done()
    assert not other.done()
    await asyncio.wait_for(room.wait("f", SMALL), 1)
    room.give("f", SMALL)
    room.give("a", 30)
    await asyncio.wait_for(large, 1)
    room.give("b", 30)
    await asyncio.wait_for(other, 1)


async def test_who_gives_up_waiting_gives_up_its_place():
    room = Room(TOTAL, SHARE)
    for holder in "abc":
        await room.wait(holder, 30)
    first, second = await waiting(room, "d", 20), await waiting(room, "e", 10)
    assert not second.done()
    first.cancel()
    await asyncio.wait_for(second, 1)
    assert room.held("d") == 0


@pytest.mark.parametrize(
    ("total", "share"),
    [
        (REQUEST_BODIES_BYTES_MAX, REQUEST_BODIES_A_PEER_BYTES_MAX),
        (ANSWERS_BYTES_MAX, ANSWERS_A_PEER_BYTES_MAX),
        (REPLIES_BYTES_MAX, REPLIES_A_PEER_BYTES_MAX),
        (SERVICE_BODIES_BYTES_MAX, SERVICE_BODIES_AN_ADDRESS_BYTES_MAX),
    ],
)
def test_two_callers_who_take_all_they_can_leave_enough_for_others(total, share):
    room = Room(total, share, small=SMALL_BODIES_BYTES)
    for greedy in "ab":
        assert room.take(greedy, share, large=True)
        assert not room.take(greedy, 1)
    assert room.take("c", min(share, PEER_BODY_BYTES_MAX), large=True)
    # And whatever large ones do, small ones pass.
    for greedy in "defghi":
        while room.take(greedy, 2**20, large=True):
            pass
    assert room.take("j", SMALL_BODIES_BYTES)
