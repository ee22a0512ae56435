"""What never changes about an object: code, size, nonces, tags and shard roots.

The manifest is sealed under the manifest key and kept whole at every host. Its
hash, over the sealed bytes, stands in the capability, so nobody can change a
manifest without changing the capability. Where the shards are is not in it: that
changes. Objects up to INLINE_BYTES_MAX are in the manifest itself, encrypted as
segment 0, and have no shards.
docs/design/storage.md; vectors: tests/vectors/manifest.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field

from xsc.base import errors, limits
from xsc.base.encoding import domain, tagged_sha256
from xsc.identity.envelope import Count, Id32, Record
from xsc.storage.object import erasure, segment
from xsc.storage.object.capability import VerifyCapability
from xsc.storage.object.durability import KINDS, Contract
from xsc.storage.object.segment import NONCE_BYTES, TAG_BYTES, Place

Nonce = Annotated[bytes, Field(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
_Loss = Annotated[int, Field(ge=0, lt=limits.SHARDS_MAX)]
ContractField = Annotated[tuple[_Loss, ...], Field(min_length=len(KINDS), max_length=len(KINDS))]
"""How many domains of each kind may be lost, in the order of `durability.KINDS`."""
Tag = Annotated[bytes, Field(min_length=TAG_BYTES, max_length=TAG_BYTES)]


class Manifest(Record):
    """The unsealed manifest. Lengths of segments follow from the object's size."""

    owner: Id32
    """The node that stored the object."""
    k: Count
    m: Count
    generation: Count
    segment_bytes: Count
    size_bytes: Count
    inline: bytes | None
    """Ciphertext of a whole small object; None where there are shards."""
    nonces: tuple[Nonce, ...]
    """One a segment."""
    tags: tuple[Tag, ...]
    """One a segment."""
    roots: tuple[Id32, ...]
    """n a segment, segment by segment, in order of columns."""
    survive: ContractField
    """The contract; all are 0 where nothing was asked."""

    @property
    def contract(self) -> Contract:
        """The contract."""
        return Contract(*self.survive)


class SealedSegment(Record):
    """How a segment was sealed: what the manifest says of it, gathered while the object is cut."""

    KIND: ClassVar[str] = "upload_segment"

    length: Count
    nonce: Nonce
    tag: Tag
    roots: tuple[Id32, ...]


def build(
    owner: bytes,
    code: erasure.Code,
    size_bytes: int,
    segments: Sequence[SealedSegment],
    *,
    inline: bytes | None = None,
    survive: Contract = Contract(),  # noqa: B008 (a frozen value)
) -> Manifest:
    """Return the manifest of segments that were cut in order."""
    return Manifest(
        owner=owner,
        k=code.k,
        m=code.m,
        generation=code.generation,
        segment_bytes=limits.SEGMENT_BYTES,
        size_bytes=size_bytes,
        inline=inline,
        nonces=tuple(item.nonce for item in segments),
        tags=tuple(item.tag for item in segments),
        roots=tuple(root for item in segments for root in item.roots),
        survive=tuple(survive),
    )


def check_manifest(manifest: Manifest) -> str | None:
    """Return the first rule that a manifest breaks, or None."""
    n = manifest.k + manifest.m
    if not 1 <= manifest.k <= n <= limits.SHARDS_MAX:
        return f"a code of {manifest.k} data and {manifest.m} parity shards is impossible"
    if manifest.generation >= 2**32:
        return "the encoding generation is above its bound"
    if manifest.segment_bytes != limits.SEGMENT_BYTES:
        return f"segments have {limits.SEGMENT_BYTES} bytes, not {manifest.segment_bytes}"
    if manifest.size_bytes > limits.OBJECT_BYTES_MAX:
        return "the object is larger than any object can be"
    if manifest.inline is not None:
        if manifest.size_bytes > limits.INLINE_BYTES_MAX:
            return "the object is too large to stand in its manifest"
        if len(manifest.inline) != manifest.size_bytes:
            return "the inline data is not as long as the object"
        if len(manifest.nonces) != 1 or len(manifest.tags) != 1 or manifest.roots:
            return "an inline object has one nonce, one tag and no shards"
        return None
    if manifest.size_bytes <= limits.INLINE_BYTES_MAX:
        return "an object this small stands in its manifest"
    count = segment.count(manifest.size_bytes)
    if len(manifest.nonces) != count or len(manifest.tags) != count:
        return f"{count} segments need {count} nonces and {count} tags"
    if len(manifest.roots) != count * n:
        return f"{count} segments of {n} shards need {count * n} roots"
    if len(set(manifest.nonces)) != count:
        return "a nonce is used twice"
    return None


def code_of(manifest: Manifest) -> erasure.Code:
    """Return the code of a checked manifest."""
    return erasure.Code(manifest.k, manifest.m, manifest.generation)


def segments_of(manifest: Manifest) -> int:
    """Return how many segments lie as shards at hosts: none for an inline object."""
    if manifest.inline is not None:
        return 0
    return segment.count(manifest.size_bytes)


def place_of(manifest: Manifest, locate: bytes, index: int) -> Place:
    """Return the place of a segment, as it is authenticated."""
    length = segment.length_of(index, manifest.size_bytes)
    count = max(1, segments_of(manifest))
    return Place(locate, index, length, final=index == count - 1)


def root_at(manifest: Manifest, index: int, column: int) -> bytes:
    """Return the root of one shard."""
    return manifest.roots[index * (manifest.k + manifest.m) + column]


def column_digest(roots: Sequence[tuple[int, bytes]]) -> bytes:
    """Return what stands for one column: the hash of its (segment, root), in order.

    A host tells it and the asker compares, so that neither sends a root for every
    segment of a large object.
    """
    return tagged_sha256("column", *(index.to_bytes(8, "big") + root for index, root in roots))


def expected_digest(manifest: Manifest, column: int) -> bytes:
    """Return the digest of a column that misses nothing."""
    return column_digest(
        [(index, root_at(manifest, index, column)) for index in range(segments_of(manifest))]
    )


def seal_manifest(manifest: Manifest, manifest_key: bytes, nonce: bytes) -> bytes:
    """Return nonce, ciphertext and tag."""
    assert len(nonce) == NONCE_BYTES
    return nonce + AESGCM(manifest_key).encrypt(nonce, manifest.to_bytes(), domain("manifest"))


def hash_of(sealed: bytes | memoryview) -> bytes:
    """Return the SHA-256 of sealed bytes: the manifest hash, as capabilities hold it."""
    return hashlib.sha256(sealed).digest()


def open_manifest(sealed: bytes | memoryview, capability: VerifyCapability) -> Manifest:
    """Return the manifest of a capability, once everything about it was checked.

    Raises:
        RecordInvalid: another manifest than the capability's, or one that breaks a rule.
    """
    if hash_of(sealed) != capability.manifest_hash:
        raise errors.RecordInvalid("this is not the manifest that the capability stands for")
    view = memoryview(sealed)
    try:
        plain = AESGCM(capability.manifest_key).decrypt(
            bytes(view[:NONCE_BYTES]), view[NONCE_BYTES:], domain("manifest")
        )
    except (InvalidTag, ValueError):
        raise errors.RecordInvalid("the manifest does not open under this capability") from None
    manifest = Manifest.from_bytes(plain, size_max=limits.MANIFEST_BYTES_MAX)
    fault = check_manifest(manifest)
    if fault is not None:
        raise errors.RecordInvalid(f"the manifest is wrong: {fault}")
    return manifest
