"""Compiled code between two starts: sealed files that only this node can have written.

A file is named by the hash of module and engine configuration, and begins with
a seal over all that follows, by a key of the node. It is read once, into memory;
the bytes that were checked are the bytes that are used. A file whose seal does
not fit is removed, and its module is compiled again. The longest unused go first.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

from xsc.base.bounded import Bounded
from xsc.base.limits import GIB
from xsc.compute.wasm import code_format as codes
from xsc.compute.wasm.code_format import MachineCode

CODE_CACHE_BYTES_MAX = 1 * GIB
CODE_CACHE_FILES_MAX = 4096

_SUFFIX = ".code"


class CodeCache:
    """Keeps compiled code in a directory of its own. May be used from several threads.

    Args:
        folder: made with mode 0700 where it is absent; where it is not ours alone
            nothing is kept.
        key: what files are sealed with.
        bytes_max: what the files may have together.
    """

    def __init__(self, folder: Path, key: bytes, bytes_max: int = CODE_CACHE_BYTES_MAX) -> None:
        self._folder = folder
        self._key = key
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._sizes: Bounded[str, int] | None = None
        self._usable = True

    def get(self, module_hash: bytes, config: bytes) -> MachineCode | None:
        """Return the code of a module for that engine, or None."""
        with self._lock:
            sizes = self._opened()
            name = _name(module_hash, config)
            if sizes.get(name) is None:
                return None
        try:
            raw = self._read(name)
        except OSError:
            raw = b""
        found = codes.from_file(raw, self._key, module_hash, config)
        if found is None:
            with self._lock:
                self._remove(name)
        return found

    def put(self, module_hash: bytes, config: bytes, code: MachineCode) -> None:
        """Keep code, if there is room for it at all; a disk that is full keeps nothing."""
        raw = codes.to_file(code, self._key, module_hash, config)
        with self._lock:
            sizes = self._opened()
            if not self._usable or len(raw) > self._bytes_max:
                return
            name = _name(module_hash, config)
            self._remove(name)
            for oldest in sizes.make_room(len(raw)):
                self._remove(oldest)
            try:
                self._write(name, raw)
            except OSError:
                self._remove(name + ".part")
            else:
                sizes.put(name, len(raw))

    def describe(self) -> dict[str, int]:
        """Return how many files there are, and their bytes."""
        with self._lock:
            sizes = self._opened()
            return {"files": len(sizes), "bytes": sizes.size}

    def _opened(self) -> Bounded[str, int]:
        if self._sizes is None:
            self._sizes = Bounded(
                CODE_CACHE_FILES_MAX, size_max=self._bytes_max, size_of=lambda size: size
            )
            try:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                there = self._folder.lstat()
                if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid():
                    raise NotADirectoryError
                self._folder.chmod(0o700)
                self._list()
            except OSError:
                self._usable = False
        return self._sizes

    def _list(self) -> None:
        assert self._sizes is not None
        found = []
        for entry in os.scandir(self._folder):
            if entry.name.endswith(".part"):
                Path(entry.path).unlink()
            elif entry.name.endswith(_SUFFIX):
                about = entry.stat(follow_symlinks=False)
                found.append((about.st_mtime_ns, entry.name, about.st_size))
        for _, name, size in sorted(found):
            for oldest in self._sizes.put(name, size):
                self._remove(oldest)

    def _read(self, name: str) -> bytes:
        handle = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode) or about.st_size > self._bytes_max:
                raise OSError("no file of ours")
            with suppress(OSError):
                os.utime(handle)  # what was used last goes last, also after a restart
            return file.read(about.st_size)

    def _write(self, name: str, raw: bytes) -> None:
        partial = self._folder / (name + ".part")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        # No sync: a file that was torn by a crash does not fit its seal.
        partial.rename(self._folder / name)

    def _remove(self, name: str) -> None:
        assert self._sizes is not None
        self._sizes.pop(name)
        with suppress(OSError):
            (self._folder / name).unlink()


def _name(module_hash: bytes, config: bytes) -> str:
    return hashlib.sha256(module_hash + config).hexdigest() + _SUFFIX
