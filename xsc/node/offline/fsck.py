"""Checks the shard store and the space of a home whose node does not run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xsc.api import home as api
from xsc.base.clock import InlineExecutor
from xsc.base.errors import HomeInvalid
from xsc.base.ids import ID_BYTES, to_text
from xsc.base.log import SilentLog
from xsc.db.group import GroupCommit
from xsc.db.leveldb import salvage
from xsc.identity.keys import network_id
from xsc.node.home import folder as homes
from xsc.node.home.stores import open_stores
from xsc.space import fsck
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.fsck import Damage, StoreAudit
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

    def shown(self) -> api.Audit:
        """Return it as `xsc node fsck --json` shows it."""
        kept = None if self.kept is None else str(self.kept)
        index: Literal["rebuilt", "ok"] = "rebuilt" if self.rebuilt else "ok"
        return audited(self.audit, self.space, index=index, kept=kept)


def damaged_body(found: Damage) -> api.Damaged:
    """Return what people see of a damaged body."""
    key = found.key
    segment, column = None, None
    if key.startswith(formats.SHARDS):
        segment, column, _ = formats.column_of_key(key)
    return api.Damaged(
        sequence=found.entry.sequence,
        locate=to_text(key[1 : 1 + ID_BYTES]),
        customer=key[-ID_BYTES:],
        lease_id=found.entry.lease_id,
        size_bytes=found.entry.size_bytes,
        reason=found.reason,
        kind="record" if segment is None else "shard",
        segment=segment,
        column=column,
    )


def audited(
    shards: StoreAudit,
    space: fsck.SpaceAudit,
    *,
    index: Literal["ok", "wrong", "rebuilt"],
    kept: str | None,
) -> api.Audit:
    """Return what was found as the API shows it."""
    return api.Audit(
        bodies=shards.bodies,
        bytes_held=shards.bytes_held,
        bytes_counted=shards.bytes_counted,
        index_faults=list(shards.index_faults),
        damaged=[damaged_body(item) for item in shards.damaged],
        unreadable=list(shards.unreadable),
        whole=shards.whole and not space.faults,
        space_records=space.records,
        space_faults=list(space.faults),
        index=index,
        kept=kept,
    )


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
