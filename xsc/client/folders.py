"""Directories: read from the disk and stored, fetched and written to the disk.

Storing reads names and times first; a file whose size and time are those of the
version before is not opened, and one whose content is stored already, under
whatever name, is not sent. Fetching fills `DIR.part`, private to its owner, and
gives it its name at the end; what is whole in it is not fetched again. Links are
stored and made as links; nothing is ever read or written through one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from xsc.base.errors import ArgumentInvalid, ObjectUnknown, UploadChanged, unwritable
from xsc.base.limits import KIB, MIB, READ_TOGETHER_MAX, TREE_DEPTH_MAX
from xsc.base.progress import Progress, Watch, unwatched
from xsc.client import core, files, targets
from xsc.client import tree as trees
from xsc.client.calls import Calls, side_by_side

SMALL_BYTES = 64 * KIB
"""Files up to this size are fetched many in one call."""
TOGETHER_BYTES = MIB
TRIES = 3
"""How often a file is read that changes while it is stored."""
MODE_KEPT = 0o777
"""Of the mode, what fetching sets: nobody gets set-id bits from somebody else's directory."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a directory is opened that may not be a link."""
Warn = Callable[[str], None]


# Storing


def scan(top: int, left_out: Warn) -> list[trees.Node]:
    """Return the entries below an open directory, in order; `left_out` is told of the others."""
    found: list[trees.Node] = []

    def walk(handle: int, prefix: bytes, depth: int) -> None:
        if depth > TREE_DEPTH_MAX:
            raise ArgumentInvalid(f"directories are nested deeper than {TREE_DEPTH_MAX} levels")
        # Through a descriptor names come as text; as bytes they are what the disk has.
        for name in sorted(os.fsencode(text) for text in os.listdir(handle)):
            path = prefix + name
            try:
                status = os.stat(name, dir_fd=handle, follow_symlinks=False)
                node = _node_of(path, status, handle, name)
                if node is None:
                    left_out(f"{os.fsdecode(path)} is no file, directory or link")
                    continue
                found.append(node)
                if node.kind == "directory":
                    below = os.open(name, _FOLDER, dir_fd=handle)
                    try:
                        walk(below, path + b"/", depth + 1)
                    finally:
                        os.close(below)
            except OSError as fault:
                left_out(f"{os.fsdecode(path)} cannot be read: {fault.strerror}")

    walk(top, b"", 1)
    return sorted(found, key=lambda node: trees.order(node.path))


def _node_of(path: bytes, status: os.stat_result, handle: int, name: bytes) -> trees.Node | None:
    mode, mtime_ns = stat.S_IMODE(status.st_mode) & trees.MODE_MAX, status.st_mtime_ns
    if stat.S_ISDIR(status.st_mode):
        return trees.Node(path, "directory", mode, mtime_ns)
    if stat.S_ISREG(status.st_mode):
        return trees.Node(path, "file", mode, mtime_ns, status.st_size)
    if stat.S_ISLNK(status.st_mode):
        return trees.Node(path, "link", 0, mtime_ns, target=os.readlink(name, dir_fd=handle))
    return None


@contextmanager
def open_below(top: int, path: bytes) -> Iterator[BinaryIO]:
    """Open a file below an open directory, through directories alone."""
    handle = os.dup(top)
    try:
        *folders, name = path.split(b"/")
        for folder in folders:
            below = os.open(folder, _FOLDER, dir_fd=handle)
            os.close(handle)
            handle = below
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with os.fdopen(os.open(name, flags, dir_fd=handle), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is no file any more")
            yield file
    finally:
        os.close(handle)


class _Exactly(io.RawIOBase):
    """So many bytes of a file, hashed as they are read."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._left = size_bytes
        self.hasher = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Return at most so many of them."""
        block = self._file.read(min(self._left, core.BLOCK_BYTES if size < 0 else size))
        self._left -= len(block)
        self.hasher.update(block)
        return block

    def fileno(self) -> int:
        """Return the file's own."""
        return self._file.fileno()


def _hash(file: BinaryIO, size_bytes: int) -> bytes:
    source = _Exactly(file, size_bytes)
    while source.read(core.BLOCK_BYTES):
        pass
    return source.hasher.digest()


@dataclass(slots=True)
class _Storing:
    """One put of a directory."""

    calls: Calls
    top: int
    name: str
    options: str
    how: dict[str, Any]
    progress: Progress
    parts: dict[bytes, str]
    """The capabilities of contents that are stored."""
    under_way: dict[bytes, threading.Lock] = field(default_factory=dict)
    """Held while a content is stored, so that it is sent once."""
    sent: list[int] = field(default_factory=list)
    """The sizes of the contents that were sent."""

    def store(self, node: trees.Node) -> trees.Node:
        """Return a file's entry with where its content is, stored if it was not.

        Raises:
            OSError: it cannot be read, or changes again and again.
        """
        if not node.size_bytes:
            return node
        for _ in range(TRIES):
            with open_below(self.top, node.path) as file:
                part = trees.part_id(_hash(file, node.size_bytes), self.options)
                with self.under_way.setdefault(part, threading.Lock()):
                    if part in self.parts:
                        self.progress(node.size_bytes)
                    else:
                        self._upload(node, file, part)
                if part in self.parts:
                    return replace(node, part=part, capability=self.parts[part])
        raise OSError(errno.EBUSY, "it changes while it is read")

    def _upload(self, node: trees.Node, file: BinaryIO, part: bytes) -> None:
        """Store a content, unless it changes meanwhile."""
        size = node.size_bytes
        path = Path(os.fsdecode(node.path))
        resume = files.upload_id(path, file, trees.tree_id(self.name), part.hex())
        file.seek(0)
        source = _Exactly(file, size)
        try:
            done = self.calls.put(
                source,  # type: ignore[arg-type]
                part=f"{trees.tree_id(self.name)}/{part.hex()}",
                size_bytes=size,
                resume=resume,
                progress=self.progress,
                **self.how,
            )
        except UploadChanged:  # what was stored under that id is gone: the next try stores this
            return
        capability: str = done["capability"]
        if trees.part_id(source.hasher.digest(), self.options) != part:
            self.calls.remove(capability)
            return
        self.parts[part] = capability
        self.sent.append(size)


def put_tree(
    calls: Calls,
    folder: Path,
    name: str,
    *,
    started_ms: int,
    warn: Warn,
    survive: str | None = None,
    code: str | None = None,
    reread: bool = False,
    watch: Watch = unwatched,
) -> core.Document:
    """Store a directory under a name; what is stored of it already is not sent again.

    A call that was killed is gone on with by the same call. Returned is what `xsc store put -r
    --json` prints.

    Args:
        calls: the node.
        folder: the directory; itself it may be a link.
        name: without the slash at its end.
        started_ms: the time.
        warn: told of what is left out, and of what the node warns.
        survive: as for a file, as is `code`.
        code: K data and M parity shards.
        reread: read also files whose size and time are those of the version before.
        watch: of the bytes of what is read, by several threads.

    Raises:
        ArgumentInvalid: it is no directory, or too large for one.
    """
    how: dict[str, Any] = {"survive": survive, "code": code}
    options = f"{survive or ''} {code or ''}"
    full = name.rstrip("/") + trees.SUFFIX
    missing: list[str] = []

    def left_out(line: str) -> None:
        missing.append(line)
        warn(line)

    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise ArgumentInvalid(f"{folder} is no directory", hint="leave -r out") from None
    except OSError as fault:
        raise ArgumentInvalid(f"{folder} cannot be read: {fault.strerror}") from None
    try:
        status = os.fstat(top)
        found = scan(top, left_out)
        before, capability = _newest(calls, full)
        unread = {} if reread else trees.unchanged(before, options)
        rows = calls.parts(trees.tree_id(full))
        parts = {bytes.fromhex(row["part"]): row["capability"] for row in rows}
        nodes: list[trees.Node] = []
        waiting: list[trees.Node] = []
        for node in found:
            same = unread.get((node.path, node.size_bytes, node.mtime_ns))
            if node.kind != "file":
                nodes.append(node)
            elif same is not None and (same.part is None or same.part in parts):
                nodes.append(replace(node, part=same.part, capability=same.capability))
            else:
                waiting.append(node)
        with watch(sum(node.size_bytes for node in waiting)) as progress:
            storing = _Storing(calls, top, full, options, how, progress, parts)
            work = partial(_all_that_can_be, storing.store, left_out)
            nodes += chain.from_iterable(side_by_side(work, [[node] for node in waiting]))
    finally:
        os.close(top)
    nodes.sort(key=lambda node: trees.order(node.path))
    mode = stat.S_IMODE(status.st_mode) & trees.MODE_MAX
    tree = trees.Tree(started_ms, options, mode, status.st_mtime_ns, tuple(nodes))
    if before is None or not tree.same_content(before):
        raw = trees.pack(tree)
        done = calls.put(io.BytesIO(raw), name=full, size_bytes=len(raw), wait_for_name=True, **how)
        for line in done["warnings"]:
            warn(line)
        capability = done["capability"]
    return {
        "capability": capability,
        "name": full,
        "files": sum(node.kind == "file" for node in nodes),
        "sent_files": len(storing.sent),
        "sent_bytes": sum(storing.sent),
        "left_out": len(missing),
    }


def _newest(calls: Calls, full: str) -> tuple[trees.Tree | None, str]:
    try:
        capability = calls.named(full)[0]
    except ObjectUnknown:
        return None, ""
    try:
        return targets.read_tree(calls, capability), capability
    except ArgumentInvalid:
        return None, ""  # a file was stored under such a name


def _all_that_can_be(
    work: Callable[[trees.Node], trees.Node], left_out: Warn, nodes: Sequence[trees.Node]
) -> list[trees.Node]:
    """Do something for each; return what came of those with which the disk had no fault."""
    done = []
    for node in nodes:
        try:
            done.append(work(node))
        except OSError as fault:
            left_out(f"{os.fsdecode(node.path)} is left out: {fault.strerror}")
    return done


# Fetching


def get_tree(
    calls: Calls,
    capability: str,
    folder: Path,
    *,
    warn: Warn,
    path: bytes = b"",
    watch: Watch = unwatched,
) -> trees.Tree:
    """Write a stored directory to the disk, where nothing may stand yet; return it.

    A call that was killed is gone on with by the same call.

    Args:
        calls: the node.
        capability: of the list of the directory.
        folder: where it is written.
        warn: told of what cannot be written.
        path: of a directory in it that is wanted alone.
        watch: of the bytes that are fetched, by several threads.

    Raises:
        ArgumentInvalid: something stands there, or it cannot be written.
        RecordInvalid: the directory would lead out of its place.
    """
    tree = targets.read_tree(calls, capability)
    if path:
        tree = tree.at(path)
    if os.path.lexists(folder):
        raise ArgumentInvalid(f"{folder} exists", hint="name a new directory")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise ArgumentInvalid(f"there is no directory {parent}")
    partial = folder.with_name(folder.name + ".part")
    try:
        with _workshop(partial, files.object_id(capability + path.hex())):
            root, incoming = partial / "tree", partial / "incoming"
            _make_directories(root, tree)
            missing = [node for node in tree.nodes if not _is_there(root, node)]
            numbers = {node.path: number for number, node in enumerate(tree.nodes)}
            with watch(sum(node.size_bytes for node in missing)) as progress:

                def fetch(group: Sequence[trees.Node]) -> int:
                    contents = _contents(calls, group)

                    def write(node: trees.Node) -> trees.Node:
                        coming = incoming / str(numbers[node.path])
                        if coming.is_symlink():
                            coming.unlink()
                        if node.size_bytes > SMALL_BYTES and node.capability is not None:
                            calls.get(node.capability, coming, lambda _: nullcontext(progress))
                        else:
                            coming.write_bytes(contents.get(node.capability or "", b""))
                            progress(node.size_bytes)
                        _put_in_place(coming, root, node)
                        return node

                    return len(_all_that_can_be(write, warn, group))

                fetched = sum(side_by_side(fetch, list(_groups(missing))))
            if failed := len(missing) - fetched:
                raise ArgumentInvalid(f"{failed} files of the directory cannot be written")
            _finish(root, tree)
            root.rename(folder)
            # Now: what its owner may not write, it may not move either.
            os.utime(folder, ns=(tree.mtime_ns, tree.mtime_ns))
            folder.chmod(tree.mode & MODE_KEPT)
            shutil.rmtree(partial)
    except OSError as fault:
        raise unwritable(f"{folder} cannot be written", fault) from None
    return tree


@contextmanager
def _workshop(partial: Path, made_for: str) -> Iterator[None]:
    """Make or take up the directory in which another one is made; nobody else's."""
    marker = partial / "object"
    try:
        partial.mkdir(mode=0o700)
    except FileExistsError:
        status = os.lstat(partial)
        whose = marker.read_text() if stat.S_ISDIR(status.st_mode) and marker.exists() else ""
        if (
            not stat.S_ISDIR(status.st_mode)
            or status.st_uid != os.geteuid()
            or stat.S_IMODE(status.st_mode) & 0o022
            or whose not in {"", made_for}
            or (not whose and any(partial.iterdir()))
        ):
            raise ArgumentInvalid(
                f"{partial} is in the way: it is not what an interrupted call of this left",
                hint="move or delete it",
            ) from None
    with marker.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArgumentInvalid(
                f"another process writes {partial}", hint="wait for it, or name another directory"
            ) from None
        marker.write_text(made_for)
        for name in ("tree", "incoming"):
            _real_directory(partial / name)
        yield


def _real_directory(path: Path) -> None:
    """Make a directory, or take one that is there; never what a link leads to."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise ArgumentInvalid(f"{path} is in the way", hint="move or delete it") from None
        path.chmod(0o700)


def _place(root: Path, node: trees.Node) -> Path:
    return root.joinpath(*(os.fsdecode(part) for part in trees.order(node.path)))


def _make_directories(root: Path, tree: trees.Tree) -> None:
    for node in tree.nodes:
        if node.kind == "directory":
            _real_directory(_place(root, node))


def _is_there(root: Path, node: trees.Node) -> bool:
    """Say whether nothing is to be fetched: files get their names only when they are whole."""
    if node.kind != "file":
        return True
    try:
        status = os.lstat(_place(root, node))
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (
        node.size_bytes,
        node.mtime_ns,
    )


def _groups(nodes: Sequence[trees.Node]) -> Iterator[list[trees.Node]]:
    """Yield files that are fetched in one call: large ones alone, small ones together."""
    group: list[trees.Node] = []
    size = 0
    for node in nodes:
        if node.size_bytes > SMALL_BYTES:
            yield [node]
            continue
        if len(group) == READ_TOGETHER_MAX or size + node.size_bytes > TOGETHER_BYTES:
            yield group
            group, size = [], 0
        group.append(node)
        size += node.size_bytes
    if group:
        yield group


def _contents(calls: Calls, group: Sequence[trees.Node]) -> dict[str, bytes]:
    """Return what small files hold, by their capabilities; of a large one nothing."""
    wanted = [it.capability for it in group if it.capability and it.size_bytes <= SMALL_BYTES]
    return dict(zip(wanted, calls.read_together(wanted) if wanted else (), strict=True))


def _put_in_place(coming: Path, root: Path, node: trees.Node) -> None:
    """Give a file that has come its mode, time and name."""
    size = coming.stat().st_size
    if size != node.size_bytes:
        coming.unlink()
        raise OSError(errno.EIO, f"it has {size} bytes instead of {node.size_bytes}")
    coming.chmod(node.mode & MODE_KEPT)
    os.utime(coming, ns=(node.mtime_ns, node.mtime_ns))
    coming.replace(_place(root, node))


def _finish(root: Path, tree: trees.Tree) -> None:
    """Make the links, then give directories their modes and times, the deepest first."""
    for node in tree.nodes:
        if node.kind == "link":
            place = _place(root, node)
            if place.is_symlink():
                place.unlink()
            place.symlink_to(os.fsdecode(node.target))
            os.utime(place, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)
    for node in reversed(tree.nodes):
        if node.kind == "directory":
            place = _place(root, node)
            os.utime(place, ns=(node.mtime_ns, node.mtime_ns))
            place.chmod(node.mode & MODE_KEPT)


# Looking after


def clean(calls: Calls, full: str) -> list[core.Document]:
    """Delete the files that no version of a directory needs any more; return what became of each.

    Those that are newer than its newest version may belong to a put under way, and stay.
    """
    try:
        versions = calls.named(full)
    except ObjectUnknown:
        versions = []
    needed = trees.references(targets.read_tree(calls, capability) for capability in versions)
    rows = calls.objects(full, versions=True)["objects"]
    newest_ms = max((row["created_ms"] for row in rows if row["name"] == full), default=None)
    return remove_all(
        calls,
        [
            row["capability"]
            for row in calls.parts(trees.tree_id(full))
            if bytes.fromhex(row["part"]) not in needed
            and (newest_ms is None or row["created_ms"] < newest_ms)
        ],
    )


def remove_all(calls: Calls, capabilities: Sequence[str]) -> list[core.Document]:
    """Delete objects at all of their hosts; return what became of each.

    Several at once: a deletion is on the disks of six hosts before they confirm it, and those
    that come together are synced together.
    """
    return list(side_by_side(calls.remove, capabilities))
