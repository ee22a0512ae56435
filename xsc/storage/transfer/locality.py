"""Reading an object for its holder, near its shards: the reference, and what is spared.

Whoever may read an object can have it read by a node that holds shards of it. The
reference gives that node what it takes to read this one object and no more: the
content key, the manifest in clear, and where the columns are. Neither the read secret
nor the verify key follows from it, so the node cannot pass a capability on.
docs/design/compute.md; vectors: tests/vectors/near.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from xsc.base import errors, limits
from xsc.identity.envelope import Id32, Record
from xsc.storage.object import erasure, placement
from xsc.storage.object.manifest import Manifest, check_manifest, code_of, place_of, segments_of
from xsc.storage.transfer.get import Located

REFERENCE_BYTES_MAX = 512 * limits.KIB
"""The manifest of INPUT_BYTES_MAX in SHARDS_MAX columns, and its columns, are half of that."""


class Reference(Record):
    """One object, for a node that shall read it."""

    KIND: ClassVar[str] = "object_reference"

    locate: Id32
    content_key: Annotated[bytes, Field(min_length=32, max_length=32, repr=False)]
    manifest: bytes
    """In clear, canonical."""
    columns: Annotated[tuple[Id32, ...], Field(min_length=1, max_length=limits.SHARDS_MAX)]
    """The node of each column, as far as who refers knows: every shard is checked by its root."""


@dataclass(frozen=True, slots=True)
class Referred:
    """An object that another node may be asked to read."""

    manifest_hash: bytes
    size_bytes: int
    reference: bytes
    spared: Mapping[bytes, int]
    """How many of its bytes a node need not receive in order to read it."""


def received_of(length: int, code: erasure.Code, own: int) -> int:
    """Return what a node fetches of a segment of which it holds that many columns."""
    return (code.k - min(own, code.k)) * code.shard_bytes(length)


def spared_bytes(manifest: Manifest, columns: Sequence[bytes]) -> Mapping[bytes, int]:
    """Return how much of an object each of its hosts need not receive in order to read it.

    Against the object's size: shards are padded, so that this is never more than the share.
    """
    code = code_of(manifest)
    lengths = [place_of(manifest, b"", index).length for index in range(segments_of(manifest))]
    found = {}
    for node in dict.fromkeys(columns):
        own = len(placement.columns_of(columns, node))
        found[node] = sum(max(0, size - received_of(size, code, own)) for size in lengths)
    return {node: spared for node, spared in found.items() if spared}


def refer(located: Located, columns: Sequence[bytes], content_key: bytes) -> bytes:
    """Return the reference of an object whose columns are at these nodes, canonical."""
    return Reference(
        locate=located.locate,
        content_key=content_key,
        manifest=located.manifest.to_bytes(),
        columns=tuple(columns),
    ).to_bytes()


def open_reference(raw: bytes) -> tuple[Located, bytes]:
    """Return what a reference says, checked, and the content key.

    Raises:
        RecordInvalid, TooLarge: it is no reference to an object that can be read for a job.
    """
    reference = Reference.from_bytes(raw, size_max=REFERENCE_BYTES_MAX)
    manifest = Manifest.from_bytes(reference.manifest, size_max=REFERENCE_BYTES_MAX)
    fault = check_manifest(manifest)
    if fault is None and len(reference.columns) != manifest.k + manifest.m:
        fault = "it does not name one node a column"
    if fault is None and manifest.inline is not None:
        fault = "an object this small is sent itself"
    if fault is None and manifest.size_bytes > limits.INPUT_BYTES_MAX:
        fault = f"an input has at most {limits.INPUT_BYTES_MAX} bytes"
    if fault is not None:
        raise errors.RecordInvalid(f"the reference is wrong: {fault}")
    holders = tuple((node,) for node in reference.columns)
    located = Located(reference.locate, manifest, b"", holders)
    return located, reference.content_key
