"""Checks the shard store and the space of a home whose node does not run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from xsc.api import home as api
from xsc.api.endpoint import filled
from xsc.base import errors, ids, keyvalue, log
from xsc.base.clock import Executor, InlineExecutor
from xsc.base.progress import Watch, unwatched
from xsc.db import leveldb
from xsc.identity.keys import network_id
from xsc.node.home import folder as homes
from xsc.node.home.stores import open_stores
from xsc.space import replicas
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Damage
from xsc.storage.shardstore.store import StorageNode

CAPACITY_BYTES = 2**62
"""Nothing is stored during a check."""


def damaged_body(found: Damage) -> api.Damaged:
    """Return what people see of a damaged body."""
    key = found.key
    segment, column = None, None
    if key.startswith(formats.SHARDS):
        segment, column, _ = formats.column_of_key(key)
    return filled(
        api.Damaged,
        found.entry,
        found,
        locate=ids.to_text(key[1 : 1 + ids.ID_BYTES]),
        customer=key[-ids.ID_BYTES :],
        kind="record" if segment is None else "shard",
        segment=segment,
        column=column,
    )


async def audited(
    shards: StorageNode,
    space: keyvalue.KeyValue,
    network: bytes,
    executor: Executor,
    *,
    deep: bool,
    watch: Watch = unwatched,
) -> api.Audit:
    """Check a shard store and a space; return what was found.

    Args:
        shards: the shard store.
        space: the database of the space.
        network: the id of its network.
        executor: does the work.
        deep: check every root and hash, too.
        watch: shows how much was read.
    """
    with watch(shards.used_bytes) as progress:
        bodies = await shards.audit(deep=deep, progress=progress)
    records = await executor.run(replicas.audit, space, network=network)
    return filled(
        api.Audit,
        bodies,
        damaged=[damaged_body(item) for item in bodies.damaged],
        whole=bodies.whole and not records.faults,
        space_records=records.records,
        space_faults=records.faults,
        index="wrong" if bodies.index_faults else "ok",
        kept=None,
    )


def check_home(path: Path, *, deep: bool, salvaged: bool, watch: Watch = unwatched) -> api.Audit:
    """Check the shard store and the space of a home; an index that is wrong is rebuilt.

    Args:
        path: the home; its node must not run.
        deep: check every root and hash, too.
        salvaged: first make the bodies anew out of what can be read.
        watch: shows how much was read.

    Raises:
        HomeInvalid, HomeLocked: no home, or its node runs.
        StoreDamaged: the bodies cannot be opened.
    """
    homes.check_format(path)
    if not (path / "db" / "bodies").exists():
        if (path / "db" / "state").exists():
            raise errors.StoreDamaged(
                f"{path} has lost its shard store", hint="restore the home from a backup"
            )
        raise errors.HomeInvalid(f"{path} holds no shard store yet", hint="its node never ran")
    with homes.lock(path):
        kept = leveldb.salvage(path / "db" / "bodies") if salvaged else None
        network = homes.network_of(path)
        return asyncio.run(
            _check(path / "db", network, deep=deep or salvaged, kept=kept, watch=watch)
        )


async def _check(
    folder: Path, network: str, *, deep: bool, kept: Path | None, watch: Watch
) -> api.Audit:
    stores = open_stores(folder, log.SilentLog())
    try:
        executor = InlineExecutor()
        node = StorageNode(
            capacity_bytes=CAPACITY_BYTES,
            bodies=stores.bodies,
            index=stores.index,
            executor=executor,
            log=log.SilentLog(),
        )
        rebuilt = (await node.start(rebuild=kept is not None)).rebuilt
        of = network_id(network)
        found = await audited(node, stores.space, of, executor, deep=deep, watch=watch)
        if found.index == "wrong":
            rebuilt = (await node.start(rebuild=True)).rebuilt
            found = await audited(node, stores.space, of, executor, deep=deep, watch=watch)
        where = None if kept is None else str(kept)
        return replace(found, index="rebuilt" if rebuilt else found.index, kept=where)
    finally:
        stores.close()
