"""Which leaves of which shards a range of bytes needs, and how it is put together.

The ciphertext of a segment lies in the data columns one after the other, so that
a range touches a run of columns, and a run of leaves in each. Where a column
cannot be had, the same leaves of any k other columns give its bytes: the code
works byte by byte, over the bytes at one offset.

A range is cut into *pieces*, one a column. Nothing here verifies: the leaves that
come in must have been held against their roots before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xsc.base import limits, units
from xsc.storage.object.erasure import Buffer, Code, decode
from xsc.storage.object.inventory import Span


@dataclass(frozen=True, slots=True)
class Piece:
    """What a range needs of one data column."""

    column: int
    span: Span
    """The leaves to fetch."""
    low: int
    high: int
    """The bytes that are wanted, counted from the first byte of the span."""


def pieces_of(start: int, stop: int, length: int, code: Code) -> list[Piece]:
    """Return the pieces of bytes `start` to `stop` of a segment, in order."""
    assert 0 <= start < stop <= length
    size = code.shard_bytes(length)
    pieces = []
    for column in range(start // size, (stop - 1) // size + 1):
        low = max(0, start - column * size)
        high = min(size, stop - column * size)
        first = low // limits.LEAF_BYTES
        span = Span(first, units.ceil_div(high, limits.LEAF_BYTES), size)
        origin = first * limits.LEAF_BYTES
        pieces.append(Piece(column, span, low - origin, high - origin))
    return pieces


def is_whole(start: int, stop: int, length: int, code: Code) -> bool:
    """Say whether a range needs every leaf of the data columns of its segment."""
    pieces = pieces_of(start, stop, length, code)
    return len(pieces) == code.k and all(piece.span.is_whole for piece in pieces)


def rebuild_span(leaves: Mapping[int, Buffer], code: Code, column: int, span: Span) -> Buffer:
    """Return the leaves of one data column from the same leaves of k others."""
    size = span.size_bytes
    rows = decode(leaves, code, code.k * size)
    return memoryview(rows)[column * size : (column + 1) * size]
