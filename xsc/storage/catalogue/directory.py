"""The directory of a node's objects, and its head: the data that a recovery begins with.

The directory lists names, versions, capabilities, and what hosts confirmed to hold.
Its newest state is in the head: a record with a generation number, signed by the
owner, encrypted under a key of its identity, and stored at its peers. The head
has the peers and their addresses, and the directory itself or, if that is large,
the capability of the object that has it. The highest generation wins.
docs/design/directory.md; vectors: tests/vectors/directory.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field

from xsc.base import encoding, errors, limits
from xsc.identity.envelope import Count, Id32, Record, Signed, open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.storage.object.held import Held

_NONCE_BYTES = 12


class DirectoryHead(Record):
    """Signed by the owner: the state of its directory at one generation."""

    generation: Count
    """Grows with every change; the highest one wins."""
    sealed: bytes
    """Nonce, ciphertext and tag of a `HeadBody`."""


class HeadBody(Record):
    """The plaintext of a head: the peers, and the directory or where it is."""

    peers: Annotated[tuple[bytes, ...], Field(max_length=limits.PEERS_MAX)]
    """The known peers, each as the owner keeps it."""
    directory: bytes | str
    """The directory, or the capability of the object that has it."""
    listed: Id32
    """Hash of the directory."""
    ledger: bytes
    """What the owner's ledger says of itself."""
    removed: Annotated[tuple[Id32, ...], Field(max_length=limits.REMOVED_LISTED_MAX)] = ()
    """Peers that the operator removed, the newest first; REMOVED_LISTED_MAX at most."""


class _Host(NamedTuple):
    """What a host holds of an object; node and lease are places in the list of ids."""

    node: Count
    lease: Count
    size_bytes: Count


class _Object(NamedTuple):
    name: str
    version: Count
    capability: str
    size_bytes: Count
    created_ms: Count
    held: tuple[_Host, ...]


class _Packed(Record):
    """A directory."""

    ids: tuple[Id32, ...]
    objects: tuple[_Object, ...]


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One object of a directory."""

    name: str
    version: int
    capability: str
    size_bytes: int
    created_ms: int
    held: tuple[Held, ...]


def pack(objects: Sequence[DirectoryEntry]) -> bytes:
    """Return the canonical bytes of a directory."""
    ids: dict[bytes, int] = {}

    def place(known: bytes) -> int:
        return ids.setdefault(known, len(ids))

    rows = []
    for item in objects:
        held = [_Host(place(at.node), place(at.lease_id), at.size_bytes) for at in item.held]
        row = item.name, item.version, item.capability, item.size_bytes, item.created_ms
        rows.append(_Object(*row, tuple(held)))
    return _Packed(ids=tuple(ids), objects=tuple(rows)).to_bytes()


def unpack(raw: bytes) -> list[DirectoryEntry]:
    """Return the objects of a directory.

    Raises:
        TooLarge, RecordInvalid: not a directory, or of another version.
    """
    packed = _Packed.from_bytes(raw, size_max=limits.DIRECTORY_BYTES_MAX)
    ids, found = packed.ids, []
    try:
        for name, version, capability, size_bytes, created_ms, held in packed.objects:
            hosts = tuple(Held(ids[at.node], ids[at.lease], at.size_bytes) for at in held)
            found.append(DirectoryEntry(name, version, capability, size_bytes, created_ms, hosts))
    except IndexError:
        raise errors.RecordInvalid("a host in the directory is not in its list") from None
    return found


def _bound(generation: int) -> bytes:
    return encoding.domain("directory-head") + generation.to_bytes(8, "big")


def make_head(
    body: HeadBody, generation: int, key: KeyPair, network: bytes, nonce: bytes
) -> Signed[DirectoryHead]:
    """Encrypt and sign the head of a generation."""
    assert len(nonce) == _NONCE_BYTES
    secret = AESGCM(key.derive("directory/head"))
    sealed = nonce + secret.encrypt(nonce, body.to_bytes(), _bound(generation))
    head = DirectoryHead(generation=generation, sealed=sealed)
    return sign(head, key, network)


def open_head(raw: bytes, author: bytes, network: bytes) -> Signed[DirectoryHead]:
    """Parse a head and verify its signature. It does not need the key that decrypts it.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: it is no head, or not signed by `author`.
    """
    return open_signed(
        raw, DirectoryHead, network=network, author=author, size_max=limits.DIRECTORY_HEAD_BYTES_MAX
    )


def open_body(head: DirectoryHead, key: KeyPair) -> HeadBody:
    """Decrypt an own head.

    Raises:
        RecordInvalid: it does not open under this identity, or breaks its form.
    """
    secret = AESGCM(key.derive("directory/head"))
    try:
        plain = secret.decrypt(
            head.sealed[:_NONCE_BYTES], head.sealed[_NONCE_BYTES:], _bound(head.generation)
        )
    except (InvalidTag, ValueError):
        raise errors.RecordInvalid("the head does not open under this identity") from None
    return HeadBody.from_bytes(plain, size_max=limits.DIRECTORY_HEAD_BYTES_MAX)
