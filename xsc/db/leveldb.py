"""The key-value port on LevelDB: the only module that knows its binding.

Every read verifies checksums and every open is paranoid, so that damage is
reported (`StoreDamaged`) and never returned as a value. Values are ciphertext
or small records: they are not compressed. After a failed write the store
refuses further ones until it is opened again: LevelDB would append behind a
torn record, and the next open would take that for damage.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
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


class LevelDBKeyValue:
    """One LevelDB database in a directory of its own; safe to use from several threads.

    Raises:
        StoreDamaged: the directory holds a damaged database, or cannot be used.
        HomeLocked: another process, or another object here, has it open.
    """

    def __init__(self, path: Path, *, write_buffer_bytes: int = WRITE_BUFFER_BYTES) -> None:
        self._path = path
        self._failed: XscError | None = None
        self._writing = threading.Lock()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_whole(path)
            self._db: Any = plyvel.DB(
                str(path),
                create_if_missing=True,
                paranoid_checks=True,
                compression=None,
                write_buffer_size=write_buffer_bytes,
            )
        except (plyvel.Error, OSError) as fault:
            raise self._named(fault) from None

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

    def _named(self, fault: Exception) -> XscError:
        text = str(fault)
        if "lock" in text and ("already held" in text or "temporarily unavailable" in text):
            return HomeLocked(
                f"the database {self._path} is open in another process",
                hint="stop the other node of this home",
            )
        if any(word in text for word in ("No space left", "uota exceeded", "File too large")):
            return SpaceExhausted(f"the disk under {self._path} is full")
        return StoreDamaged(
            f"the database {self._path} is damaged or cannot be used: {text}",
            hint="keep a copy of the directory before anything is repaired",
        )

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None.

        Raises:
            StoreDamaged: a checksum does not fit.
        """
        try:
            value: bytes | None = self._db.get(key, verify_checksums=True)
        except plyvel.Error as fault:
            raise self._named(fault) from None
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
        iterator = self._db.raw_iterator(verify_checksums=True, fill_cache=False)
        walk = self._backward if reverse else self._forward
        return self._walk(iterator, walk(iterator, start, stop))

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

    def _walk(
        self,
        iterator: Any,  # noqa: ANN401 (untyped binding)
        steps: Iterator[tuple[bytes, bytes]],
    ) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from steps
        except plyvel.Error as fault:
            raise self._named(fault) from None
        finally:
            iterator.close()

    def write(self, changes: list[Change], *, sync: bool) -> None:
        """Apply all changes or none; with `sync` they and all before them are on the disk.

        Raises:
            SpaceExhausted: the disk is full.
            StoreDamaged: the database cannot be written.
        """
        with self._writing:
            if self._failed is not None:
                raise self._failed
            batch = self._db.write_batch(sync=sync)
            for key, value in changes:
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
            try:
                batch.write()
            except plyvel.Error as fault:
                self._failed = self._named(fault)
                raise self._failed from None

    def compact(self, start: bytes, stop: bytes) -> None:
        """Return the space of deleted keys in that range to the disk; takes long."""
        self._db.compact_range(start=start, stop=stop)

    def disk_bytes(self, start: bytes, stop: bytes) -> int:
        """Return about how many bytes of the tables a range takes; the log does not count."""
        size: int = self._db.approximate_size(start, stop)
        return size

    def close(self) -> None:
        """Release the database and its lock."""
        self._db.close()
