"""The Python client on real nodes."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.e2e.conftest import PROGRAMS
from xsc.base.errors import FuelExhausted, NodeUnreachable, ObjectUnknown, PeerUnknown
from xsc.client import connect


async def test_a_day_with_the_client(net, tmp_path):
    content = os.urandom(6_000_000)
    async with connect(net[0].home) as node, connect(net[4].home) as other:
        stored = await node.store(content, name="day")
        assert stored.survives_nodes == 2
        assert await other.read(stored.capability) == content
        assert await other.get(stored.capability, tmp_path / "copy") == len(content)
        assert (tmp_path / "copy").read_bytes() == content
        assert [
            row.name for row in await node.objects() if row.capability == stored.capability
        ] == ["day"]
        done = await node.invoke(PROGRAMS / "add.wasm", "add", ["1", "2"], on=other.id)
        assert done.results == ("3",)
        assert done.provider == other.id
        ran = await node.run(PROGRAMS / "wordcount.wasm", stdin=b"one two\n")
        assert ran.stdout.split()[:3] == [b"1", b"2", b"8"]
        assert (await node.run(PROGRAMS / "exit3.wasm")).exit_code == 3
        with pytest.raises(FuelExhausted):
            await node.invoke(PROGRAMS / "endless.wasm", "spin", fuel=1_000_000)
        with pytest.raises(PeerUnknown):
            await node.invoke(PROGRAMS / "add.wasm", "add", ["1", "2"], on="nobody")
        assert await node.remove(stored.capability) == []
        with pytest.raises(ObjectUnknown):
            await other.read(stored.capability)
        assert len(await node.peers()) == 6
        assert set(await node.balances()) <= {row["id"] for row in await node.peers()}


async def test_many_calls_at_once(net):
    async with connect(net[0].home) as node:
        calls = [
            node.invoke(PROGRAMS / "add.wasm", "add", [str(number), "1"]) for number in range(20)
        ]
        assert [done.results[0] for done in await asyncio.gather(*calls)] == [
            str(number + 1) for number in range(20)
        ]


async def test_no_node(tmp_path):
    with pytest.raises(NodeUnreachable):
        async with connect(tmp_path):
            pass
