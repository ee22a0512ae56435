"""The form of a stored directory: names, modes, times, links, and where the files are.

    "XSC tree 1\\n" ‖ canonical [started_ms, options, mode, mtime_ns, [entry, …]]
    entry   [path, 0, mode, mtime_ns]                          a directory
            [path, 1, mode, mtime_ns, size, part, capability]  a file
            [path, 2, mtime_ns, target]                        a symbolic link

Paths are bytes, relative, in order of their components, each below a directory
that stands before it. An empty file has neither part nor capability. A tree may
come from anybody: what breaks a rule is refused whole. docs/design/tree.md;
vectors: tests/vectors/tree.json.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from xsc.base.errors import ArgumentInvalid, RecordInvalid, TooLarge
from xsc.base.limits import TREE_BYTES_MAX, TREE_DEPTH_MAX

if TYPE_CHECKING:
    from xsc.base.encoding import Value

TREE_ENTRIES_MAX = 2**17
"""Files, directories and links of one stored directory."""

MAGIC: Final = b"XSC tree 1\n"
SUFFIX: Final = "/"
"""Ends the names of directories."""
PATH_BYTES_MAX: Final = 4096
NAME_BYTES_MAX: Final = 255
MODE_MAX: Final = 0o7777
RACY_MS: Final = 2000
"""A file that changed so shortly before it was stored may have changed again since."""
_PART_BYTES: Final = 32
_TIME_MAX: Final = 2**63 - 1
READ: Final = re.compile(r"xsc:r:[a-z2-7]{100,200}")

Kind: TypeAlias = Literal["directory", "file", "link"]


@dataclass(frozen=True, slots=True)
class Node:
    """One entry of a tree."""

    path: bytes
    kind: Kind
    mode: int
    mtime_ns: int
    size_bytes: int = 0
    part: bytes | None = None
    """Names the content of a file to who stored it."""
    capability: str | None = None
    target: bytes = b""
    """Of a link; never followed."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory as it was."""

    started_ms: int
    """When it began to be read."""
    options: str
    """How its files were stored: what differs there is not used again."""
    mode: int
    mtime_ns: int
    nodes: tuple[Node, ...]

    def same_content(self, other: Tree) -> bool:
        """Say whether there is no difference but the time of reading."""
        return self == replace(other, started_ms=self.started_ms)

    def at(self, path: bytes) -> Tree:
        """Return what lies at a path of it: a directory with what it holds, or one file alone."""
        top = next(node for node in self.nodes if node.path == path)
        if top.kind != "directory":
            return replace(self, nodes=(top,))
        below = path + SUFFIX.encode()
        nodes = tuple(
            replace(node, path=node.path.removeprefix(below))
            for node in self.nodes
            if node.path.startswith(below)
        )
        return replace(self, mode=top.mode, mtime_ns=top.mtime_ns, nodes=nodes)


def tree_id(name: str) -> str:
    """Return what keeps the files of one stored directory together."""
    return hashlib.sha256(b"XSC/1/tree\0" + name.encode()).hexdigest()


def part_id(content: bytes, options: str) -> bytes:
    """Return what names a content, given by its SHA-256, as stored with some options."""
    return hashlib.sha256(b"XSC/1/tree-part\0" + content + options.encode()).digest()


def unchanged(known: Tree | None, options: str) -> dict[tuple[bytes, int, int], Node]:
    """Return the files that need not be read again, by path, size and time of change."""
    if known is None or known.options != options:
        return {}
    before_ns = (known.started_ms - RACY_MS) * 1_000_000
    return {
        (node.path, node.size_bytes, node.mtime_ns): node
        for node in known.nodes
        if node.kind == "file" and node.mtime_ns < before_ns
    }


def order(path: bytes) -> list[bytes]:
    """Return what paths are sorted by: a directory comes before all that is below it."""
    return path.split(b"/")


def pack(tree: Tree) -> bytes:
    """Return the bytes of a tree.

    Raises:
        TooLarge: more entries or bytes than any tree may have.
    """
    from xsc.base.encoding import encode  # noqa: PLC0415 - most commands need none

    check(tree.nodes)
    entries: list[Value] = [_row(node) for node in tree.nodes]
    raw = MAGIC + encode([tree.started_ms, tree.options, tree.mode, tree.mtime_ns, entries])
    if len(raw) > TREE_BYTES_MAX:
        raise TooLarge(
            f"the list of a directory has at most {TREE_BYTES_MAX} bytes",
            hint="store parts of it by themselves",
        )
    return raw


def _row(node: Node) -> Value:
    if node.kind == "directory":
        return [node.path, 0, node.mode, node.mtime_ns]
    if node.kind == "link":
        return [node.path, 2, node.mtime_ns, node.target]
    return [node.path, 1, node.mode, node.mtime_ns, node.size_bytes, node.part, node.capability]


def unpack(raw: bytes) -> Tree:
    """Return a tree, whoever made it.

    Raises:
        ArgumentInvalid: that is no directory. TooLarge: over a bound.
        RecordInvalid: of a newer version, or it breaks a rule.
    """
    from xsc.base.encoding import decode  # noqa: PLC0415

    if len(raw) > TREE_BYTES_MAX:
        raise TooLarge(f"the list of a directory has at most {TREE_BYTES_MAX} bytes")
    if not raw.startswith(MAGIC):
        if raw.startswith(MAGIC[:9]):
            raise RecordInvalid(
                "the directory is of a newer form than this xsc knows", hint="use a newer xsc"
            )
        raise ArgumentInvalid("that is a file, not a directory", hint="leave -r out")
    match decode(raw[len(MAGIC) :], size_max=TREE_BYTES_MAX):
        case [int(started_ms), str(options), int(mode), int(mtime_ns), list(rows)] if (
            started_ms >= 0
        ):
            _check_stat(mode, mtime_ns)
            nodes = tuple(_node(row) for row in rows)
            check(nodes)
            return Tree(started_ms, options, mode, mtime_ns, nodes)
    raise RecordInvalid("the directory is of no known form")


def _node(row: Value) -> Node:
    if isinstance(row, list) and any(isinstance(item, bool) for item in row):
        raise RecordInvalid("an entry of the directory is of no known form")
    match row:
        case [bytes(path), int(kind), int(mode), int(mtime_ns)] if kind == 0:
            return Node(path, "directory", mode, mtime_ns)
        case [bytes(path), int(kind), int(mode), int(mtime_ns), int(size), None, None] if (
            kind == 1 and size == 0
        ):
            return Node(path, "file", mode, mtime_ns)
        case [
            bytes(path),
            int(kind),
            int(mode),
            int(mtime_ns),
            int(size),
            bytes(part),
            str(capability),
        ] if kind == 1 and size > 0 and len(part) == _PART_BYTES and READ.fullmatch(capability):
            return Node(path, "file", mode, mtime_ns, size, part, capability)
        case [bytes(path), int(kind), int(mtime_ns), bytes(target)] if kind == 2:
            if 0 < len(target) <= PATH_BYTES_MAX and b"\0" not in target:
                return Node(path, "link", 0, mtime_ns, target=target)
    raise RecordInvalid("an entry of the directory is of no known form")


def _check_stat(mode: int, mtime_ns: int) -> None:
    if not 0 <= mode <= MODE_MAX or abs(mtime_ns) > _TIME_MAX:
        raise RecordInvalid("a mode or a time in the directory is out of its range")


def check(nodes: Sequence[Node]) -> None:
    """Return if entries can be one directory, and lead nowhere else.

    Raises:
        TooLarge: too many of them.
        RecordInvalid: a path leads out of the directory, through a link or a file, or is no path.
    """
    if len(nodes) > TREE_ENTRIES_MAX:
        raise TooLarge(
            f"a directory has at most {TREE_ENTRIES_MAX} entries",
            hint="store parts of it by themselves",
        )
    directories = {b""}
    before: list[bytes] | None = None
    for node in nodes:
        parts = _parts(node.path)
        if before is not None and parts <= before:
            raise RecordInvalid("the paths of the directory are not in order, or one comes twice")
        if b"/".join(parts[:-1]) not in directories:
            raise RecordInvalid("a path of the directory leads through what is no directory")
        _check_stat(node.mode, node.mtime_ns)
        if node.kind == "directory":
            directories.add(node.path)
        before = parts


def _parts(path: bytes) -> list[bytes]:
    parts = order(path)
    if (
        not 0 < len(path) <= PATH_BYTES_MAX
        or len(parts) > TREE_DEPTH_MAX
        or b"\0" in path
        or any(part in (b"", b".", b"..") or len(part) > NAME_BYTES_MAX for part in parts)
    ):
        raise RecordInvalid("a path of the directory is empty, too long, or leads out of it")
    return parts


def references(trees: Iterable[Tree]) -> set[bytes]:
    """Return the parts that any of the trees needs."""
    return {node.part for tree in trees for node in tree.nodes if node.part is not None}
