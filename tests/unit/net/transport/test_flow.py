"""When a transfer that goes on slowly, or not at all, is given up."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import FrameInvalid
from xsc.base.limits import NO_PROGRESS_MS, PEER_BODY_BYTES_MAX
from xsc.net.transport.bounds import BODY_BYTES_A_SECOND_MIN, Flow

WINDOW_S = NO_PROGRESS_MS / 1000
DUE = BODY_BYTES_A_SECOND_MIN * NO_PROGRESS_MS // 1000


def ends(pieces: list[tuple[float, int]]) -> float:
    """Return when a transfer is given up that brings these bytes after these seconds each."""
    flow, now = Flow(0.0, NO_PROGRESS_MS, BODY_BYTES_A_SECOND_MIN), 0.0
    for after, size in pieces:
        now += after
        if now > flow.ends_s:
            break
        flow.moved(now, size)
    return flow.ends_s


@given(st.lists(st.tuples(st.floats(0, 12), st.integers(0, 2 * DUE)), max_size=60))
def test_nothing_is_held_for_longer_than_its_bytes_are_worth(pieces):
    """Whatever was quick before: no window without what is due, so no credit is kept."""
    came = sum(size for _, size in pieces)
    assert ends(pieces) <= WINDOW_S * (1 + came // DUE)


def test_a_body_that_dribbles_after_a_quick_beginning_is_given_up():
    quick = [(0.0, PEER_BODY_BYTES_MAX - 1_000)]
    assert ends(quick + [(9.0, 1)] * 200) <= 2 * WINDOW_S


def test_a_body_at_the_least_rate_goes_on_to_its_end():
    step = BODY_BYTES_A_SECOND_MIN // 10 + 1
    count = PEER_BODY_BYTES_MAX // step
    assert ends([(0.0999, step)] * count) > 0.0999 * count


async def test_a_step_ends_with_the_window_and_says_why():
    loop = asyncio.get_running_loop()
    flow = Flow(loop.time(), 10, 1_000)
    with pytest.raises(FrameInvalid, match="it stopped: 0 bytes in 10 ms"):
        async with flow.going():
            await loop.create_future()
    flow = Flow(loop.time(), 10, 1_000)
    flow.moved(loop.time(), 9)
    with pytest.raises(FrameInvalid, match="too slow: 9 bytes in 10 ms, 10 are due"):
        async with flow.going():
            await loop.create_future()
