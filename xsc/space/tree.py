"""One hash over the live records of an owner by their paths, and proofs for a part of it.

The hash of a path's node covers the id of its record and the hashes of the parts below, so that
a change hashes only the nodes above it again. The head of an owner has the hash of the root. A
node that holds only what is under a prefix checks it against the head with the hashes beside
the way down to the prefix. A sum of hashes would be shorter, but a replica could choose old
records that give the same sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from xsc.base.encoding import Value, encode, tagged_sha256
from xsc.base.errors import RecordInvalid
from xsc.space.limits import PATH_PARTS_MAX, RECORDS_MAX
from xsc.space.paths import is_part, is_under

Level: TypeAlias = "tuple[bytes | None, tuple[tuple[str, bytes], ...]]"
Proof: TypeAlias = "tuple[Level, ...]"
"""For each node from the root down to the prefix's parent: the id of its record, and the parts
below it with their hashes, without the one on the way."""


def levels_of(proof: Proof) -> Value:
    """Return a proof as plain values."""
    return [[record, [[name, digest] for name, digest in beside]] for record, beside in proof]


def read_levels(levels: Value) -> Proof:
    """Return the proof of plain values.

    At each part beside the way there is a live record, so that there are at most RECORDS_MAX.

    Raises:
        RecordInvalid: they are none.
    """
    if not isinstance(levels, list) or len(levels) > PATH_PARTS_MAX:
        raise RecordInvalid("not the proof of a prefix")
    proof = tuple(map(_read_level, levels))
    if records_beside(proof) > RECORDS_MAX:
        raise RecordInvalid(f"a proof over more than {RECORDS_MAX} records")
    return proof


def _read_level(level: Value) -> Level:
    beside = []
    match level:
        case [(bytes() | None) as record, list(rows)] if record is None or len(record) == 32:
            for row in rows:
                match row:
                    case [str(name), bytes(digest)] if len(digest) == 32 and is_part(name):
                        beside.append((name, digest))
            if len(beside) == len(rows):
                return record, tuple(beside)
    raise RecordInvalid("not the proof of a prefix")


def records_beside(proof: Proof) -> int:
    """Return how many live records there are at least beside the way of a proof."""
    return sum(len(beside) + (record is not None) for record, beside in proof)


def _digest(record: bytes | None, parts: list[tuple[str, bytes]]) -> bytes | None:
    """Return the hash of a node; None where nothing is there."""
    if record is None and not parts:
        return None
    rows: list[Value] = [[name, digest] for name, digest in sorted(parts)]
    return tagged_sha256("space_tree", encode([record, rows]))


class PathTree:
    """The live records of one owner, by the parts of their paths.

    Nodes with one part below and no record are no objects: the object below has the way to it.
    So there are fewer than two objects for each record, however long its path is.
    """

    __slots__ = ("hashed", "hashed_above", "record", "way", "ways")

    def __init__(self, way: str = "", record: bytes | None = None) -> None:
        self.way = way
        """Parts from the object above to this one."""
        self.record = record
        """Id of the live record here."""
        self.ways: dict[str, PathTree] = {}
        """By the first part of their ways."""
        self.hashed: bytes | None = None
        self.hashed_above: bytes | None = None
        """Of the node at the first part of the way."""

    def set(self, path: str, record: bytes | None) -> None:
        """Set the id of the live record of a path; None takes the path out."""
        self.hashed = self.hashed_above = None
        if not path:
            self.record = record
            return
        part = path.partition("/")[0]
        found = self.ways.get(part)
        if found is None:
            if record is not None:
                self.ways[part] = PathTree(path, record)
            return
        if is_under(path, found.way):
            found.set(path[len(found.way) + 1 :], record)
            self._shorten(part, found)
        elif record is not None:
            fork = self.ways[part] = PathTree(_common(path, found.way))
            found.way = found.way[len(fork.way) + 1 :]
            found.hashed_above = None
            fork.ways[found.way.partition("/")[0]] = found
            fork.set(path[len(fork.way) + 1 :], record)

    def _shorten(self, part: str, found: PathTree) -> None:
        """Take out an object that has no record and fewer than two parts below."""
        if found.record is not None or len(found.ways) > 1:
            return
        if not found.ways:
            del self.ways[part]
            return
        (only,) = found.ways.values()
        only.way = f"{found.way}/{only.way}"
        only.hashed_above = None
        self.ways[part] = only

    def at(self, prefix: str) -> PathTree:
        """Return the node of a prefix, or an empty one, as it is now."""
        node = self
        while prefix:
            found = node.ways.get(prefix.partition("/")[0])
            if found is not None and is_under(prefix, found.way):
                node, prefix = found, prefix[len(found.way) + 1 :]
            elif found is not None and is_under(found.way, prefix):
                return _above(found, found.way[len(prefix) + 1 :])
            else:
                return PathTree()
        return node if not node.way else _top(node)

    def digest(self) -> bytes | None:
        """Return the hash of this node and all below; None where nothing is there."""
        if self.hashed is None:
            self.hashed = _digest(self.record, self.below())
        return self.hashed

    def digest_above(self) -> bytes | None:
        """Return the hash of the node at the first part of the way."""
        if self.hashed_above is None:
            digest = self.digest()
            for part in reversed(self.way.split("/")[1:]):
                digest = _digest(None, [(part, digest)] if digest else [])
            self.hashed_above = digest
        return self.hashed_above

    def below(self) -> list[tuple[str, bytes]]:
        """Return the parts right below and their hashes, in order."""
        return [
            (part, digest)
            for part in sorted(self.ways)
            if (digest := self.ways[part].digest_above())
        ]

    def rows(self, prefix: str = "") -> Iterator[tuple[str, bytes]]:
        """Yield the paths of this node and below with the ids of their records, below `prefix`."""
        if self.record is not None:
            yield prefix, self.record
        for part in sorted(self.ways):
            below = self.ways[part]
            yield from below.rows(f"{prefix}/{below.way}" if prefix else below.way)

    def count(self) -> int:
        """Return how many objects this node and all below take."""
        return 1 + sum(below.count() for below in self.ways.values())

    def proof(self, prefix: str) -> Proof:
        """Return what shows that the node of a prefix belongs to the hash of the whole tree."""
        levels = []
        node = self
        for part in prefix.split("/") if prefix else ():
            beside = tuple(row for row in node.below() if row[0] != part)
            levels.append((node.record, beside))
            node = node.at(part)
        return tuple(levels)


def _common(one: str, other: str) -> str:
    """Return the parts with which two paths begin."""
    parts = []
    for left, right in zip(one.split("/"), other.split("/"), strict=False):
        if left != right:
            break
        parts.append(left)
    return "/".join(parts)


def _top(node: PathTree) -> PathTree:
    """Return a node without its way."""
    top = PathTree("", node.record)
    top.ways, top.hashed = node.ways, node.digest()
    return top


def _above(node: PathTree, way: str) -> PathTree:
    """Return the node from which that way leads to a node."""
    lower = _top(node)
    lower.way = way
    above = PathTree()
    above.ways[way.partition("/")[0]] = lower
    return above


def proves(root: bytes | None, prefix: str, node: PathTree, proof: Proof) -> bool:
    """Say whether a node with all below is what a head has under a prefix.

    Args:
        root: of the head.
        prefix: of the node; the empty one stands for everything, and needs no proof.
        node: of the tree that is checked.
        proof: as `PathTree.proof` gave it at a replica.
    """
    parts = prefix.split("/") if prefix else []
    if len(proof) != len(parts):
        return False
    digest = node.digest()
    for part, (record, beside) in zip(reversed(parts), reversed(proof), strict=True):
        if any(name == part for name, _ in beside):
            return False
        digest = _digest(record, [*beside, *([(part, digest)] if digest else [])])
    return digest == root
