"""The files that a program sees: a tree in memory, with a quota.

/in holds the job's inputs and cannot be written; /out starts empty, and what is
in it at the end is part of the result. There are no links, owners or devices,
and no name here stands for anything on a disk. Times are the virtual clock's.
Every refusal is a WASI error number (`Refused`).

Source: WASI preview 1, `typenames.witx`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from xsc.base.limits import FILE_NAME_BYTES_MAX, OUTPUT_FILES_MAX

_PATH_BYTES_MAX = 4096


class Errno(IntEnum):
    """The error numbers that are given."""

    BADF = 8
    EXIST = 20
    FAULT = 21
    ILSEQ = 25
    INVAL = 28
    ISDIR = 31
    MFILE = 33
    NAMETOOLONG = 37
    NOENT = 44
    NOSPC = 51
    NOTDIR = 54
    NOTEMPTY = 55
    NOTSUP = 58
    ROFS = 69
    SPIPE = 70
    NOTCAPABLE = 76


class Refused(Exception):
    """A call that the program gets an error number for."""

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno.name)
        self.errno = errno


class QuotaExceeded(Exception):
    """The program wrote more than it may give back."""


@dataclass(slots=True)
class Quota:
    """Bytes that the program may still give back: both streams and all files."""

    left: int
    limit: int
    """What was left at first."""

    def take(self, size: int) -> None:
        """Take bytes out of it; negative gives them back."""
        if size > self.left:
            raise QuotaExceeded
        self.left -= size


@dataclass(slots=True, eq=False)
class File:
    """A regular file."""

    inode: int
    data: bytearray
    writable: bool
    accessed_ns: int
    modified_ns: int
    linked: bool = True
    opens: int = 0


@dataclass(slots=True, eq=False)
class Directory:
    """A directory."""

    inode: int
    writable: bool
    accessed_ns: int
    modified_ns: int
    entries: dict[str, Node] = field(default_factory=dict)


Node: TypeAlias = "File | Directory"


def split(path: bytes) -> tuple[list[str], bool]:
    """Return the parts of a path and whether it must be a directory.

    `..` is followed as text: without links that is the same. A path that leaves
    the directory it starts in is refused.
    """
    if len(path) > _PATH_BYTES_MAX:
        raise Refused(Errno.NAMETOOLONG)
    if not path:
        raise Refused(Errno.NOENT)
    try:
        text = path.decode()
    except UnicodeDecodeError:
        raise Refused(Errno.ILSEQ) from None
    if text.startswith("/") or "\0" in text:
        raise Refused(Errno.NOTCAPABLE)
    parts: list[str] = []
    for part in text.split("/"):
        if part in ("", "."):
            continue
        if part == "..":
            if not parts:
                raise Refused(Errno.NOTCAPABLE)
            parts.pop()
            continue
        if len(part.encode()) > FILE_NAME_BYTES_MAX:
            raise Refused(Errno.NAMETOOLONG)
        parts.append(part)
    return parts, text.endswith(("/", "/.", "/..")) or text in (".", "..")


class Tree:
    """Both directories and the rules for changing them."""

    def __init__(self, inputs: dict[str, bytes], quota: Quota, now_ns: int) -> None:
        self._quota = quota
        self._inode = 0
        self._created = 0
        self.inputs = Directory(self._next_inode(), False, now_ns, now_ns)
        for name in sorted(inputs):
            data = bytearray(inputs[name])
            self.inputs.entries[name] = File(self._next_inode(), data, False, now_ns, now_ns)
        self.outputs = Directory(self._next_inode(), True, now_ns, now_ns)

    def _next_inode(self) -> int:
        self._inode += 1
        return self._inode

    def find(self, base: Directory, path: bytes) -> Node:
        """Return what a path names."""
        parts, directory = split(path)
        node: Node = base
        for part in parts:
            if not isinstance(node, Directory):
                raise Refused(Errno.NOTDIR)
            if part not in node.entries:
                raise Refused(Errno.NOENT)
            node = node.entries[part]
        if directory and not isinstance(node, Directory):
            raise Refused(Errno.NOTDIR)
        return node

    def _place(self, base: Directory, path: bytes) -> tuple[Directory, str]:
        """Return the directory of a path's last part, to be changed, and that part."""
        parts, _ = split(path)
        if not parts:
            raise Refused(Errno.INVAL)
        parent = self.find(base, "/".join(parts[:-1]).encode() or b".")
        if not isinstance(parent, Directory):
            raise Refused(Errno.NOTDIR)
        if not parent.writable:
            raise Refused(Errno.ROFS)
        return parent, parts[-1]

    def _add(self, parent: Directory, name: str, node: Node) -> None:
        if self._created >= OUTPUT_FILES_MAX:
            raise Refused(Errno.NOSPC)
        self._created += 1
        parent.entries[name] = node

    def create(self, base: Directory, path: bytes, now_ns: int) -> File:
        """Return a new empty file."""
        parent, name = self._place(base, path)
        if path.endswith(b"/"):
            raise Refused(Errno.ISDIR)
        file = File(self._next_inode(), bytearray(), True, now_ns, now_ns)
        self._add(parent, name, file)
        return file

    def make_directory(self, base: Directory, path: bytes, now_ns: int) -> None:
        """Make an empty directory."""
        parent, name = self._place(base, path)
        if name in parent.entries:
            raise Refused(Errno.EXIST)
        self._add(parent, name, Directory(self._next_inode(), True, now_ns, now_ns))

    def resize(self, file: File, size: int) -> None:
        """Cut a file or lengthen it with zeros."""
        self._quota.take(size - len(file.data))
        if size < len(file.data):
            del file.data[size:]
        else:
            file.data.extend(bytes(size - len(file.data)))

    def write(self, file: File, position: int, data: bytes, now_ns: int) -> None:
        """Write over a file from a position on; a gap is filled with zeros."""
        stop = position + len(data)
        if stop > len(file.data):
            self.resize(file, stop)
        file.data[position:stop] = data
        file.modified_ns = now_ns

    def release(self, file: File) -> None:
        """Give the bytes of a file back once no name and no descriptor leads to it."""
        if not file.linked and not file.opens:
            self._quota.take(-len(file.data))
            file.data.clear()

    def _unlink(self, parent: Directory, name: str) -> None:
        node = parent.entries.pop(name)
        self._created -= 1
        if isinstance(node, File):
            node.linked = False
            self.release(node)

    def remove_file(self, base: Directory, path: bytes) -> None:
        """Take a file's name away."""
        parent, name = self._place(base, path)
        if isinstance(self.find(base, path), Directory):
            raise Refused(Errno.ISDIR)
        self._unlink(parent, name)

    def remove_directory(self, base: Directory, path: bytes) -> None:
        """Remove an empty directory."""
        parent, name = self._place(base, path)
        node = self.find(base, path)
        if not isinstance(node, Directory):
            raise Refused(Errno.NOTDIR)
        if node.entries:
            raise Refused(Errno.NOTEMPTY)
        self._unlink(parent, name)

    def rename(self, base: Directory, path: bytes, to_base: Directory, to_path: bytes) -> None:
        """Move a file or directory, over a file or an empty directory that stands there."""
        parent, name = self._place(base, path)
        node = self.find(base, path)
        to_parent, to_name = self._place(to_base, to_path)
        if isinstance(node, Directory) and to_parent in _directories(node):
            raise Refused(Errno.INVAL)
        over = to_parent.entries.get(to_name)
        if over is node:
            return
        if over is not None:
            if isinstance(over, Directory) != isinstance(node, Directory):
                raise Refused(Errno.ISDIR if isinstance(over, Directory) else Errno.NOTDIR)
            if isinstance(over, Directory) and over.entries:
                raise Refused(Errno.NOTEMPTY)
            self._unlink(to_parent, to_name)
        to_parent.entries[to_name] = parent.entries.pop(name)

    def result(self) -> list[tuple[str, bytes]]:
        """Return every file in /out by its path, sorted; empty directories leave no trace."""
        return sorted(_files(self.outputs, ""))


def _directories(root: Directory) -> Iterator[Directory]:
    stack = [root]
    while stack:
        directory = stack.pop()
        yield directory
        stack += [node for node in directory.entries.values() if isinstance(node, Directory)]


def _files(root: Directory, prefix: str) -> Iterator[tuple[str, bytes]]:
    stack: list[tuple[str, Directory]] = [(prefix, root)]
    while stack:
        path, directory = stack.pop()
        for name, node in directory.entries.items():
            if isinstance(node, Directory):
                stack.append((f"{path}{name}/", node))
            else:
                yield f"{path}{name}", bytes(node.data)
