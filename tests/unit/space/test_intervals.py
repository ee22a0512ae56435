"""Intervals as nodes ask for them and grant them, on a memory network."""

from __future__ import annotations

import asyncio

import pytest

from tests.settle import settle
from tests.unit.net.nodes import Node, acquainted
from xsc.base.clock import ManualClock
from xsc.base.errors import NotAllowed, PeerSilent, RateLimited
from xsc.db.memory import MemoryKeyValue
from xsc.net.transport.memory import MemoryNetwork
from xsc.space.intervals import Intervals
from xsc.space.limits import ASK_AGAIN_MS, GRANTS_A_PEER_MAX, GRANTS_MS
from xsc.space.store import SpaceStore


class Member:
    """A node with a space and the methods of intervals."""

    def __init__(self, node):
        self.node = node
        self.id = node.id
        self.direct = True
        self.store = SpaceStore(MemoryKeyValue(), node.net.context)
        self.intervals = Intervals(
            self.store, node.net.context, peers=node.net.peers, is_direct=lambda _: self.direct
        )
        node.net.server.register(self.intervals.handlers())


@pytest.fixture
async def members():
    clock = ManualClock()
    network = MemoryNetwork(clock)
    nodes = [Node(network, name, clock=clock) for name in ("ada", "bea", "cid")]
    await acquainted(*nodes)
    yield [Member(node) for node in nodes]
    for node in nodes:
        await node.net.stop()


async def test_a_joiner_counts_in_the_domain_of_its_inviter(members):
    ada, bea, cid = members
    await bea.intervals.ask([ada.id])
    await cid.intervals.ask([bea.id])
    assert ada.store.clock.domain == bea.store.clock.domain == cid.store.clock.domain
    await ada.intervals.ask([cid.id])  # it has one, and asks nobody
    assert cid.store.get("causality/interval", cid.id).value is not None


async def test_a_joiner_that_asks_again_gets_the_same_interval(members):
    ada, bea, _ = members
    first = await ada.store.grant(bea.id)
    assert await ada.store.grant(bea.id) == first
    await bea.intervals.ask([ada.id])
    assert [record.path for record in ada.store.ls("causality/grants", ada.id)] == [
        "causality/grants/1"
    ]


async def test_who_left_its_interval_gets_another_one(members):
    ada, bea, _ = members
    await bea.intervals.ask([ada.id])
    before = bea.store.clock.interval
    await bea.store.leave(7)
    assert bea.store.has_left
    await bea.intervals.ask([ada.id])
    assert bea.store.clock.interval not in {0, before}
    assert not bea.store.has_left
    assert len(ada.store.ls("causality/grants", ada.id)) == 2
    assert await ada.store.grant(bea.id) == await ada.store.grant(bea.id)


async def test_who_is_not_known_directly_gets_no_interval(members):
    ada, bea, cid = members
    ada.direct = False
    with pytest.raises(NotAllowed):
        await bea.node.net.call(ada.id, "space.grant", {"anew": False})
    assert ada.store.ls("", ada.id) == []
    await bea.intervals.ask([ada.id, cid.id])
    assert bea.store.clock.domain == cid.store.clock.domain


async def test_a_peer_gets_so_many_intervals_a_day(members):
    ada, bea, cid = members
    for _ in range(GRANTS_A_PEER_MAX):
        await bea.node.net.call(ada.id, "space.grant", {"anew": True})
    with pytest.raises(RateLimited):
        await bea.node.net.call(ada.id, "space.grant", {"anew": True})
    await cid.intervals.ask([ada.id])
    assert cid.store.clock is not None
    ada.node.clock.advance_to(ada.node.clock.now_ms() + GRANTS_MS + 1)
    await bea.node.net.call(ada.id, "space.grant", {"anew": True})


async def test_a_grant_that_is_lost_is_asked_for_again_until_there_is_one(members):
    ada, bea, _ = members
    handlers, asked = ada.node.net.server.handlers, []
    honest = handlers["space.grant"]

    async def loses(caller, header, parts):
        asked.append(caller)
        if len(asked) < 4:
            raise PeerSilent("the answer is lost")
        return await honest(caller, header, parts)

    handlers["space.grant"] = loses
    await bea.store.invited_by(ada.id)
    running = asyncio.create_task(bea.intervals.get())
    for _ in range(5):
        await settle()
        bea.node.clock.advance_to(bea.node.clock.now_ms() + ASK_AGAIN_MS)
    await running
    assert len(asked) == 4
    assert bea.store.clock.domain == ada.store.clock.domain
    assert bea.store.inviter is None


async def test_who_is_to_grant_an_interval_is_known_after_a_restart(members):
    ada, bea, _ = members
    await bea.store.invited_by(ada.id)
    again = SpaceStore(bea.store._db, bea.node.net.context)
    assert again.inviter == ada.id
    await again.put_all({"a": b"1"})  # nobody waits for a grant
    assert again.inviter is None
