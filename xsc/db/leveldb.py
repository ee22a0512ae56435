"""The key-value port on LevelDB: the only module that knows its binding.

Every read verifies checksums, unless who asks has a hash of the value, and every open
is paranoid, so that damage is reported (`StoreDamaged`) and never taken for a value.
Values are ciphertext or small records: they are not compressed.

After a failed write LevelDB may take nothing more: it would append behind a
torn record, and the next open would take that for damage. Where the disk was
full, the database is opened anew as soon as there is room, and what the failed
write may have left is put back as it was: a write that failed has changed nothing.

It takes nothing more, either, after a compaction met a damaged block: what can be
read and written beside that block would be lost to all. The database is opened anew
then, and the compaction is not.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from xsc.base.errors import HomeLocked, SpaceExhausted, StoreDamaged, XscError
from xsc.base.keyvalue import Change
from xsc.base.limits import MIB

if sys.version_info >= (3, 13):
    import plyvel_next as plyvel
else:
    import plyvel

WRITE_BUFFER_BYTES = 16 * MIB
SPARE_BYTES = 4 * MIB
"""What an open writes beside the log that it turns into a table, at most."""
UNDO_BYTES_MAX = 64 * MIB
"""What is held in memory to put back after a failed write; beyond it, only a restart helps."""
REOPEN_S = 10.0
"""A database that damage keeps from taking writes is opened anew no more often than this, and
after a trial that found no room the next one waits as long."""
PATIENCE_S = 1.0
"""How long a write waits for those who read before the database is opened anew."""


def salvage(path: Path) -> Path:
    """Make a database out of what can be read of a damaged one; return where the old one is.

    Only files are read whose checksums fit. What was deleted shortly before the damage can
    be there again, and what cannot be read is gone: whoever knows the contents has to check
    them.

    Raises:
        StoreDamaged: nothing can be made of it; the old one is where it was.
    """
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    made = path.with_name(f"{path.name}.salvaged")
    try:
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(path, made)
        plyvel.repair_db(str(made), paranoid_checks=True, compression=None)
        path.rename(kept)
        made.rename(path)
    except (plyvel.Error, OSError) as fault:
        shutil.rmtree(made, ignore_errors=True)
        raise StoreDamaged(f"nothing of the database {path} can be saved: {fault}") from None
    return kept


def _words(fault: Exception) -> str:
    """Return what a fault says: LevelDB's own words come as bytes."""
    said = fault.args[0] if fault.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(fault)


class LevelDBKeyValue:
    """One LevelDB database in a directory of its own; safe to use from several threads.

    Raises:
        StoreDamaged: the directory holds a damaged database, or cannot be used.
        HomeLocked: another process, or another object here, has it open.
    """

    def __init__(self, path: Path, *, write_buffer_bytes: int = WRITE_BUFFER_BYTES) -> None:
        self._path = path
        self._buffer_bytes = write_buffer_bytes
        self._failed: XscError | None = None
        self._undo: list[Change] | None = None
        self._refusing = False
        """Whether damage, met behind the scenes, keeps it from taking writes."""
        self._reopened_s = -REOPEN_S
        self._full_s = -REOPEN_S
        """When a trial found no room last."""
        self._writing = threading.Lock()
        self._users = 0
        self._awaited = False
        # Reentrant: a scan that nobody holds any more may be collected by who has it already.
        self._entering = threading.RLock()
        self._calm = threading.Condition(self._entering)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_whole(path)
        except OSError as fault:
            raise self.named(fault) from None
        self._db: Any = self._open()

    def _open(self) -> Any:  # noqa: ANN401 (untyped binding)
        try:
            return plyvel.DB(
                str(self._path),
                create_if_missing=True,
                paranoid_checks=True,
                compression=None,
                write_buffer_size=self._buffer_bytes,
            )
        except (plyvel.Error, OSError) as fault:
            raise self.named(fault) from None

    def _enter(self) -> Any:  # noqa: ANN401 (untyped binding)
        """Return the database, which stays open until `_leave`."""
        with self._entering:
            if self._db is None:
                # It was closed to be opened anew, and the room had gone again.
                self._db = self._open()
            self._users += 1
            return self._db

    def leave(self) -> None:
        """End a use: who wants to open the database anew waits for all."""
        with self._entering:
            self._users -= 1
            if self._awaited and not self._users:
                self._calm.notify_all()

    @contextmanager
    def _using(self) -> Iterator[Any]:
        db = self._enter()
        try:
            yield db
        finally:
            self.leave()

    @staticmethod
    def _check_whole(path: Path) -> None:
        """Refuse a database without its CURRENT file: LevelDB would empty it without a word."""
        names = {entry.name for entry in path.iterdir()}
        if "CURRENT" not in names and any(
            name.startswith("MANIFEST") or name.endswith((".ldb", ".log")) for name in names
        ):
            raise StoreDamaged(
                f"the database {path} is damaged: it has lost its CURRENT file",
                hint="keep a copy of the directory before anything is repaired",
            )

    def named(self, fault: Exception) -> XscError:
        """Return the error of this package for one of the binding or the system."""
        text = str(fault)
        if "lock" in text and ("already held" in text or "temporarily unavailable" in text):
            return HomeLocked(
                f"the database {self._path} is open in another process",
                hint="stop the other node of this home",
            )
        if any(word in text for word in ("No space left", "uota exceeded", "File too large")):
            return SpaceExhausted(
                f"the disk under {self._path} is full", hint="free space there, then try again"
            )
        return StoreDamaged(
            f"the database {self._path} is damaged or cannot be used: {_words(fault)}",
            hint="keep a copy of the directory before anything is repaired",
        )

    def get(self, key: bytes, *, verify: bool = True) -> bytes | None:
        """Return the value of a key, or None.

        Args:
            key: of the value.
            verify: check LevelDB's sums, which take a third of the time of reading a shard.

        Raises:
            StoreDamaged: a checksum does not fit, or there is no way to the value.
        """
        db = self._enter()
        try:
            value: bytes | None = db.get(key, verify_checksums=verify)
        except plyvel.Error as fault:
            raise self.named(fault) from None
        finally:
            self.leave()
        return value

    def scan(
        self, start: bytes, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values with start <= key < stop, as they are at the call.

        Raises:
            StoreDamaged: a checksum does not fit; what came before it was right.
        """
        # The binding's plain iterator ends without a word at a damaged block; the raw one
        # checks after each step.
        iterator = self._enter().raw_iterator(verify_checksums=True, fill_cache=False)
        walk = self._backward if reverse else self._forward
        return _Scan(self, iterator, walk(iterator, start, stop))

    @staticmethod
    def _forward(iterator: Any, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:  # noqa: ANN401 (untyped binding)
        iterator.seek(start)
        while iterator.valid():
            key = iterator.key()
            if stop is not None and key >= stop:
                return
            yield key, iterator.value()
            iterator.next()

    @staticmethod
    def _backward(iterator: Any, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:  # noqa: ANN401 (untyped binding)
        if stop is not None:
            iterator.seek(stop)
        if stop is not None and iterator.valid():
            iterator.prev()
        else:
            iterator.seek_to_last()
        while iterator.valid():
            key = iterator.key()
            if key < start:
                return
            yield key, iterator.value()
            iterator.prev()

    def write(self, changes: list[Change], *, sync: bool) -> None:
        """Apply all changes or none; with `sync` they and all before them are on the disk.

        Raises:
            SpaceExhausted: the disk is full.
            StoreDamaged: the database cannot be written.
        """
        with self._writing:
            if self._failed is not None:
                self._recover(self._failed)
            try:
                self._write(changes, sync=sync)
            except StoreDamaged as fault:
                if not self._refusing:
                    raise
                self._recover(fault)
                self._write(changes, sync=sync)

    def _write(self, changes: list[Change], *, sync: bool) -> None:
        with self._using() as db:
            batch = db.write_batch(sync=sync)
            for key, value in changes:
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
            try:
                batch.write()
            except plyvel.Error as fault:
                self._failed = self.named(fault)
                # Said before anything of the write was begun.
                self._refusing = "Corruption" in str(fault)
                if self._undo is None and isinstance(self._failed, SpaceExhausted):
                    self._undo = self._before(changes)
                raise self._failed from None

    def _before(self, changes: list[Change]) -> list[Change] | None:
        """Return what puts a failed write back; None where that cannot be held."""
        found: dict[bytes, bytes | None] = {}
        size = 0
        with suppress(XscError):
            for key, _ in changes:
                # Readers do not see a write that failed: this is what was there before.
                found[key] = value = self.get(key)
                size += 0 if value is None else len(value)
                if size > UNDO_BYTES_MAX:
                    return None
            return list(found.items())
        return None

    def _recover(self, failed: XscError) -> None:
        """Open anew after a full disk, if there is room by now, or after damage.

        Raises:
            XscError: it has to wait, or nothing helps but a restart.
        """
        if self._refusing:
            if time.monotonic() - self._reopened_s < REOPEN_S:
                raise failed.with_traceback(None)
            self._reopened_s = time.monotonic()
        elif self._undo is None or not self._has_room():
            raise failed.with_traceback(None)
        self._reopen(failed)
        undo = self._undo
        if undo is not None:
            self._write(undo, sync=True)
        self._failed = self._undo = None

    def _reopen(self, failed: XscError) -> None:
        """Close and open, once nobody reads.

        Raises:
            XscError: somebody goes on reading, or it cannot be opened.
        """
        with self._calm:
            self._awaited = True
            calm = self._calm.wait_for(lambda: not self._users, PATIENCE_S)
            self._awaited = False
            if not calm:
                raise failed
            if self._db is not None:
                self._db.close()
            self._db = None
            self._db = self._open()

    def _has_room(self) -> bool:
        """Say whether an open could write what it has to, by writing as much.

        While it is tried others may find no room, so that not every refused write tries it.
        """
        if time.monotonic() - self._full_s < REOPEN_S:
            return False
        trial = self._path / "room.tmp"
        size = SPARE_BYTES + sum(log.stat().st_size for log in self._path.glob("*.log"))
        try:
            with trial.open("wb") as file:
                for _ in range(0, size, MIB):
                    file.write(bytes(MIB))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self._full_s = time.monotonic()
            return False
        finally:
            trial.unlink(missing_ok=True)
        return True

    def compact(self, start: bytes, stop: bytes) -> None:
        """Return the space of deleted keys in that range to the disk; takes long.

        Raises:
            StoreDamaged: it met a damaged block, and changed nothing.
        """
        with self._using() as db:
            db.compact_range(start=start, stop=stop)
        # The binding does not say that it failed; a write does, and one of nothing as well.
        with self._writing:
            if self._failed is None:
                self._write([], sync=False)

    def disk_bytes(self, start: bytes, stop: bytes) -> int:
        """Return about how many bytes of the tables a range takes.

        The log counts in a range of everything alone, which is what all files take.
        """
        if not start:
            found = 0
            for file in self._path.iterdir():
                with suppress(FileNotFoundError):  # a compaction has just deleted it
                    found += file.stat().st_size
            return found
        with self._using() as db:
            size: int = db.approximate_size(start, stop)
            return size

    def close(self) -> None:
        """Release the database and its lock."""
        if self._db is not None:
            self._db.close()


class _Scan:
    """A walk over the database as it was at the call; the database stays open until its end."""

    def __init__(
        self,
        store: LevelDBKeyValue,
        iterator: Any,  # noqa: ANN401 (untyped binding)
        steps: Iterator[tuple[bytes, bytes]],
    ) -> None:
        self._store: LevelDBKeyValue | None = store
        self._iterator = iterator
        self._steps = steps

    def __iter__(self) -> _Scan:
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        if self._store is None:
            raise StopIteration
        try:
            return next(self._steps)
        except StopIteration:
            self.close()
            raise
        except plyvel.Error as fault:
            named = self._store.named(fault)
            self.close()
            raise named from None

    def close(self) -> None:
        """Let go of the database."""
        store, self._store = self._store, None
        if store is not None:
            self._iterator.close()
            store.leave()

    def __del__(self) -> None:
        self.close()
