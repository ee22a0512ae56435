"""Files of this machine: read where they fit in memory, and written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from xsc.base.errors import ArgumentInvalid, ReceiptInvalid, TooLarge, unwritable
from xsc.base.limits import MODULE_BYTES_MAX, SEGMENT_BYTES


def read_file(path: Path, what: str, size_max: int) -> bytes:
    """Return a file that must fit in memory.

    Raises:
        ArgumentInvalid: it cannot be read.
        TooLarge: it has more than `size_max` bytes.
    """
    try:
        with path.open("rb") as file:
            return read_bounded(file, what, size_max)
    except OSError as fault:
        raise unreadable(path, what, fault) from None


def unreadable(path: Path, what: str, fault: OSError) -> ArgumentInvalid:
    """Return the error for a file that cannot be read."""
    if isinstance(fault, FileNotFoundError):
        return ArgumentInvalid(f"there is no file {path}")
    if isinstance(fault, IsADirectoryError):
        return ArgumentInvalid(f"{path} is a directory, not a file")
    return ArgumentInvalid(f"the {what} {path} cannot be read: {fault.strerror}")


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
        special = path.exists() and not stat.S_ISREG(path.stat().st_mode)
        partial = path if special else path.with_name(path.name + ".part")
        flags = os.O_WRONLY
        if not special:
            # What a killed call left has that call's mode, and may be open elsewhere.
            partial.unlink(missing_ok=True)
            flags |= os.O_CREAT | os.O_EXCL
        handle = os.open(partial, flags, mode)
        try:
            return _fill(handle, partial, path, blocks)
        except BaseException:
            if not special:
                partial.unlink(missing_ok=True)
            raise
    except OSError as fault:
        raise unwritable(f"{path} cannot be written", fault) from None


def _fill(handle: int, partial: Path, path: Path, blocks: Iterable[bytes]) -> int:
    size = 0
    with os.fdopen(handle, "wb") as file:
        for block in blocks:
            file.write(block)
            size += len(block)
        file.flush()
        if partial != path:
            os.fsync(file.fileno())
    if partial != path:
        put_in_place(partial, path)
    return size


def put_in_place(partial: Path, path: Path) -> None:
    """Give a file that is whole and synced its name, for good."""
    partial.replace(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
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
