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
from typing import Annotated

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field, model_validator

from xsc.base import encoding, errors, fields, limits
from xsc.base.ids import ID_BYTES
from xsc.identity.envelope import Count, Id32, Record, Signed, open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.storage.object.held import Held

_VERSION = 1
_NONCE_BYTES = 12
_ENTRIES_MAX = 2**24


class DirectoryHead(Record):
    """Signed by the owner: the state of its directory at one generation."""

    locate: Id32
    """Derived from the owner's identity."""
    generation: Count
    """Grows with every change; the highest one wins."""
    sealed: bytes
    """Nonce, ciphertext and tag of a `HeadBody`."""


class HeadBody(Record):
    """The plaintext of a head: the peers, and the directory or where it is."""

    written_ms: Count
    peers: Annotated[tuple[bytes, ...], Field(max_length=limits.PEERS_MAX)]
    """The known peers, each as the owner keeps it."""
    directory: bytes | None
    capability: str | None
    ledger: bytes
    """What the owner's ledger says of itself."""
    removed: Annotated[tuple[Id32, ...], Field(max_length=limits.REMOVED_LISTED_MAX)] = ()
    """Peers that the operator removed, the newest first; REMOVED_LISTED_MAX at most."""

    @model_validator(mode="after")
    def _is_one(self) -> HeadBody:
        if (self.capability is None) == (self.directory is None):
            raise ValueError("a head holds the directory, or says where it is")
        return self


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One object of a directory."""

    name: str
    version: int
    capability: str
    size_bytes: int
    created_ms: int
    held: tuple[Held, ...]


def locate_of(key: KeyPair) -> bytes:
    """Return the id under which peers store the head."""
    return key.derive("directory/locate")


def pack(objects: Sequence[DirectoryEntry]) -> bytes:
    """Return the canonical bytes of a directory."""
    ids: dict[bytes, int] = {}
    rows: list[encoding.Value] = []
    for item in objects:
        held: list[encoding.Value] = [
            [
                ids.setdefault(host.node, len(ids)),
                ids.setdefault(host.lease_id, len(ids)),
                host.size_bytes,
            ]
            for host in item.held
        ]
        rows.append(
            [item.name, item.version, item.capability, item.size_bytes, item.created_ms, held]
        )
    table: list[encoding.Value] = [*ids]
    return encoding.encode({"v": _VERSION, "ids": table, "objects": rows})


def unpack(raw: bytes) -> list[DirectoryEntry]:
    """Return the objects of a directory.

    Raises:
        TooLarge, RecordInvalid: not a directory, or of another version.
    """
    value = encoding.decode(raw, size_max=limits.DIRECTORY_BYTES_MAX)
    if not isinstance(value, dict) or value.get("v") != _VERSION:
        raise errors.RecordInvalid("the directory is of an unknown version")
    ids = fields.take_list(value, "ids", most=_ENTRIES_MAX)
    return [_listed(row, ids) for row in fields.take_list(value, "objects", most=_ENTRIES_MAX)]


def _listed(row: encoding.Value, ids: Sequence[encoding.Value]) -> DirectoryEntry:
    match row:
        case [
            str(name),
            int(version),
            str(capability),
            int(size_bytes),
            int(created_ms),
            list(held),
        ] if min(version, size_bytes, created_ms) >= 0:
            hosts = tuple(_host(item, ids) for item in held)
            return DirectoryEntry(name, version, capability, size_bytes, created_ms, hosts)
    raise errors.RecordInvalid("an object of the directory is of no known form")


def _host(item: encoding.Value, ids: Sequence[encoding.Value]) -> Held:
    match item:
        case [int(node), int(lease), int(size)] if (
            0 <= node < len(ids) and 0 <= lease < len(ids) and size >= 0
        ):
            found = ids[node], ids[lease]
            match found:
                case (bytes(node_id), bytes(lease_id)) if (
                    len(node_id) == ID_BYTES and len(lease_id) == ID_BYTES
                ):
                    return Held(node_id, lease_id, size)
    raise errors.RecordInvalid("a host in the directory is of no known form")


def _bound(generation: int) -> bytes:
    return encoding.domain("directory-head") + generation.to_bytes(8, "big")


def make_head(
    body: HeadBody, generation: int, key: KeyPair, network: bytes, nonce: bytes
) -> Signed[DirectoryHead]:
    """Encrypt and sign the head of a generation."""
    assert len(nonce) == _NONCE_BYTES
    secret = AESGCM(key.derive("directory/head"))
    sealed = nonce + secret.encrypt(nonce, body.to_bytes(), _bound(generation))
    head = DirectoryHead(locate=locate_of(key), generation=generation, sealed=sealed)
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
    if head.locate != locate_of(key):
        raise errors.RecordInvalid("the head is of another directory")
    secret = AESGCM(key.derive("directory/head"))
    try:
        plain = secret.decrypt(
            head.sealed[:_NONCE_BYTES], head.sealed[_NONCE_BYTES:], _bound(head.generation)
        )
    except (InvalidTag, ValueError):
        raise errors.RecordInvalid("the head does not open under this identity") from None
    return HeadBody.from_bytes(plain, size_max=limits.DIRECTORY_HEAD_BYTES_MAX)


def newest(
    raws: Sequence[bytes], key: KeyPair, network: bytes
) -> tuple[Signed[DirectoryHead], HeadBody] | None:
    """Return the valid head with the highest generation; None if none is valid."""
    best: tuple[Signed[DirectoryHead], HeadBody] | None = None
    for raw in raws:
        try:
            head = open_head(raw, key.node_id, network)
            if best is not None and head.record.generation <= best[0].record.generation:
                continue
            best = head, open_body(head.record, key)
        except errors.XscError:
            continue
    return best
