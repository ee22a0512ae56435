"""One hash over the live paths of an owner and their sequences, and proofs for a part of it.

The hash of a path's node covers its own sequence and the hashes of the parts below, so that a
change hashes only the nodes above it again. The head of an owner has the hash of the root. A
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

Proof: TypeAlias = "tuple[tuple[int, tuple[tuple[str, bytes], ...]], ...]"
"""For each node from the root down to the prefix's parent: its sequence, and the parts below it
with their hashes, without the one on the way."""


def levels_of(proof: Proof) -> Value:
    """Return a proof as plain values."""
    return [[sequence, [[name, digest] for name, digest in beside]] for sequence, beside in proof]


def read_levels(levels: Value) -> Proof:
    """Return the proof of plain values.

    Raises:
        RecordInvalid: they are none.
    """
    if not isinstance(levels, list) or len(levels) > PATH_PARTS_MAX:
        raise RecordInvalid("not the proof of a prefix")
    return tuple(map(_read_level, levels))


def _read_level(level: Value) -> tuple[int, tuple[tuple[str, bytes], ...]]:
    beside = []
    match level:
        case [int(sequence), list(rows)] if sequence >= 0 and len(rows) <= RECORDS_MAX:
            for row in rows:
                match row:
                    case [str(name), bytes(digest)] if len(digest) == 32:
                        beside.append((name, digest))
            if len(beside) == len(rows):
                return sequence, tuple(beside)
    raise RecordInvalid("not the proof of a prefix")


def _digest(sequence: int, parts: list[tuple[str, bytes]]) -> bytes | None:
    """Return the hash of a node; None where nothing is there. A sequence of 0 means no record."""
    if not sequence and not parts:
        return None
    rows: list[Value] = [[name, digest] for name, digest in sorted(parts)]
    return tagged_sha256("space_tree", encode([sequence, rows]))


class PathTree:
    """The live paths of one owner, by their parts."""

    __slots__ = ("_digest", "_parts", "sequence")

    def __init__(self) -> None:
        self.sequence = 0
        self._parts: dict[str, PathTree] = {}
        self._digest: bytes | None = None

    def set(self, path: str, sequence: int) -> None:
        """Set the sequence of a path; 0 takes the path out."""
        self._set(path.split("/"), 0, sequence)

    def _set(self, parts: list[str], at: int, sequence: int) -> None:
        self._digest = None
        if at == len(parts):
            self.sequence = sequence
            return
        below = self._parts.get(parts[at])
        if below is None:
            if not sequence:
                return
            below = self._parts[parts[at]] = PathTree()
        below._set(parts, at + 1, sequence)
        if not below.sequence and not below._parts:
            del self._parts[parts[at]]

    def at(self, prefix: str) -> PathTree:
        """Return the node of a prefix, or an empty one."""
        node = self
        for part in prefix.split("/") if prefix else ():
            found = node._parts.get(part)
            if found is None:
                return PathTree()
            node = found
        return node

    def digest(self) -> bytes | None:
        """Return the hash of this node and all below; None where nothing is there."""
        if self._digest is None:
            self._digest = _digest(self.sequence, self._below())
        return self._digest

    def _below(self) -> list[tuple[str, bytes]]:
        """Return the parts right below and their hashes, in order."""
        return [
            (name, digest) for name in sorted(self._parts) if (digest := self._parts[name].digest())
        ]

    def rows(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield the paths of this node and below with their sequences, below `prefix`."""
        if self.sequence:
            yield prefix, self.sequence
        for name in sorted(self._parts):
            yield from self._parts[name].rows(f"{prefix}/{name}" if prefix else name)

    def proof(self, prefix: str) -> Proof:
        """Return what shows that the node of a prefix belongs to the hash of the whole tree."""
        levels = []
        node = self
        for part in prefix.split("/") if prefix else ():
            beside = tuple(row for row in node._below() if row[0] != part)
            levels.append((node.sequence, beside))
            node = node.at(part)
        return tuple(levels)


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
    for part, (sequence, beside) in zip(reversed(parts), reversed(proof), strict=True):
        if any(name == part for name, _ in beside):
            return False
        digest = _digest(sequence, [*beside, *([(part, digest)] if digest else [])])
    return digest == root
