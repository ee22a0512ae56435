"""Large bodies to one peer leave one after the other."""

import asyncio

import pytest

from tests.settle import settle
from xsc.base.limits import BATCH_CALL_BYTES_MAX
from xsc.base.turns import Turns
from xsc.net.transport.bounds import turn_to_send

LARGE = BATCH_CALL_BYTES_MAX + 1


class Sender:
    def __init__(self, turns, peer="a", size_bytes=LARGE):
        self.begun = asyncio.Event()
        self.sent = asyncio.Event()
        self.answered = asyncio.Event()
        self.task = asyncio.ensure_future(self.run(turns, peer, size_bytes))

    async def run(self, turns, peer, size_bytes):
        async with turn_to_send(turns, peer, size_bytes) as left:
            self.begun.set()
            await self.sent.wait()
            left()
            await self.answered.wait()


async def test_the_next_begins_when_the_body_has_left_and_before_the_answer():
    turns = Turns()
    senders = [Sender(turns) for _ in range(3)]
    for number, sender in enumerate(senders):
        await settle()
        assert [other.begun.is_set() for other in senders] == [n <= number for n in range(3)]
        sender.sent.set()
    for sender in senders:
        sender.answered.set()
        await sender.task
    assert not turns._locks
    assert not turns._users


async def test_other_peers_and_small_bodies_wait_for_nobody():
    turns = Turns()
    senders = [Sender(turns), Sender(turns, "b"), Sender(turns, size_bytes=LARGE - 1)]
    await settle()
    assert all(sender.begun.is_set() for sender in senders)
    for sender in senders:
        sender.task.cancel()
    await asyncio.gather(*(sender.task for sender in senders), return_exceptions=True)
    assert not turns._locks


@pytest.mark.parametrize("victim", [0, 1])
async def test_who_gives_up_keeps_nobody_waiting(victim):
    turns = Turns()
    senders = [Sender(turns) for _ in range(3)]
    await settle()
    senders[victim].task.cancel()
    await settle()
    left = [sender for sender in senders if sender is not senders[victim]]
    for sender in left:
        assert sender.begun.is_set()
        sender.sent.set()
        sender.answered.set()
        await sender.task
    assert not turns._locks
