"""The space of one node: what users put, get and watch."""

from __future__ import annotations

import asyncio

import pytest

from tests.settle import settle
from tests.unit.memory import made_for
from tests.unit.space.test_store import A, Journal, opened, record
from xsc.base.clock import ManualClock
from xsc.base.errors import ArgumentInvalid, NotFound, RateLimited, RecordInvalid, SpaceExhausted
from xsc.space.limits import (
    VALUE_BYTES_MAX,
    WATCHES_MAX,
)
from xsc.space.paths import UserSpacePaths, below
from xsc.space.record import Change, value_digest
from xsc.space.store import SpaceStore


class Node:
    def __init__(self, key, network):
        self.db, self.clock = Journal(), ManualClock()
        self.store = SpaceStore(self.db, made_for(key, network, self.clock))
        self.service = self.store


@pytest.fixture
def node(alice, network):
    return Node(alice, network)


async def test_a_value_is_put_got_listed_and_deleted(node):
    space = node.service
    sequence = await space.put("a/b", b"x")
    assert space.get("a/b").value == b"x"
    assert space.get("a/b", node.store.owner).signed.record.sequence == sequence
    assert [found.path for found in space.ls("a")] == ["a/b"]
    assert await space.rm("a/b") == sequence + 1
    with pytest.raises(NotFound):
        space.get("a/b")
    with pytest.raises(NotFound):
        await space.rm("a/b")


@pytest.mark.parametrize("path", ["", "a//b", "..", "a b", "é"])
async def test_what_is_no_path_is_the_callers_error(node, path):
    for ask in (
        node.service.put(path, b""),
        node.service.rm(path),
    ):
        with pytest.raises(ArgumentInvalid):
            await ask
    assert node.db.writes == []


async def test_a_value_that_is_too_large_is_refused(node):
    with pytest.raises(ArgumentInvalid):
        await node.service.put("a", bytes(VALUE_BYTES_MAX + 1))
    await node.service.put("a", bytes(VALUE_BYTES_MAX))


# Schemas


def a_cells(owner, value):
    if not value.isdigit():
        raise RecordInvalid("no number")


async def test_a_schema_is_checked_before_anything_is_stored(node, bob, network):
    node.service.register_schema("cells/*/value", a_cells)
    with pytest.raises(ArgumentInvalid):
        await node.service.put("cells/x/value", b"no json")
    assert node.db.writes == []
    await node.service.put("cells/x/value", b"5")
    await node.service.put("cells/x/note", b"no json")
    await node.service.rm("cells/x/value")
    offered = [
        (record(bob, network, "cells/x/value", 1, b"{"), b"{"),
        (record(bob, network, "cells/y/value", 2, b"5"), b"5"),
    ]
    taken = await node.service.take(bob.node_id, offered)
    assert taken.paths == ["cells/y/value"]
    assert [type(fault) for fault in taken.refused] == [RecordInvalid]


@pytest.mark.parametrize("pattern", ["cells/*", "", "a//*", "a b"])
async def test_a_pattern_is_registered_once_and_is_one(node, pattern):
    if pattern == "cells/*":
        node.service.register_schema(pattern, a_cells)
    with pytest.raises(ArgumentInvalid):
        node.service.register_schema(pattern, a_cells)


# Watching


async def test_a_watch_tells_changes_from_now_on(node, bob, network):
    space, owner = node.service, node.store.owner
    await space.put("a/x", b"before")
    watch, theirs = space.watch("a"), space.watch("", bob.node_id)
    second = await space.put("a/x", b"1")
    await space.put("ab", b"beside")
    third = await space.rm("a/x")
    assert await watch.next() == Change(owner, "a/x", third, None)
    assert third == second + 2
    last = await space.put("a/y", b"2")
    assert await watch.next() == Change(owner, "a/y", last, b"2")
    waiting = asyncio.create_task(theirs.next())
    await settle()
    assert not waiting.done()
    offered = [(record(bob, network, "a", 1, b"v"), b"v")]
    await space.take(bob.node_id, offered)
    await space.take(bob.node_id, offered)
    assert await waiting == Change(bob.node_id, "a", 1, b"v")
    space.unwatch(watch)
    await space.put("a/x", b"3")
    assert watch._waiting == {}


async def test_watches_end_with_the_node(node):
    watch = node.service.watch("")
    waiting = asyncio.create_task(watch.next())
    await asyncio.sleep(0)
    await node.service.close()
    assert await waiting is None
    assert await watch.next() is None


async def test_a_slow_watch_keeps_one_change_of_each_path(node):
    watch = node.service.watch("")
    for number in range(100):
        await node.service.put(f"p{number % 3}", str(number).encode())
    told = [await watch.next() for _ in range(4)]
    assert told[0].path == UserSpacePaths.INTERVAL
    assert [change.value for change in told[1:]] == [b"97", b"98", b"99"]
    assert watch._waiting == {}


async def test_watches_are_bounded(node):
    watches = [node.service.watch("") for _ in range(WATCHES_MAX)]
    with pytest.raises(RateLimited):
        node.service.watch("")
    node.service.unwatch(watches[0])
    node.service.watch("")


async def test_a_watch_is_told_only_what_is_on_the_disk(node, monkeypatch):
    watch = node.service.watch("")

    def full(changes, *, sync):
        raise SpaceExhausted("the disk is full")

    monkeypatch.setattr(node.db, "write", full)
    with pytest.raises(SpaceExhausted):
        await node.service.put("a", b"")
    assert watch._waiting == {}


# Heads


async def test_two_nodes_come_to_rest(alice, bob, network):
    """What a node adopted it does not publish again, so nothing is left to say."""
    one, other = Node(alice, network), Node(bob, network)
    await one.service.put("a", b"1")
    await other.service.put("a", b"2")
    for _ in range(3):
        new = 0
        for source, target in ((one, other), (other, one)):
            page = await source.store.page(source.store.owner, A, 0, count=9, size_bytes=2**20)
            offered = [(entry.signed, entry.sent.value) for entry in page.entries]
            new += len((await target.service.take(source.store.owner, offered)).paths)
    assert new == 0
    assert one.service.get("a").value == b"1"
    assert one.service.get("a", other.store.owner).value == b"2"


async def test_compacting_says_what_is_left(node):
    await node.service.put("a", b"1")
    await node.service.put("a", b"2")
    stats = await node.service.compact()
    assert stats == node.service.stats()
    assert stats.records == 2  # the interval of the clock is one
    assert value_digest(b"2") == node.service.get("a").signed.record.digest
    assert opened(node.store._key, node.store._network, node.db).stats() == stats


async def test_what_is_granted_is_a_change_like_others(node, bob):
    """A watch and those who hold a request heard of a grant with the next put."""
    watch = node.service.watch("causality")
    await node.store.grant(bob.node_id)
    told = [await watch.next() for _ in range(2)]
    assert {change.path for change in told} == {
        UserSpacePaths.INTERVAL,
        below(UserSpacePaths.GRANTS, 1),
    }
    for change in told:
        assert node.service.get(change.path).signed.record.sequence == change.sequence
        assert node.service.get(change.path).value == change.value
