"""What lies at a host as storage names it, and what health asks of that: leaves with proofs.

A *extent* is the bodies of one column of an object at a host, or its sealed manifest. Only
storage knows what a name means; health draws leaves out of extents and checks them by their roots.
docs/design/health.md
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from xsc.base import limits
from xsc.base.errors import RecordInvalid
from xsc.base.ids import ID_BYTES
from xsc.identity.envelope import Count, Id32, Record

PROVE = "health.prove"
"""The method, to which storage charges the reading of leaves."""
COLUMN_BYTES = 2
NAME_BYTES = ID_BYTES + COLUMN_BYTES
MANIFEST_COLUMN = 2**16 - 1
"""Stands for the sealed manifest of an object, which is in no column."""
LEAVES_ASKED = 4
_EXTENT = struct.Struct(f">{NAME_BYTES}sIII")
EXTENT_BYTES = _EXTENT.size

PossessionState = Literal["ok", "missing"]


def extent_name(locate: bytes, column: int) -> bytes:
    """Return the name of what a host has in a column of an object."""
    return locate + column.to_bytes(COLUMN_BYTES, "big")


@dataclass(frozen=True, slots=True)
class Extent:
    """Bodies of one name: all of `body_bytes`, but for the last one."""

    name: bytes
    bodies: int
    body_bytes: int
    last_bytes: int

    @property
    def locate(self) -> bytes:
        """The locate id of the object."""
        return self.name[:ID_BYTES]

    @property
    def column(self) -> int:
        """The column; MANIFEST_COLUMN for the sealed manifest."""
        return int.from_bytes(self.name[ID_BYTES:], "big")

    def size_of(self, body: int) -> int:
        """Return how many bytes a body has."""
        return self.last_bytes if body == self.bodies - 1 else self.body_bytes

    def to_bytes(self) -> bytes:
        """Return its EXTENT_BYTES."""
        return _EXTENT.pack(self.name, self.bodies, self.body_bytes, self.last_bytes)


def counts_in(page: bytes | memoryview) -> list[int]:
    """Return how many leaves each of packed extents has.

    Raises:
        RecordInvalid: they are none, or larger than any can be.
    """
    if not page or len(page) % EXTENT_BYTES:
        raise RecordInvalid("a page consists of whole extents, one at least")
    leaf, most = limits.LEAF_BYTES, limits.MANIFEST_BYTES_MAX
    # Without a turn of Python for each extent and question: lists are long.
    counts = [
        -(-body_bytes // leaf) * (bodies - 1) - (-last_bytes // leaf)
        if bodies and 0 < body_bytes <= most and 0 < last_bytes <= most
        else 0
        for _, bodies, body_bytes, last_bytes in _EXTENT.iter_unpack(page)
    ]
    if not all(counts):
        raise RecordInvalid("an extent has no bodies, or larger ones than there are")
    return counts


def extent_in(page: bytes | memoryview, number: int) -> Extent:
    """Return one of packed extents."""
    return Extent(*_EXTENT.unpack_from(page, number * EXTENT_BYTES))


class Root(NamedTuple):
    """What proves a body."""

    generation: int
    root: bytes
    """Over its leaves."""
    manifest: bytes | None
    """The hash of a sealed manifest; None for a shard."""


@dataclass(frozen=True, slots=True)
class AskedLeaf:
    """One leaf of what should lie at a host."""

    extent: Extent
    body: int
    leaf: int
    root: Root

    @property
    def size_bytes(self) -> int:
        """The size of its body."""
        return self.extent.size_of(self.body)


Lost = Literal["missing", "corrupt"]
"""Of a leaf that a host cannot give: whether it knows of none, or what it stored is damaged."""


class LeafProof(NamedTuple):
    """A leaf and what proves it."""

    data: bytes
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Holding:
    """What a customer has at a host, as a prober knows it."""

    extents: Sequence[Extent]
    root_of: Callable[[Extent, int], Awaitable[Root | None]]
    """Returns what proves a body; None where the prober does not know it any more."""


class Answered(NamedTuple):
    """What a challenge over all that a customer has at a host came to, for who pays for that."""

    leaves: int
    """Of the list that was drawn from."""
    epoch: int
    said_ms: int
    ok: bool | None
    """Whether it has what was drawn. None decides nothing: the host knows of no loss of its own."""


class Possession(Record):
    """Signed by a host: which of the leaves that were drawn it has, and all of what it sent."""

    seed: Id32
    """Of the challenge, so of host, customer, prober, interval and both nonces."""
    asked: Id32
    """Which leaves were drawn, and their roots."""
    states: Annotated[tuple[PossessionState, ...], Field(max_length=LEAVES_ASKED)]
    """ "missing" is the host's own word that it has not got a leaf."""
    leaves: Id32
    """The leaves that are "ok", with their paths."""
    said_ms: Count


class Proven(Record):
    """Signed by a custodian: a host answered it for all that it looks after there for a customer.

    The host shows it to the customer, which pays by it if it named the custodian.
    """

    host: Id32
    customer: Id32
    prober: Id32
    seed: Id32
    """Of the challenge."""
    leaves: Count
    """Of the list that was drawn from."""
    at_ms: Count
    """When the host signed its answer, by its clock."""
