"""Callers that share one synced write."""

from __future__ import annotations

import asyncio

import pytest

from xsc.base.clock import InlineExecutor
from xsc.base.errors import SpaceExhausted
from xsc.db.group import GroupCommit
from xsc.db.memory import MemoryKeyValue


class GatedExecutor(InlineExecutor):
    """Runs nothing while its gate is closed."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def run(self, function, *args, **kwargs):
        self.entered.set()
        await self.gate.wait()
        return function(*args, **kwargs)


class CountingStore(MemoryKeyValue):
    def __init__(self) -> None:
        super().__init__()
        self.groups = []
        self.full = False

    def write(self, changes, *, sync):
        assert sync
        if self.full:
            raise SpaceExhausted("full", hint="make room")
        self.groups.append([key for key, _ in changes])
        super().write(changes, sync=sync)


@pytest.fixture
def store():
    return CountingStore()


@pytest.fixture
def executor():
    return GatedExecutor()


async def hold(executor, commit, key):
    """Start a commit and return once it waits for the disk."""
    executor.gate.clear()
    executor.entered.clear()
    first = asyncio.create_task(commit([(key, b"")]))
    await executor.entered.wait()
    return first


async def test_a_commit_is_durable_on_return(store, executor):
    group = GroupCommit(store, executor)
    await group.commit([(b"a", b"1"), (b"b", b"1")])
    store.crash()
    assert dict(store.scan(b"")) == {b"a": b"1", b"b": b"1"}


async def test_those_who_come_during_a_write_share_the_next(store, executor):
    group = GroupCommit(store, executor)
    first = await hold(executor, group.commit, b"0")
    others = [asyncio.create_task(group.commit([(b"%d" % n, b"")])) for n in range(1, 9)]
    await asyncio.sleep(0)
    executor.gate.set()
    await asyncio.gather(first, *others)
    assert store.groups == [[b"0"], [b"%d" % n for n in range(1, 9)]]


async def test_a_group_is_bounded_in_bytes(store, executor):
    group = GroupCommit(store, executor, group_bytes=10)
    first = await hold(executor, group.commit, b"0")
    sizes = [4, 4, 4, 100, 1]
    others = [
        asyncio.create_task(group.commit([(b"%d" % n, bytes(size))]))
        for n, size in enumerate(sizes, 1)
    ]
    await asyncio.sleep(0)
    executor.gate.set()
    await asyncio.gather(first, *others)
    assert store.groups == [[b"0"], [b"1", b"2"], [b"3"], [b"4"], [b"5"]]


async def test_an_error_reaches_everybody_of_the_group_and_nobody_else(store, executor):
    group = GroupCommit(store, executor)
    await group.commit([(b"a", b"")])
    store.full = True
    results = await asyncio.gather(
        *(group.commit([(b"%d" % n, b"")]) for n in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [SpaceExhausted] * 3
    assert results[0] is not results[1]
    assert results[0].hint == "make room"
    store.full = False
    await group.commit([(b"b", b"")])
    assert store.get(b"b") == b""
    assert store.get(b"0") is None


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_a_cancelled_caller_loses_nobodys_write(store, executor, cancelled):
    group = GroupCommit(store, executor)
    first = await hold(executor, group.commit, b"0")
    callers = [first, *(asyncio.create_task(group.commit([(b"%d" % n, b"")])) for n in (1, 2))]
    await asyncio.sleep(0)
    callers[cancelled].cancel()
    await asyncio.sleep(0)
    executor.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [n for n, result in enumerate(results) if result is not None] == [cancelled]
    await group.settle()
    assert [key for key, _ in store.scan(b"")] == [b"0", b"1", b"2"]


async def test_a_bug_in_the_store_reaches_every_caller(store, executor):
    group = GroupCommit(store, executor)
    store.write = None
    commits = (group.commit([(b"a", b"")]) for _ in range(2))
    results = await asyncio.gather(*commits, return_exceptions=True)
    assert [type(result) for result in results] == [TypeError] * 2
