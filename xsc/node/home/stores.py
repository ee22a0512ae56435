"""Opens the four databases of a home, and decides what their damage means.

The index is disposable: where it cannot be opened or read it is thrown away, and
made again from the bodies. Bodies, state and space are not: a node refuses to start
on what cannot be opened, and says what can be done. Single bodies that cannot be
read do not keep a node from starting (`xsc.storage.shardstore.fsck`).
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from xsc.base import errors, keyvalue
from xsc.base.log import Log
from xsc.db.leveldb import LevelDBKeyValue

INDEX_WRITE_BUFFER_BYTES = 4 * 1024 * 1024
KEPT = ("state", "space", "bodies")
"""Databases whose content cannot be made again."""


def open_stores(folder: Path, log: Log) -> keyvalue.Stores:
    """Return the databases in a folder; the index can be a new one.

    Raises:
        StoreDamaged: bodies, state or space are damaged, or missing beside others.
        HomeLocked: another process has them open.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_complete(folder)
    small = partial(LevelDBKeyValue, write_buffer_bytes=INDEX_WRITE_BUFFER_BYTES)
    with ExitStack() as opened:
        state = opened.enter_context(closing(small(folder / "state")))
        space = opened.enter_context(closing(small(folder / "space")))
        bodies = opened.enter_context(closing(_open_bodies(folder / "bodies")))
        index = _open_index(folder / "index", log)
        opened.pop_all()
    return keyvalue.Stores(bodies, index, state, space)


def check_complete(folder: Path) -> None:
    """Return if no database is missing that was there: they are made in the order of their names.

    Raises:
        StoreDamaged: one is.
    """
    there = [(folder / name).exists() for name in (*KEPT, "index")]
    for place, name in enumerate(KEPT):
        if not there[place] and any(there[place:]):
            raise errors.StoreDamaged(
                f"the database {name} of {folder.parent} is missing",
                hint="restore a backup (`xsc node restore`), or make a new home of the key "
                "(`xsc node recover`)",
            )


def _open_bodies(path: Path) -> LevelDBKeyValue:
    try:
        return LevelDBKeyValue(path)
    except errors.StoreDamaged as fault:
        raise errors.StoreDamaged(
            fault.message,
            hint="`xsc node fsck --salvage` saves what can be read, and keeps the old directory",
        ) from None


def _open_index(path: Path, log: Log) -> LevelDBKeyValue:
    try:
        index = LevelDBKeyValue(path, write_buffer_bytes=INDEX_WRITE_BUFFER_BYTES)
        try:
            for _ in index.scan(b""):
                pass
        except errors.StoreDamaged:
            index.close()
            raise
    except errors.StoreDamaged as fault:
        log.warning("storage.index_damaged", fault=fault.message)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return LevelDBKeyValue(path, write_buffer_bytes=INDEX_WRITE_BUFFER_BYTES)
    return index
