"""Checks the shard store and the space of a home whose node does not run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xsc.base.clock import InlineExecutor
from xsc.base.errors import HomeInvalid
from xsc.base.log import SilentLog
from xsc.db.group import GroupCommit
from xsc.db.leveldb import salvage
from xsc.identity.keys import network_id
from xsc.node.home import folder as homes
from xsc.node.home.stores import open_stores
from xsc.space import fsck
from xsc.storage.shardstore.fsck import StoreAudit
from xsc.storage.shardstore.store import StorageNode

CAPACITY_BYTES = 2**62
"""Nothing is stored during a check."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found, and what it did."""

    audit: StoreAudit
    space: fsck.SpaceAudit
    rebuilt: bool
    """Whether the index had to be made anew."""
    kept: Path | None
    """Where the directory is that was salvaged."""

    def to_json(self) -> dict[str, Any]:
        """Return the document of `xsc node fsck --json`."""
        return document(self.audit, self.space) | {
            "index": "rebuilt" if self.rebuilt else "ok",
            "kept": None if self.kept is None else str(self.kept),
        }


def document(shards: StoreAudit, space: fsck.SpaceAudit) -> dict[str, Any]:
    """Return what was found as `xsc node fsck --json` shows it."""
    return shards.to_json() | {
        "whole": shards.whole and not space.faults,
        "space_records": space.records,
        "space_faults": list(space.faults),
    }


def check_home(path: Path, *, deep: bool, salvaged: bool) -> Checked:
    """Check the shard store and the space of a home; an index that is wrong is rebuilt.

    Args:
        path: the home; its node must not run.
        deep: check every root and hash, too.
        salvaged: first make the bodies anew out of what can be read.

    Raises:
        HomeInvalid, HomeLocked: no home, or its node runs.
        StoreDamaged: the bodies cannot be opened.
    """
    homes.check_format(path)
    if not (path / "db" / "bodies").exists():
        raise HomeInvalid(f"{path} holds no shard store yet", hint="its node never ran")
    with homes.lock(path):
        kept = salvage(path / "db" / "bodies") if salvaged else None
        network = homes.network_of(path)
        return asyncio.run(_check(path / "db", network, deep=deep or salvaged, kept=kept))


async def _check(folder: Path, network: str, *, deep: bool, kept: Path | None) -> Checked:
    stores = open_stores(folder, SilentLog())
    try:
        executor = InlineExecutor()
        node = StorageNode(
            capacity_bytes=CAPACITY_BYTES,
            bodies=stores.bodies,
            index=stores.index,
            commit=GroupCommit(stores.bodies, executor).commit,
            executor=executor,
            log=SilentLog(),
        )
        recovery = await node.start(rebuild=kept is not None)
        audit = await node.audit(deep=deep)
        rebuilt = recovery.rebuilt
        if audit.index_faults:
            await node.start(rebuild=True)
            rebuilt = True
            audit = await node.audit(deep=deep)
        space = fsck.audit(stores.space, network=network_id(network))
        return Checked(audit, space, rebuilt, kept)
    finally:
        stores.close()
