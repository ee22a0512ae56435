"""The space: get, put, delete, list, watch, count, diagnose and compact.

Only this node's own space can be written to, and only of it are replaced values kept.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from xsc.api import space as api
from xsc.api.endpoint import Nothing, filled
from xsc.base.errors import ArgumentInvalid, NotAllowed, NotFound
from xsc.node.api.serving import Body
from xsc.node.build import Node
from xsc.space import itc, limits, paths
from xsc.space.record import Entry, to_json


def _addressed(node: Node, text: str) -> tuple[bytes, str]:
    """Return the owner and the path that an address names; the path may be empty."""
    owner, path = paths.parse_address(text)
    return node.key.node_id if owner is None else node.find(owner), path


def _record_at(node: Node, text: str) -> tuple[bytes, str]:
    owner, path = _addressed(node, text)
    if not path:
        raise ArgumentInvalid("the path is missing", hint="write [OWNER:]part/part")
    return owner, path


def _own_record_at(node: Node, text: str) -> str:
    owner, path = _record_at(node, text)
    if owner != node.key.node_id:
        raise NotAllowed(
            "only the owner of a space writes there", hint="without OWNER it is your own"
        )
    if paths.is_reserved(path):
        raise ArgumentInvalid(
            f"only the node itself writes at '{path}'", hint="choose another first part"
        )
    return path


def _own_versions(node: Node, text: str) -> list[Entry]:
    owner, path = _record_at(node, text)
    if owner != node.key.node_id:
        raise NotAllowed(
            "a node keeps replaced values of its own space only",
            hint="without OWNER it is your own",
        )
    return node.space.versions(path)


async def versions(node: Node, asked: api.At) -> list[api.Record]:
    """List replaced values."""
    found = _own_versions(node, asked.at)
    return [filled(api.Record, each.signed.record, owner=each.signed.author) for each in found]


def _version(node: Node, asked: api.Get) -> Entry:
    for entry in _own_versions(node, asked.at):
        if entry.signed.record.sequence == asked.sequence:
            return entry
    raise NotFound(
        f"no replaced value of that path with the sequence {asked.sequence} is kept",
        hint="`xsc space versions` lists those that are",
    )


async def get(node: Node, asked: api.Get) -> api.Valued:
    """Read a record."""
    owner, path = _record_at(node, asked.at)
    newest = asked.sequence is None
    entry = await node.following.read(owner, path) if newest else _version(node, asked)
    if entry.value is None:
        raise NotFound(f"the value at '{path}' is not on this node")
    record = entry.signed.record
    return filled(
        api.Valued,
        record,
        owner=owner,
        stamp=api.Stamp(domain=record.domain, events=record.stamp),
        value=to_json(entry.value),
    )


def _written(node: Node, path: str, sequence: int) -> api.Written:
    return api.Written(owner=node.key.node_id, path=path, sequence=sequence)


async def put(node: Node, asked: api.At, body: Body) -> api.Written:
    """Write a value."""
    path = _own_record_at(node, asked.at)
    value = await body.whole(limits.VALUE_BYTES_MAX, "a value")
    return _written(node, path, (await node.space.put_all({path: value}))[path])


async def remove(node: Node, asked: api.At) -> api.Written:
    """Delete a record."""
    path = _own_record_at(node, asked.at)
    return _written(node, path, await node.space.rm(path))


async def list_(node: Node, asked: api.Under) -> list[api.Record]:
    """List records."""
    owner, prefix = _addressed(node, asked.under)
    found = await node.parts.executor.run(node.space.ls, prefix, owner)
    return [filled(api.Record, record, owner=owner) for record in found]


async def watch(node: Node, asked: api.Under) -> AsyncGenerator[api.Change | None, None]:
    """Yield changes from now on; None at first: it is open."""
    owner, prefix = _addressed(node, asked.under)
    watching = node.space.watch(prefix, owner)
    node.following.watch(owner, prefix)
    try:
        yield None
        while (change := await watching.next()) is not None:
            yield filled(api.Change, change, value=to_json(change.value))
    finally:
        node.following.unwatch(owner, prefix)
        node.space.unwatch(watching)


async def stats(node: Node, _: Nothing) -> api.Stats:
    """Count what the space holds."""
    found = await node.parts.executor.run(node.space.stats)
    sync, followed = node.sync, len(node.sync.subscribed)
    return filled(api.Stats, found, sync.asking, sync.answering, subscriptions=followed)


async def compact(node: Node, asked: Nothing) -> api.Stats:
    """Drop what need not be kept."""
    await node.space.compact()
    return await stats(node, asked)


async def diagnostics(node: Node, _: Nothing) -> api.Diagnostics:
    """Show what is listed, followed and active."""
    now_ms, clock = node.clock.now_ms(), node.space.clock
    ages = {peer: max(0, now_ms - seen) for peer, seen in node.sync.asking.seen_ms.items()}
    return api.Diagnostics(
        programs=[
            filled(api.Record, record, owner=node.key.node_id)
            for record in node.space.ls(paths.UserSpacePaths.PROGRAMS)
        ],
        running=node.programs.status(),
        subscriptions=[
            api.Subscription(owner=owner, prefix=prefix, cursor=cursor, head_age_ms=ages.get(owner))
            for owner, prefix, cursor in await node.sync.cursors()
        ],
        nodes=[
            api.SpaceNode(
                node=peer,
                head_age_ms=ages.get(peer),
                active=ages.get(peer, limits.ACTIVE_MS + 1) <= limits.ACTIVE_MS,
            )
            for peer in node.peers.peers()
        ],
        causality=api.Causality(
            domain=None if clock is None else clock.domain,
            interval=None if clock is None else itc.interval_bytes(clock.interval),
            stamp_bytes=0 if clock is None else len(itc.event_bytes(clock.event)),
        ),
    )
