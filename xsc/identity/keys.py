"""Key pairs, signatures, and keys derived from them.

A node's identity is an Ed25519 key pair (RFC 8032); its id is the 32-byte
public key. Every other key of the node is derived from the private seed with
HKDF-SHA-256 (RFC 5869) under a domain tag, so that the one key file is all
that a recovery needs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from xsc.base import encoding, ids
from xsc.base.errors import SignatureInvalid

SEED_BYTES = 32
KEY_BYTES = 32
SIGNATURE_BYTES = 64
NETWORK_DEFAULT = "xsc"

Unverified: TypeAlias = "tuple[bytes, bytes, bytes]"
"""Author, signature and message: what `verify` is asked with."""
Check: TypeAlias = "Callable[[Sequence[Unverified]], Awaitable[int | None]]"
"""Does as `first_wrong`, beside other work."""


class KeyPair:
    """An Ed25519 private key and what follows from it."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise SignatureInvalid(f"a private key has {SEED_BYTES} bytes, this has {len(seed)}")
        self._seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.node_id: bytes = self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of a message; the same for the same message."""
        return self._private.sign(message)

    def derive(self, tag: str, size: int = KEY_BYTES) -> bytes:
        """Return a secret key of this identity for one use, named by its tag."""
        return derive(self._seed, f"identity/{tag}", size)

    @property
    def seed(self) -> bytes:
        """The private seed; only the key file and the TLS certificate may ask for it."""
        return self._seed

    def __repr__(self) -> str:
        """Return a text without the secret."""
        return f"KeyPair({self.node_id.hex()[:8]}…)"


def derive(secret: bytes, tag: str, size: int = KEY_BYTES) -> bytes:
    """Return `size` bytes that follow from a secret for the use named by the tag."""
    return HKDF(
        algorithm=SHA256(), length=size, salt=None, info=encoding.domain(f"key/{tag}")
    ).derive(secret)


@lru_cache(maxsize=4096)
def _public(node_id: bytes) -> Ed25519PublicKey:
    if not ids.is_strong(node_id):
        raise ValueError("everybody could sign for this key")
    return Ed25519PublicKey.from_public_bytes(node_id)


def verify(node_id: bytes, signature: bytes, message: bytes) -> None:
    """Return if the signature is the node's over the message.

    Raises:
        SignatureInvalid: it is not, or the id is no public key that somebody can have.
    """
    try:
        _public(node_id).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise SignatureInvalid("the signature does not fit its author and content") from None


def first_wrong(items: Sequence[Unverified]) -> int | None:
    """Return the place of the first signature that does not fit; None where all do."""
    for place, item in enumerate(items):
        try:
            verify(*item)
        except SignatureInvalid:
            return place
    return None


def network_id(name: str) -> bytes:
    """Return the 32 bytes that keep the signatures of one network out of all others."""
    return encoding.tagged_sha256("network", name.encode())
