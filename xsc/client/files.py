"""Files of this machine: read where they fit in memory, written whole or not at all, gone on with.

A download goes on where an earlier one was interrupted. Beside FILE stand, until it is whole,
FILE.part with what has come and FILE.part.sums with a line for each block of it. All that came was
verified by the node, and each block that is kept was summed when it came; what does not fit its sum
any more, as after a power loss, is fetched again, and so is what belongs to another capability. A
kill at any moment costs the block that was under way.

    xsc part 2 <id of the object> <its size in bytes>
    <SHA-256 of a block> <its size>
    <SHA-256 of the next block> <its size> …
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from xsc.base.errors import ArgumentInvalid, ReceiptInvalid, TooLarge, unwritable
from xsc.base.limits import MIB, MODULE_BYTES_MAX, SEGMENT_BYTES

if TYPE_CHECKING:
    from xsc.base.progress import Watch
    from xsc.client.core import Download

BLOCK_BYTES = MIB
_HEAD = re.compile(rb"xsc part 2 ([0-9a-f]{64}) ([0-9]{1,19})\n")
_SUM = re.compile(rb"[0-9a-f]{64} ([0-9]{1,8})\n")


def read_file(path: Path, what: str, size_max: int) -> bytes:
    """Return a file that must fit in memory.

    Raises:
        ArgumentInvalid: it cannot be read.
        TooLarge: it has more than `size_max` bytes.
    """
    with opened(path, what) as file:
        try:
            return read_bounded(file, what, size_max)
        except OSError as fault:
            raise _unreadable(path, what, fault) from None


def opened(path: Path, what: str = "file") -> BufferedReader:
    """Return a file, open to be read.

    Raises:
        ArgumentInvalid: it cannot be.
    """
    try:
        return path.open("rb")
    except OSError as fault:
        raise _unreadable(path, what, fault) from None


def _unreadable(path: Path, what: str, fault: OSError) -> ArgumentInvalid:
    if isinstance(fault, FileNotFoundError):
        return ArgumentInvalid(f"there is no file {path}")
    if isinstance(fault, IsADirectoryError):
        return ArgumentInvalid(f"{path} is a directory, not a file")
    return ArgumentInvalid(f"the {what} {path} cannot be read: {fault.strerror}")


def blocks_of(path: Path, what: str) -> Iterator[bytes]:
    """Yield a file block by block.

    Raises:
        ArgumentInvalid: it cannot be read.
    """
    with opened(path, what) as file:
        try:
            while block := file.read(BLOCK_BYTES):
                yield block
        except OSError as fault:
            raise _unreadable(path, what, fault) from None


def read_bounded(
    source: BinaryIO, what: str, size_max: int, *, hint: str = "give a smaller one"
) -> bytes:
    """Return all of a stream that must fit in memory.

    Raises:
        TooLarge: it has more than `size_max` bytes.
    """
    data = source.read(size_max + 1)
    if len(data) > size_max:
        raise TooLarge(f"the {what} has more than {size_max} bytes", hint=hint)
    return data


def read_module(path: Path) -> bytes:
    """Return a module's bytes.

    Raises:
        ArgumentInvalid, TooLarge: as `read_file`.
    """
    return read_file(path, "module", MODULE_BYTES_MAX)


def check_target(path: Path) -> None:
    """Return if a file may be written there.

    Raises:
        ArgumentInvalid: it is a directory, or there is none for it.
    """
    try:
        if path.is_dir():
            raise ArgumentInvalid(f"{path} is a directory", hint="name a file in it")
        if not path.absolute().parent.is_dir():
            raise ArgumentInvalid(f"there is no directory {path.absolute().parent}")
    except OSError as fault:
        raise ArgumentInvalid(f"{path} cannot be written: {fault.strerror}") from None


def make_directory(path: Path) -> None:
    """Make a directory, and those above it; one that is there will do.

    Raises:
        ArgumentInvalid: it cannot be made, and why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise unwritable(f"{path} cannot be made", fault) from None


def size_of(file: BinaryIO) -> int | None:
    """Return the size in bytes of an open file; None for what has none, like a pipe."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def upload_id(path: Path, file: BinaryIO, *options: object) -> str | None:
    """Return what names the put of a file with these options, 64 hexadecimal digits.

    The same for the same path, size, time of change and options; None for what cannot be
    read a second time, like a pipe, and for what is stored in one piece.
    """
    import hashlib  # noqa: PLC0415 - most commands need none

    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size <= SEGMENT_BYTES:
        return None
    words = [os.fspath(path.resolve()), status.st_size, status.st_mtime_ns, *options]
    return hashlib.sha256(b"XSC/1/upload\0" + repr(words).encode()).hexdigest()


def write_whole(path: Path, blocks: Iterable[bytes], *, mode: int = 0o666) -> int:
    """Write a file beside its place, synced, then put it there; return its size.

    What cannot be replaced without harm, a device or a pipe, is written to
    directly. Where a symbolic link stands its target is replaced.

    Raises:
        ArgumentInvalid: the file cannot be written, and why.
        Exception: whatever `blocks` raises; nothing is left behind then.
    """
    check_target(path)
    try:
        path = path.resolve()
        if _is_special(path):
            with path.open("wb") as file:
                return _fill(file, blocks)
        partial = path.with_name(path.name + ".part")
        # What a killed call left has that call's mode, and may be open elsewhere.
        partial.unlink(missing_ok=True)
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                size = _fill(file, blocks)
                os.fsync(handle)
            _put_in_place(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as fault:
        raise unwritable(f"{path} cannot be written", fault) from None
    return size


def _is_special(path: Path) -> bool:
    """Say whether a device or a pipe stands there."""
    return path.exists() and not path.is_file()


def _fill(file: BinaryIO, blocks: Iterable[bytes]) -> int:
    size = 0
    for block in blocks:
        size += file.write(block)
    file.flush()
    return size


def _put_in_place(partial: Path, path: Path) -> None:
    """Give a file that is whole and synced its name, for good."""
    partial.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def place_in(directory: Path, name: str) -> Path:
    """Return where a file that a program wrote goes; a provider sends these names.

    Raises:
        ReceiptInvalid: the name would lead out of the directory.
    """
    parts = name.split("/")
    if not name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ReceiptInvalid(f"the provider returned a file with the forbidden name {name!r}")
    return directory.joinpath(*parts)


# Downloads that go on


def object_id(capability: str) -> str:
    """Return what names an object without giving it away."""
    import hashlib  # noqa: PLC0415 - most commands need none

    return hashlib.sha256(b"XSC/1/part\0" + capability.encode()).hexdigest()


def _sum_of(block: bytes) -> bytes:
    import hashlib  # noqa: PLC0415 - most commands need none

    return b"%b %d\n" % (hashlib.sha256(block).hexdigest().encode(), len(block))


class Partial:
    """FILE.part and its sums, open and locked; to be used in a `with`.

    Raises:
        ArgumentInvalid: another process writes the same file.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, object_id: str) -> None:
        self._path = path
        self._id = object_id.encode()
        self._part = path.with_name(path.name + ".part")
        self._sums = path.with_name(path.name + ".part.sums")
        self._open = ExitStack()
        self.kept_bytes = 0
        """How much is there, every byte of it as it came."""
        self.size_bytes: int | None = None
        """How many bytes the object has, where an earlier download has learned it."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._file = stack.enter_context(self._part.open("a+b"))
            self._lock()
            self._log = stack.enter_context(self._sums.open("a+b"))
            self._load()
            self._open = stack.pop_all()
        return self

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it until now may have put the file in its place.
            if os.path.samestat(os.fstat(self._file.fileno()), self._part.stat()):
                return
        except (BlockingIOError, FileNotFoundError):
            pass
        raise ArgumentInvalid(
            f"another process writes {self._part}", hint="wait for it, or name another file"
        )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._open:
            if kind is not None and not self.kept_bytes:
                self._part.unlink(missing_ok=True)
                self._sums.unlink(missing_ok=True)

    def _load(self) -> None:
        """Keep the blocks that fit their sums, up to the first that does not."""
        self._log.seek(0)
        head = _HEAD.fullmatch(self._log.readline())
        if head is None or head[1] != self._id:
            self.restart()
            return
        self.size_bytes, end = int(head[2]), head.end()
        self._file.seek(0)
        for line in self._log:
            said = _SUM.fullmatch(line)
            block = b"" if said is None else self._file.read(int(said[1]))
            if self.kept_bytes + len(block) > self.size_bytes or _sum_of(block) != line:
                break
            self.kept_bytes += len(block)
            end += len(line)
        self._cut(end)

    def _cut(self, end: int) -> None:
        """Forget what is not kept, and of the sums what is behind a place."""
        self._log.truncate(end)
        self._file.truncate(self.kept_bytes)

    def restart(self, size_bytes: int | None = None) -> None:
        """Forget what is there; take down the size of what comes, where it is known."""
        self.kept_bytes = 0
        self.size_bytes = size_bytes
        self._cut(0)
        if size_bytes is not None:
            _fill(self._log, [b"xsc part 2 %b %d\n" % (self._id, size_bytes)])

    def fill(self, blocks: Iterable[bytes]) -> None:
        """Write what comes; each block counts from then on."""
        for block in blocks:
            _fill(self._file, [block])
            _fill(self._log, [_sum_of(block)])
            self.kept_bytes += len(block)

    def finish(self) -> int:
        """Put the file in its place, synced; return its size in bytes."""
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        _put_in_place(self._part, self._path)
        self._sums.unlink(missing_ok=True)
        return size


def fetch(
    opened: Callable[[str | None], Download], capability: str, path: Path, watch: Watch
) -> int:
    """Write an object to a file, from where an earlier call was interrupted; return its size.

    FILE appears when all of it is there. What cannot be replaced without harm, a
    device or a pipe, is written to directly, from the start.

    Raises:
        ArgumentInvalid, SpaceExhausted: the file cannot be written, and why.
        XscError: whatever the download meets; what has come by then is kept.
    """
    check_target(path)
    try:
        path = path.resolve()
        if _is_special(path):
            with opened(None) as download, watch(download.size_bytes) as progress:
                return write_whole(path, download.blocks(progress))
        with Partial(path, object_id(capability)) as partial:
            return _continue(opened, partial, watch)
    except OSError as fault:
        raise unwritable(f"{path} cannot be written", fault) from None


def _continue(opened: Callable[[str | None], Download], partial: Partial, watch: Watch) -> int:
    size, kept = partial.size_bytes, partial.kept_bytes
    if size is not None and kept == size and size:
        return partial.finish()
    download = opened(f"{kept}-" if kept else None)
    with download:
        if kept and download.part != (kept, size):
            raise ArgumentInvalid(
                "what is there already is of another object than the node gives",
                hint="delete the .part file and try again",
            )
        if not kept:
            partial.restart(download.size_bytes)
        with watch(partial.size_bytes) as progress:
            progress(kept)
            partial.fill(download.blocks(progress))
    return partial.finish()
