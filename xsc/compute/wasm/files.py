"""The files that a program sees: a tree in memory, with quotas.

/in holds the job's inputs and cannot be written; /out starts empty, and what is
in it at the end is part of the result; everything else, /tmp among it, is scratch:
it can be written, counts as memory and is forgotten at the end. The three are
volumes: nothing is linked or moved from one to another. There are no owners or
devices, and no name here stands for anything on a disk. A symbolic link leads to a path below
the directory that its path was asked of, or nowhere; it is no part of the result.
Times are the virtual clock's. Every refusal is a WASI error number (`Refused`).

Source: WASI preview 1, `typenames.witx`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from xsc.base.limits import FILE_NAME_BYTES_MAX, OUTPUT_PATH_BYTES_MAX

SCRATCH_FILES_MAX = 1_024
"""Files, directories and links outside of /out; their bytes count as the program's memory."""

_PATH_BYTES_MAX = 4096
_LINKS_MAX = 32


class Errno(IntEnum):
    """The error numbers that are given."""

    BADF = 8
    BUSY = 10
    EXIST = 20
    FAULT = 21
    ILSEQ = 25
    INVAL = 28
    ISDIR = 31
    LOOP = 32
    MFILE = 33
    NAMETOOLONG = 37
    NOENT = 44
    NOSPC = 51
    NOTDIR = 54
    NOTEMPTY = 55
    NOTSOCK = 57
    NOTSUP = 58
    PERM = 63
    ROFS = 69
    SPIPE = 70
    XDEV = 75
    NOTCAPABLE = 76


class Refused(Exception):
    """A call that the program gets an error number for."""

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno.name)
        self.errno = errno


class QuotaExceeded(Exception):
    """The program wrote more than it may; the run ends."""

    def __init__(self, trap: str) -> None:
        super().__init__(trap)
        self.trap = trap


def _always(_size: int) -> bool:
    return True


@dataclass(slots=True, eq=False)
class Volume:
    """Files that count together, and what they may have; nothing where it is made of nothing."""

    most: int = 0
    """Bytes that it holds where nothing was taken yet."""
    trap: str = ""
    """How a run ends that takes more."""
    files_max: int = 0
    hold: Callable[[int], bool] = _always
    """Takes bytes out of what else they count against; False where there are not so many."""
    taken: int = 0
    files: int = 0
    """Files, directories and links that the program has made."""

    @property
    def writable(self) -> bool:
        """Whether anything can be changed."""
        return self.files_max > 0

    def take(self, size: int) -> None:
        """Take bytes out of it; negative gives them back.

        Raises:
            QuotaExceeded: there are not so many.
        """
        if self.taken + size > self.most or not self.hold(size):
            raise QuotaExceeded(self.trap)
        self.taken += size


@dataclass(slots=True, eq=False)
class File:
    """A regular file."""

    inode: int
    volume: Volume
    data: bytearray
    accessed_ns: int
    modified_ns: int
    names: int = 1
    """How many names it has; the bytes count once for each, as each is given back."""
    opens: int = 0


@dataclass(slots=True, eq=False)
class Directory:
    """A directory."""

    inode: int
    volume: Volume
    accessed_ns: int
    modified_ns: int
    entries: dict[str, Node] = field(default_factory=dict)
    path_bytes: int = 0
    """What the path of an entry has before the entry's own name, slashes included."""


@dataclass(slots=True, eq=False)
class Link:
    """A symbolic link."""

    inode: int
    volume: Volume
    target: bytes
    accessed_ns: int
    modified_ns: int


Node: TypeAlias = "File | Directory | Link"


def split(path: bytes) -> tuple[list[str], bool]:
    """Return the parts of a path, `..` among them, and whether it must be a directory."""
    if len(path) > _PATH_BYTES_MAX:
        raise Refused(Errno.NAMETOOLONG)
    if not path:
        raise Refused(Errno.NOENT)
    try:
        text = path.decode()
    except UnicodeDecodeError:
        raise Refused(Errno.ILSEQ) from None
    if "\0" in text:
        raise Refused(Errno.INVAL)
    if text.startswith("/"):
        raise Refused(Errno.NOTCAPABLE)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if any(len(part.encode()) > FILE_NAME_BYTES_MAX for part in parts):
        raise Refused(Errno.NAMETOOLONG)
    return parts, text.endswith(("/", "/.", "/..")) or text in (".", "..")


class FileTree:
    """All directories and the rules for changing them."""

    def __init__(
        self, inputs: dict[str, bytes], output: Volume, scratch: Volume, now_ns: int
    ) -> None:
        self._inode = 0
        read_only = Volume()
        self.inputs = Directory(self._next_inode(), read_only, now_ns, now_ns)
        for name in sorted(inputs):
            data = bytearray(inputs[name])
            self.inputs.entries[name] = File(self._next_inode(), read_only, data, now_ns, now_ns)
        self.outputs = Directory(self._next_inode(), output, now_ns, now_ns)
        self.root = Directory(self._next_inode(), scratch, now_ns, now_ns)
        tmp = Directory(self._next_inode(), scratch, now_ns, now_ns)
        _settle(self.root, "tmp", tmp, [tmp])
        self.root.entries.update({"in": self.inputs, "out": self.outputs})

    def _next_inode(self) -> int:
        self._inode += 1
        return self._inode

    def _walk(self, base: Directory, path: bytes, *, follow: bool) -> tuple[Directory, str, bool]:
        """Return where a path's last part is, that part, and whether it must be a directory.

        Where the path ends with `.` or `..`, there is no last part. A path that leaves the
        directory it starts in, by `..` or by a link, is refused.
        """
        parts, directory = split(path)
        parts.reverse()
        above = [base]
        links, left = 0, _PATH_BYTES_MAX
        while parts:
            part = parts.pop()
            if part == "..":
                if len(above) == 1:
                    raise Refused(Errno.NOTCAPABLE)
                above.pop()
                continue
            node = above[-1].entries.get(part)
            if isinstance(node, Link) and (parts or follow):
                # What a call may cost is bounded: links lead to links.
                links, left = links + 1, left - len(node.target)
                if links > _LINKS_MAX or left < 0:
                    raise Refused(Errno.LOOP)
                more, also = split(node.target)
                directory = directory or (also and not parts)
                parts += reversed(more)
                continue
            if not parts:
                return above[-1], part, directory
            if node is None:
                raise Refused(Errno.NOENT)
            if not isinstance(node, Directory):
                raise Refused(Errno.NOTDIR)
            above.append(node)
        return above[-1], "", True

    def find(self, base: Directory, path: bytes, *, follow: bool = True) -> Node:
        """Return what a path names; the link itself where its last part is not followed."""
        parent, name, directory = self._walk(base, path, follow=follow)
        node = parent.entries.get(name) if name else parent
        if node is None:
            raise Refused(Errno.NOENT)
        if directory and not isinstance(node, Directory):
            raise Refused(Errno.NOTDIR)
        return node

    def _place(
        self, base: Directory, path: bytes, *, follow: bool = False
    ) -> tuple[Directory, str, Node | None]:
        """Return the directory of a path's last part, to be changed, that part, and what it is."""
        parent, name, directory = self._walk(base, path, follow=follow)
        if not name:
            raise Refused(Errno.INVAL)
        if not parent.volume.writable:
            raise Refused(Errno.ROFS)
        node = parent.entries.get(name)
        if directory and node is not None and not isinstance(node, Directory):
            raise Refused(Errno.NOTDIR)
        return parent, name, node

    def _found(self, base: Directory, path: bytes) -> tuple[Directory, str, Node]:
        parent, name, node = self._place(base, path)
        if node is None:
            raise Refused(Errno.NOENT)
        if node.volume is not parent.volume:
            raise Refused(Errno.BUSY)
        return parent, name, node

    def _free(self, base: Directory, path: bytes) -> tuple[Directory, str]:
        parent, name, node = self._place(base, path)
        if node is not None:
            raise Refused(Errno.EXIST)
        return parent, name

    def _check_room(self, parent: Directory, name: str, node: Node) -> None:
        if parent.volume.files >= parent.volume.files_max:
            raise Refused(Errno.NOSPC)
        _check_path(parent, name, node, [])

    def _add(self, parent: Directory, name: str, node: Node) -> None:
        self._check_room(parent, name, node)
        parent.volume.files += 1
        _settle(parent, name, node, [node] if isinstance(node, Directory) else [])

    def create(self, base: Directory, path: bytes, now_ns: int, *, follow: bool = True) -> File:
        """Return a new empty file, where nothing is; a link that leads nowhere is followed."""
        parent, name, _ = self._place(base, path, follow=follow)
        if path.endswith(b"/"):
            raise Refused(Errno.ISDIR)
        file = File(self._next_inode(), parent.volume, bytearray(), now_ns, now_ns)
        self._add(parent, name, file)
        return file

    def make_directory(self, base: Directory, path: bytes, now_ns: int) -> None:
        """Make an empty directory."""
        parent, name = self._free(base, path)
        self._add(parent, name, Directory(self._next_inode(), parent.volume, now_ns, now_ns))

    def link(self, base: Directory, path: bytes, to_base: Directory, to_path: bytes) -> None:
        """Give a file, or a symbolic link, another name."""
        node = self.find(base, path, follow=False)
        if isinstance(node, Directory):
            raise Refused(Errno.PERM)
        parent, name = self._free(to_base, to_path)
        if to_path.endswith(b"/"):
            raise Refused(Errno.NOENT)
        if node.volume is not parent.volume:
            raise Refused(Errno.XDEV)
        self._check_room(parent, name, node)
        if isinstance(node, File):
            node.volume.take(len(node.data))
        self._add(parent, name, node)
        if isinstance(node, File):
            node.names += 1

    def make_link(self, target: bytes, base: Directory, path: bytes, now_ns: int) -> None:
        """Make a symbolic link, which may lead nowhere, but not to what is not below here."""
        split(target)
        parent, name = self._free(base, path)
        if path.endswith(b"/"):
            raise Refused(Errno.NOENT)
        self._add(parent, name, Link(self._next_inode(), parent.volume, target, now_ns, now_ns))

    def resize(self, file: File, size: int) -> None:
        """Cut a file or lengthen it with zeros."""
        file.volume.take((size - len(file.data)) * max(1, file.names))
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
        if not file.names and not file.opens:
            file.volume.take(-len(file.data))
            file.data.clear()

    def _unlink(self, parent: Directory, name: str) -> None:
        node = parent.entries.pop(name)
        node.volume.files -= 1
        if isinstance(node, File):
            node.names -= 1
            if node.names:
                node.volume.take(-len(node.data))
            self.release(node)

    def remove_file(self, base: Directory, path: bytes) -> None:
        """Take a file's or a link's name away."""
        parent, name, node = self._found(base, path)
        if isinstance(node, Directory):
            raise Refused(Errno.ISDIR)
        self._unlink(parent, name)

    def remove_directory(self, base: Directory, path: bytes) -> None:
        """Remove an empty directory."""
        parent, name, node = self._found(base, path)
        if not isinstance(node, Directory):
            raise Refused(Errno.NOTDIR)
        if node.entries:
            raise Refused(Errno.NOTEMPTY)
        self._unlink(parent, name)

    def rename(
        self,
        base: Directory,
        path: bytes,
        to_base: Directory,
        to_path: bytes,
        charge: Callable[[int], None],
    ) -> None:
        """Move what has a name, over a file or an empty directory that stands there.

        Args:
            base: where the path begins.
            path: what to move.
            to_base: where the new path begins.
            to_path: where to.
            charge: called with a number of entries before so many are gone through.
        """
        parent, name, node = self._found(base, path)
        to_parent, to_name, over = self._place(to_base, to_path)
        if to_parent.volume is not node.volume:
            raise Refused(Errno.XDEV)
        below = _directories(node, charge) if isinstance(node, Directory) else []
        if to_parent in below:
            raise Refused(Errno.INVAL)
        if over is node:
            return
        _check_path(to_parent, to_name, node, below)
        if over is not None:
            if isinstance(over, Directory) != isinstance(node, Directory):
                raise Refused(Errno.ISDIR if isinstance(over, Directory) else Errno.NOTDIR)
            if over.volume is not node.volume:
                raise Refused(Errno.BUSY)
            if isinstance(over, Directory) and over.entries:
                raise Refused(Errno.NOTEMPTY)
            self._unlink(to_parent, to_name)
        _settle(to_parent, to_name, parent.entries.pop(name), below)

    def result(self) -> list[tuple[str, bytes]]:
        """Return every file in /out by its path, sorted.

        Empty directories and symbolic links leave no trace.
        """
        return sorted(_files(self.outputs, ""))


def _check_path(parent: Directory, name: str, node: Node, below: Sequence[Directory]) -> None:
    """Return if a node there, and the entries of the directories below, have paths to answer."""
    longest = path_bytes = parent.path_bytes + len(name.encode())
    if isinstance(node, Directory):
        longer = path_bytes + 1 - node.path_bytes
        for directory in below:
            for entry in directory.entries:
                longest = max(longest, directory.path_bytes + len(entry.encode()) + longer)
    if longest > OUTPUT_PATH_BYTES_MAX:
        raise Refused(Errno.NAMETOOLONG)


def _settle(parent: Directory, name: str, node: Node, below: Sequence[Directory]) -> None:
    """Give a node its name there; `below` are the directories that move with it."""
    parent.entries[name] = node
    if isinstance(node, Directory):
        longer = parent.path_bytes + len(name.encode()) + 1 - node.path_bytes
        for directory in below:
            directory.path_bytes += longer


def _directories(root: Directory, charge: Callable[[int], None]) -> list[Directory]:
    """Return a directory and all below it."""
    found = [root]
    for directory in found:
        charge(len(directory.entries))
        found += [node for node in directory.entries.values() if isinstance(node, Directory)]
    return found


def _files(root: Directory, prefix: str) -> Iterator[tuple[str, bytes]]:
    stack: list[tuple[str, Directory]] = [(prefix, root)]
    while stack:
        path, directory = stack.pop()
        for name, node in directory.entries.items():
            if isinstance(node, Directory):
                stack.append((f"{path}{name}/", node))
            elif isinstance(node, File):
                yield f"{path}{name}", bytes(node.data)
