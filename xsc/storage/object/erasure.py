"""Cuts bytes into n = k + m shards of which any k give them back.

The code is systematic Reed-Solomon over GF(2^8) as zfec defines it: shards 0 to
k-1 are the data itself, padded with zeros to a multiple of k; shards k to n-1
are parity. How long the data was stands in the manifest.

The code detects nothing: one flipped byte in a shard gives wrong data and no
error. Whoever decodes must have verified every shard against its root before.
docs/design/storage.md; vectors: tests/vectors/erasure.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import zfec

from xsc.base import errors, limits, merkle, units

Buffer: TypeAlias = "bytes | memoryview"

# Bounds of the numbers that say which shard is meant, as records and keys carry them.
SEGMENT_MAX = 2**32 - 1
GENERATION_MAX = 2**32 - 1
COLUMN_MAX = 255


@dataclass(frozen=True, slots=True)
class Code:
    """How an object is cut: k data and m parity shards, in one encoding generation.

    Shards of two generations never meet in a decode.
    """

    k: int = limits.DATA_SHARDS_DEFAULT
    m: int = limits.PARITY_SHARDS_DEFAULT
    generation: int = 0

    def __post_init__(self) -> None:
        if self.k < 1 or self.m < 0 or self.n > limits.SHARDS_MAX:
            raise errors.ArgumentInvalid(
                f"a code of {self.k} data and {self.m} parity shards is impossible",
                hint=f"at least 1 data shard, and at most {limits.SHARDS_MAX} shards in all",
            )
        if not 0 <= self.generation < 2**32:
            raise errors.ArgumentInvalid("an encoding generation is a number from 0 to 2^32 - 1")

    @property
    def n(self) -> int:
        """The number of shards in all."""
        return self.k + self.m

    def shard_bytes(self, length: int) -> int:
        """Return the size of each shard of `length` bytes."""
        return units.ceil_div(length, self.k)


@dataclass(frozen=True, slots=True)
class StorageShard:
    """One shard in memory: its column (0 to n-1), its bytes and their Merkle root."""

    column: int
    data: Buffer
    root: bytes


@lru_cache(maxsize=64)
def _encoder(k: int, n: int) -> zfec.Encoder:
    return zfec.Encoder(k, n)


@lru_cache(maxsize=64)
def _decoder(k: int, n: int) -> zfec.Decoder:
    return zfec.Decoder(k, n)


def _rows(data: Buffer, code: Code) -> list[Buffer]:
    view = memoryview(data)
    size = code.shard_bytes(len(view))
    rows: list[Buffer] = [view[row * size : (row + 1) * size] for row in range(code.k)]
    return [row if len(row) == size else bytes(row).ljust(size, b"\0") for row in rows]


def encode(data: Buffer, code: Code, columns: Sequence[int] | None = None) -> list[Buffer]:
    """Return the n shards of the data, each of ceil(len / k) bytes, or the wanted columns.

    Data shards are views of `data` wherever no padding is needed.
    """
    wanted = range(code.n) if columns is None else columns
    if not len(data):
        return [b"" for _ in wanted]
    return list(_encoder(code.k, code.n).encode(tuple(_rows(data, code)), tuple(wanted)))


def decode(shards: Mapping[int, Buffer], code: Code, length: int) -> bytes:
    """Return the data of `length` bytes, as `decode_rows` in one piece."""
    return b"".join(decode_rows(shards, code, length))


def decode_rows(shards: Mapping[int, Buffer], code: Code, length: int) -> list[Buffer]:
    """Return the data of `length` bytes from any k verified shards, as k pieces in order.

    Data shards are given as they are; nothing is copied.

    Raises:
        ShardsInsufficient: fewer than k shards.
        ArgumentInvalid: a column outside of the code, or a shard of the wrong size.
    """
    if len(shards) < code.k:
        raise errors.ShardsInsufficient(f"{len(shards)} of the {code.k} shards needed are here")
    size = code.shard_bytes(length)
    # Data shards first: they need no arithmetic.
    columns = sorted(shards)[: code.k]
    if columns[0] < 0 or max(shards) >= code.n:
        raise errors.ArgumentInvalid("a shard is of no column of its code")
    if any(len(shards[column]) != size for column in columns):
        raise errors.ArgumentInvalid(f"a shard of {length} bytes of data has {size} bytes")
    if not size:
        return []
    if columns == list(range(code.k)):
        rows = [shards[column] for column in columns]
    else:
        # zfec wants each data shard at its own place.
        parity = iter([column for column in columns if column >= code.k])
        order = [row if row in shards else next(parity) for row in range(code.k)]
        given = tuple(shards[column] for column in order)
        rows = list(_decoder(code.k, code.n).decode(given, tuple(order)))
    if size * code.k == length:
        return rows
    return [
        memoryview(row)[: max(0, min(size, length - index * size))]
        for index, row in enumerate(rows)
    ]


def cut(data: Buffer, code: Code, columns: Sequence[int] | None = None) -> list[StorageShard]:
    """Return the n shards of the data with their roots, or the wanted columns."""
    wanted = range(code.n) if columns is None else columns
    return [
        StorageShard(column, shard, merkle.root_of(shard))
        for column, shard in zip(wanted, encode(data, code, wanted), strict=True)
    ]


def rebuild(
    shards: Mapping[int, Buffer], code: Code, length: int, columns: Sequence[int]
) -> list[StorageShard]:
    """Return the wanted columns from any k verified shards of a segment of that length.

    Raises:
        ShardsInsufficient: fewer than k shards.
    """
    return cut(decode(shards, code, length), code, columns)
