"""Several statements under one signature, each of which can be shown without the others.

The signature is over the root of a binary Merkle tree. What stands beside a
statement is its place and the other halves on its way up to the root. A level
that is not full is filled up with zeros, which are no hash of anything.
Vectors: `tests/vectors/joint.json`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from xsc.base import encoding, limits

HASH_BYTES = 32
PATH_MAX = (limits.JOINT_RECORDS_MAX - 1).bit_length()
_NOTHING = bytes(HASH_BYTES)


def message_of(network: bytes, root: bytes) -> bytes:
    """Return what is signed."""
    return encoding.domain("joint") + network + root


_LEAF, _NODE = encoding.domain("joint-leaf"), encoding.domain("joint-node")


def _leaf(message: bytes) -> bytes:
    return hashlib.sha256(_LEAF + message).digest()


def _joined(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def plant(messages: Sequence[bytes]) -> tuple[bytes, list[list[bytes]]]:
    """Return the root over messages, and the path of each: from 2 to JOINT_RECORDS_MAX."""
    assert 2 <= len(messages) <= limits.JOINT_RECORDS_MAX
    level = [_leaf(message) for message in messages]
    paths: list[list[bytes]] = [[] for _ in messages]
    height = 0
    while len(level) > 1:
        if len(level) % 2:
            level.append(_NOTHING)
        for place, path in enumerate(paths):
            path.append(level[(place >> height) ^ 1])
        level = [_joined(*level[start : start + 2]) for start in range(0, len(level), 2)]
        height += 1
    return level[0], paths


def root_of(message: bytes, place: int, path: Sequence[bytes]) -> bytes:
    """Return the root that a message has at a place, with that path."""
    found = _leaf(message)
    for other in path:
        found = _joined(other, found) if place & 1 else _joined(found, other)
        place >>= 1
    return found
