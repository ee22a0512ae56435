"""Capabilities: the strings that let their holder find, check and read one object.

    xsc:r:<base32 of version ‖ read secret ‖ manifest hash ‖ checksum>
    xsc:v:<base32 of version ‖ verify key  ‖ manifest hash ‖ checksum>

Everything else follows from the secret, one way only (HKDF-SHA-256):

    read secret ──► content key                  opens the segments
         └───────► verify key ──► manifest key   opens the manifest
                        └───────► locate id      finds the object at peers

so a read capability gives a verify capability, which gives the locate id, and
none of them gives what stands before it. No capability carries authority: none
lets its holder change, move or delete anything. The checksum is there to name typing
errors; it protects nothing. docs/design/storage.md; vectors:
tests/vectors/capability.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from xsc.base.encoding import tagged_sha256
from xsc.base.errors import ArgumentInvalid, CapabilityInvalid
from xsc.base.ids import from_text, to_text
from xsc.identity.keys import derive

VERSION = 1
SECRET_BYTES = 32
_HASH_BYTES = 32
_CHECK_BYTES = 4
_RAW_BYTES = 1 + SECRET_BYTES + _HASH_BYTES + _CHECK_BYTES
_READ: Final = "xsc:r:"
_VERIFY: Final = "xsc:v:"
TEXT_CHARS = len(_READ) + len(to_text(bytes(_RAW_BYTES)))
_HINT = f"a capability is one word of {TEXT_CHARS} characters that begins with {_READ} or {_VERIFY}"


@dataclass(frozen=True, slots=True)
class VerifyCapability:
    """May find and check the object, not read it."""

    verify_key: bytes = field(repr=False)
    manifest_hash: bytes

    @property
    def manifest_key(self) -> bytes:
        """Opens the manifest."""
        return derive(self.verify_key, "object/manifest")

    @property
    def locate(self) -> bytes:
        """The id under which peers keep the object."""
        return derive(self.verify_key, "object/locate")

    def to_text(self) -> str:
        """Return the capability string."""
        return _text(_VERIFY, self.verify_key, self.manifest_hash)


@dataclass(frozen=True, slots=True)
class ReadCapability:
    """May read the object."""

    read_secret: bytes = field(repr=False)
    manifest_hash: bytes

    @property
    def content_key(self) -> bytes:
        """Opens the segments."""
        return content_key(self.read_secret)

    @property
    def verify(self) -> VerifyCapability:
        """The capability to find and check the same object."""
        return VerifyCapability(verify_key(self.read_secret), self.manifest_hash)

    def to_text(self) -> str:
        """Return the capability string."""
        return _text(_READ, self.read_secret, self.manifest_hash)


def content_key(read_secret: bytes) -> bytes:
    """Return the key of the segments."""
    return derive(read_secret, "object/content")


def verify_key(read_secret: bytes) -> bytes:
    """Return the key from which the manifest key and the locate id follow."""
    return derive(read_secret, "object/verify")


def _check(prefix: str, payload: bytes) -> bytes:
    return tagged_sha256("capability", prefix.encode(), payload)[:_CHECK_BYTES]


def _text(prefix: str, secret: bytes, manifest_hash: bytes) -> str:
    payload = bytes([VERSION]) + secret + manifest_hash
    return prefix + to_text(payload + _check(prefix, payload))


def _wrong_length(text: str) -> CapabilityInvalid:
    return CapabilityInvalid(
        f"the capability has {len(text)} characters instead of {TEXT_CHARS}", hint=_HINT
    )


def _split(text: str) -> tuple[str, bytes, bytes]:
    if text.startswith(_READ):
        prefix: str = _READ
    elif text.startswith(_VERIFY):
        prefix = _VERIFY
    else:
        raise CapabilityInvalid("that is no capability: it does not begin with xsc:r:", hint=_HINT)
    try:
        raw = from_text(text.removeprefix(prefix))
    except ArgumentInvalid:
        if len(text) != TEXT_CHARS:
            raise _wrong_length(text) from None
        raise CapabilityInvalid(
            "the capability has a character that does not belong", hint=_HINT
        ) from None
    if len(raw) <= _CHECK_BYTES or (raw[0] == VERSION and len(raw) != _RAW_BYTES):
        raise _wrong_length(text)
    # Every version ends in this checksum, so a typing error never looks like a newer version.
    payload, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    if check != _check(prefix, payload):
        raise CapabilityInvalid("the capability is mistyped: its checksum does not fit", hint=_HINT)
    if payload[0] != VERSION:
        raise CapabilityInvalid(
            f"the capability is of version {payload[0]}, known here is {VERSION}",
            hint="a newer xsc may read it",
        )
    return prefix, payload[1 : 1 + SECRET_BYTES], payload[1 + SECRET_BYTES :]


def parse(text: str) -> ReadCapability | VerifyCapability:
    """Return the capability that a string stands for.

    Raises:
        CapabilityInvalid: wrong beginning, cut short, mistyped, or of a newer version.
    """
    prefix, secret, manifest_hash = _split(text)
    if prefix == _READ:
        return ReadCapability(secret, manifest_hash)
    return VerifyCapability(secret, manifest_hash)


def parse_read(text: str) -> ReadCapability:
    """Return a read capability.

    Raises:
        CapabilityInvalid: as `parse`, or the capability does not allow reading.
    """
    found = parse(text)
    if isinstance(found, VerifyCapability):
        raise CapabilityInvalid(
            "this capability lets its holder check the object, not read it",
            hint=f"a read capability begins with {_READ}",
        )
    return found


def parse_verify(text: str) -> VerifyCapability:
    """Return the verify capability that a string is, or contains.

    Raises:
        CapabilityInvalid: as `parse`.
    """
    found = parse(text)
    return found.verify if isinstance(found, ReadCapability) else found
