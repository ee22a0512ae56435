"""Checks the shard store of a home whose node does not run."""

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
from xsc.node.home import folder as homes
from xsc.node.home.stores import open_stores
from xsc.storage.shardstore.fsck import StoreAudit
from xsc.storage.shardstore.store import StorageNode

CAPACITY_BYTES = 2**62
"""Nothing is stored during a check."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found, and what it did."""

    audit: StoreAudit
    rebuilt: bool
    """Whether the index had to be made anew."""
    kept: Path | None
    """Where the directory is that was salvaged."""

    def to_json(self) -> dict[str, Any]:
        """Return the document of `xsc node fsck --json`."""
        return self.audit.to_json() | {
            "index": "rebuilt" if self.rebuilt else "ok",
            "kept": None if self.kept is None else str(self.kept),
        }


def check_home(path: Path, *, deep: bool, salvaged: bool) -> Checked:
    """Check the shard store of a home; an index that is wrong is rebuilt.

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
        return asyncio.run(_check(path / "db", deep=deep or salvaged, kept=kept))


async def _check(folder: Path, *, deep: bool, kept: Path | None) -> Checked:
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
        return Checked(audit, rebuilt, kept)
    finally:
        stores.close()
