"""One segment of an object, encrypted.

AES-256-GCM under the object's content key with a random nonce for each segment
and attempt. The nonce and the tag stand in the manifest, so that the ciphertext
is exactly as long as the plaintext: a full segment gives shards of whole leaves,
and byte k of the object lies at one place that needs no arithmetic.

The segment's place is authenticated with it: locate id, index, length, and
whether it is the last one. docs/design/storage.md; vectors: tests/vectors/segment.json.

The ciphertext lies in the data columns one after the other, so that a range of bytes
touches a run of columns, and a run of leaves in each: it is cut into *pieces*, one a
column. Where a column cannot be had, the same leaves of any k other columns give its
bytes: the code works byte by byte, over the bytes at one offset. Nothing here verifies:
the leaves that come in must have been held against their roots before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from xsc.base import limits, merkle
from xsc.base.encoding import domain, encode
from xsc.base.errors import RecordInvalid
from xsc.base.units import ceil_div
from xsc.storage.object.erasure import Buffer, Code, decode

NONCE_BYTES = 12
TAG_BYTES = 16
_BLOCK_BYTES = 16
_FIRST_COUNTER = 2
"""GCM keeps counter 1 for the tag (NIST SP 800-38D, 7.1)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a segment stands."""

    locate: bytes
    index: int
    length: int
    final: bool


def count(size_bytes: int) -> int:
    """Return how many segments an object has that is not inline."""
    return ceil_div(size_bytes, limits.SEGMENT_BYTES)


def length_of(index: int, size_bytes: int) -> int:
    """Return the length of one segment: the last one holds what is left."""
    return min(limits.SEGMENT_BYTES, size_bytes - index * limits.SEGMENT_BYTES)


def _place_bytes(place: Place) -> bytes:
    return domain("segment") + encode([place.locate, place.index, place.length, place.final])


def seal(content_key: bytes, nonce: bytes, place: Place, plain: Buffer) -> tuple[memoryview, bytes]:
    """Return ciphertext, as long as the plaintext, and tag."""
    assert len(plain) == place.length
    sealed = memoryview(AESGCM(content_key).encrypt(nonce, plain, _place_bytes(place)))
    return sealed[:-TAG_BYTES], bytes(sealed[-TAG_BYTES:])


def open_sealed(
    content_key: bytes, nonce: bytes, tag: bytes, place: Place, ciphertext: Buffer
) -> bytes:
    """Return the plaintext.

    Raises:
        RecordInvalid: another key, nonce, tag, place or ciphertext.
    """
    try:
        return AESGCM(content_key).decrypt(nonce, b"".join((ciphertext, tag)), _place_bytes(place))
    except InvalidTag:
        raise RecordInvalid(
            f"segment {place.index} does not open: it was sealed otherwise"
        ) from None


class Opener:
    """Deciphers a segment in pieces, in order.

    Until `finish` has returned, nothing but who gave the pieces says that they are right.
    """

    def __init__(self, content_key: bytes, nonce: bytes, tag: bytes, place: Place) -> None:
        self._place = place
        self._left = place.length
        self._cipher = Cipher(algorithms.AES(content_key), modes.GCM(nonce, tag)).decryptor()
        self._cipher.authenticate_additional_data(_place_bytes(place))

    def update(self, piece: Buffer) -> bytes:
        """Return the plaintext of the next piece."""
        self._left -= len(piece)
        return self._cipher.update(piece)

    def finish(self) -> None:
        """Return if all pieces together are what was sealed.

        Raises:
            RecordInvalid: another key, nonce, tag, place or ciphertext.
        """
        if self._left:
            raise RecordInvalid(f"segment {self._place.index} is not as long as it should be")
        try:
            self._cipher.finalize()
        except InvalidTag:
            raise RecordInvalid(
                f"segment {self._place.index} does not open: it was sealed otherwise"
            ) from None


def decipher_at(content_key: bytes, nonce: bytes, offset: int, ciphertext: Buffer) -> bytes:
    """Return the plaintext of a piece that stands at `offset` of its segment.

    GCM encrypts in counter mode, so that a piece can be read alone. The tag is not
    checked, which needs the whole segment: the caller must have verified the piece
    against the roots of the capability's manifest (docs/design/storage.md, G4).
    """
    block, skipped = divmod(offset, _BLOCK_BYTES)
    counter = nonce + (_FIRST_COUNTER + block).to_bytes(4, "big")
    decryptor = Cipher(algorithms.AES(content_key), modes.CTR(counter)).decryptor()
    decryptor.update(bytes(skipped))
    return decryptor.update(ciphertext)


@dataclass(frozen=True, slots=True)
class Span:
    """Leaves of a shard, from `first` up to `stop`."""

    first: int
    stop: int
    shard_bytes: int
    """The size of the whole shard."""

    @property
    def size_bytes(self) -> int:
        """How many bytes they have together: the last leaf of a shard may be short."""
        return min(self.stop * limits.LEAF_BYTES, self.shard_bytes) - self.first * limits.LEAF_BYTES

    @property
    def is_whole(self) -> bool:
        """Whether these are all leaves of the shard."""
        return self.first == 0 and self.stop >= merkle.leaf_count(self.shard_bytes)


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
        span = Span(first, ceil_div(high, limits.LEAF_BYTES), size)
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
