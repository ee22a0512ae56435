"""The Merkle tree over a shard's 16 KiB leaves (BLAKE3).

One root binds a shard everywhere: in the manifest, in the storage receipt, and
in the signed head of the message that carries it, so that a body is hashed
once. The tree has the shape of RFC 6962 (the left subtree is the largest full
one); leaves, inner nodes and the root hash under different BLAKE3 contexts, and
the root covers the length. It stands in `base` because the peer transport binds
bodies by it (docs/design/base.md). Vectors: tests/vectors/merkle.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from xsc.base.limits import LEAF_BYTES

ROOT_BYTES = 32
_LEAF = "XSC 1 shard leaf"
_NODE = "XSC 1 shard node"
_ROOT = "XSC 1 shard root"


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes and the root that binds them."""

    data: bytes | memoryview
    root: bytes


def leaf_hashes(data: bytes | memoryview) -> list[bytes]:
    """Return the hash of each leaf, in order; empty data has one empty leaf."""
    view = memoryview(data)
    # One hasher for all: to derive the key of a context anew takes a sixth of the time.
    hasher = blake3(derive_key_context=_LEAF)
    hashes = []
    for start in range(0, max(len(view), 1), LEAF_BYTES):
        hasher.update(view[start : start + LEAF_BYTES])
        hashes.append(hasher.digest())
        hasher.reset()
    return hashes


def _pair(left: bytes, right: bytes) -> bytes:
    return blake3(left + right, derive_key_context=_NODE).digest()


def _split(count: int) -> int:
    """Return the size of the left subtree: the largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def _top(hashes: Sequence[bytes]) -> bytes:
    level = list(hashes)
    while len(level) > 1:
        paired = [_pair(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def _seal(top: bytes, size_bytes: int) -> bytes:
    return blake3(size_bytes.to_bytes(8, "big") + top, derive_key_context=_ROOT).digest()


def root_of(data: bytes | memoryview) -> bytes:
    """Return the 32-byte root of a shard of any length."""
    return _seal(_top(leaf_hashes(data)), len(data))


def leaf_count(size_bytes: int) -> int:
    """Return how many leaves a shard of that size has: at least one."""
    return max(1, -(-size_bytes // LEAF_BYTES))


def root_from(hashes: Sequence[bytes], size_bytes: int) -> bytes:
    """Return the root of a shard whose leaf hashes are known."""
    return _seal(_top(hashes), size_bytes)


def prove_span(hashes: Sequence[bytes], first: int, stop: int) -> list[bytes]:
    """Return what proves the leaves from `first` up to `stop` together.

    These are the tops of the largest subtrees that hold none of the leaves, from
    left to right: at most two for each level of the tree.
    """
    assert 0 <= first < stop <= len(hashes)
    path: list[bytes] = []

    def walk(low: int, high: int) -> None:
        if high <= first or stop <= low:
            path.append(_top(hashes[low:high]))
        elif not (first <= low and high <= stop):
            middle = low + _split(high - low)
            walk(low, middle)
            walk(middle, high)

    walk(0, len(hashes))
    return path


def span_holds(
    root: bytes, size_bytes: int, first: int, span: bytes | memoryview, path: Sequence[bytes]
) -> bool:
    """Say whether `span` are whole leaves, from `first` on, of the shard of that root and size.

    Only the last leaf of a shard may be shorter than LEAF_BYTES.
    """
    count = leaf_count(size_bytes)
    stop = first + leaf_count(len(span))
    if not 0 <= first < stop <= count:
        return False
    if len(span) != min(stop * LEAF_BYTES, size_bytes) - first * LEAF_BYTES:
        return False
    inside = leaf_hashes(span)
    outside = list(reversed(path))
    short = False

    def climb(low: int, high: int) -> bytes:
        nonlocal short
        if high <= first or stop <= low:
            if outside:
                return outside.pop()
            short = True
            return b""
        if first <= low and high <= stop:
            return _top(inside[low - first : high - first])
        middle = low + _split(high - low)
        return _pair(climb(low, middle), climb(middle, high))

    top = climb(0, count)
    return not short and not outside and _seal(top, size_bytes) == root
