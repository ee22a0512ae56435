"""The node's own home: its databases, its backup, and leaving the network."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from xsc.api import home as api
from xsc.api.endpoint import Nothing
from xsc.identity.keys import network_id
from xsc.node.api.serving import Download
from xsc.node.build import Node
from xsc.node.home.backup import stream
from xsc.node.home.folder import Home
from xsc.node.offline.fsck import audited, damaged_body

DAMAGED_MAX = 10_000
"""Listed at once; the number of all stands beside them."""


async def fsck(node: Node, asked: api.Fsck) -> api.Audit:
    """Check the node's own databases."""
    parts, network = node.parts, network_id(node.network)
    return await audited(
        node.shards,
        parts.stores.space,
        network,
        parts.executor,
        deep=asked.deep,
        watch=node.works.watch_of(asked.work),
    )


async def damaged(node: Node, _: Nothing) -> api.DamagedBodies:
    """List bodies known to be damaged."""
    known = node.shards.damaged
    rows = [damaged_body(item) for item in known[:DAMAGED_MAX]]
    return api.DamagedBodies(damaged=rows, count=len(known))


async def gc(node: Node, _: Nothing) -> api.Collected:
    """Drop what need not be kept."""
    return await node.collect_garbage()


async def _progress(node: Node, wait_ms: int = 0) -> api.Drain:
    await node.storage.drain.counted(wait_ms)
    owed = [node.market.owed_micro(each) for each in node.market.store.accounts("provider")]
    guarded = sum(bool(item.held) for _, item in node.storage.custodian.store.objects())
    return node.storage.drain.status(guarded, sum(owed))


async def leave(node: Node, _: Nothing) -> api.Drain:
    """Begin to leave the network."""
    await node.storage.drain.begin()
    return await _progress(node)


async def drain(node: Node, asked: api.Look) -> api.Drain:
    """Say how far the node is with leaving."""
    return await _progress(node, asked.wait_ms)


async def stay(node: Node, _: Nothing) -> api.Drain:
    """Stay after all."""
    await node.storage.drain.cancel()
    return await _progress(node)


async def proof(node: Node, _: Nothing) -> bytes:
    """Prove where everything lies now."""
    return await node.storage.drain.proof()


async def backup(node: Node, asked: api.Backup) -> Download:
    """Return a backup."""
    parts = node.parts
    found = stream(
        Home(node.home, node.network, node.key),
        parts.stores,
        identity=asked.identity,
        bodies=asked.bodies,
        now_ms=parts.clock.now_ms(),
    )

    async def pieces(_: int, __: int) -> AsyncGenerator[bytes | memoryview, None]:
        # One frame at a time: reading, hashing and sealing keep nobody else waiting.
        while piece := await parts.executor.run(next, found, b""):
            yield piece

    return Download(pieces)
