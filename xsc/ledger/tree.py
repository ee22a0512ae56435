"""The Merkle tree of RFC 6962 over the halves of one chain: roots, and proofs against them.

A leaf is the 32-byte id of a half, and its index the number of the half, counted from the first
of the incarnation. A proof is a list of hashes, as in RFC 9162, 2.1.3 and 2.1.4, so that any
library for these checks it. Vectors: tests/vectors/checkpoint.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

HASH_BYTES = 32
PATH_MAX = 63
"""Hashes of a proof of inclusion: a tree has less than 2^63 leaves."""

Top: TypeAlias = Callable[[int, int], bytes]
"""Returns the root of the leaves from a number up to another: `top(0, size)` is the tree's."""


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\0" + leaf).digest()


def _joined(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _split(count: int) -> int:
    """Return the size of the left subtree: the largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Return the root over subtrees: of one size, a power of two, but that the last can be less."""
    if not hashes:
        return hashlib.sha256().digest()
    level = [*hashes]
    while len(level) > 1:
        # What is left over goes up by itself; it is never paired with itself.
        over = level[len(level) & ~1 :]
        level = [_joined(*level[at : at + 2]) for at in range(0, len(level) - 1, 2)] + over
    return level[0]


def prove_inclusion(index: int, size: int, top: Top) -> list[bytes]:
    """Return what proves that the leaf of an index is in the tree of a size."""
    assert 0 <= index < size
    return _beside(index, size, top, lambda low, high: high - low == 1)[0]


def prove_consistency(old: int, new: int, top: Top) -> list[bytes]:
    """Return what proves that the tree of one size, above 0, is the beginning of a later one."""
    assert 0 < old <= new
    path, low = _beside(old - 1, new, top, lambda _, high: high == old)
    return [top(low, old), *path] if low else path


def _beside(
    index: int, size: int, top: Top, is_end: Callable[[int, int], bool]
) -> tuple[list[bytes], int]:
    """Return the roots beside the way down to a leaf, the last one first, and where it ends."""
    path: list[bytes] = []
    low, high = 0, size
    while not is_end(low, high):
        middle = low + _split(high - low)
        if index < middle:
            path.append(top(middle, high))
            high = middle
        else:
            path.append(top(low, middle))
            low = middle
    return path[::-1], low


def is_consistent(
    old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]
) -> bool:
    """Say whether a path proves that the tree of a size and root is the beginning of another."""
    if old == new:
        return not path and old_root == new_root
    if not 0 < old < new or any(len(each) != HASH_BYTES for each in path):
        return False
    hashes = [old_root, *path] if not old & (old - 1) else [*path]
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    if not hashes:
        return False
    first = second = hashes[0]
    for each in hashes[1:]:
        if not last:
            return False
        if at & 1 or at == last:
            first, second = _joined(each, first), _joined(each, second)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            second = _joined(second, each)
        at, last = at >> 1, last >> 1
    return not last and first == old_root and second == new_root
