"""Identifiers and their text forms.

An identifier is `bytes` in records and lower-case base32 without padding
(RFC 4648) in text: 52 characters for 32 bytes. People see a short form, the
first ten characters.
"""

from __future__ import annotations

import base64
import re
from functools import lru_cache

from xsc.base import errors, limits

ID_BYTES = 32
TEXT_CHARS = 52
SHORT_CHARS = 10
_TEXT = re.compile(r"[a-z2-7]+")
_FIELD = 2**255 - 19
_EIGHTH = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
"""The y of two of the four points that have order 8; the others have its opposite."""
_SMALL_Y = frozenset({0, 1, _FIELD - 1, _EIGHTH, _FIELD - _EIGHTH})


def to_text(raw: bytes) -> str:
    """Return the base32 text of bytes, lower case and without padding."""
    return base64.b32encode(raw).decode().rstrip("=").lower()


@lru_cache(maxsize=2 * limits.PEERS_MAX)
def node_text(node_id: bytes) -> str:
    """Return the text of a node id; kept, as base32 is slow and a node's peers stay the same."""
    return to_text(node_id)


def from_text(text: str) -> bytes:
    """Return the bytes of a base32 text.

    Only the one text that `to_text` gives for some bytes is accepted, so that
    text can be compared instead of bytes.

    Raises:
        ArgumentInvalid: not base32, upper case, padded, or with stray low bits.
    """
    if not _TEXT.fullmatch(text):
        raise errors.ArgumentInvalid("that is not base32 text (a-z and 2-7)")
    try:
        raw = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except ValueError:
        raise errors.ArgumentInvalid("that base32 text has an impossible length") from None
    if to_text(raw) != text:
        raise errors.ArgumentInvalid("that base32 text has stray bits at its end")
    return raw


def short(raw: bytes) -> str:
    """Return the form for people: the first ten characters of the text."""
    return node_text(raw)[:SHORT_CHARS]


def is_strong(node_id: bytes) -> bool:
    """Say whether 32 bytes can be the public key of somebody.

    Under a point of small order one signature fits every eighth message at least, and under
    the neutral point all: whoever likes could sign for it. A y that is not below the field's
    size is the second form of a point, and so would be a second id of one key.
    """
    y = int.from_bytes(node_id, "little") & (2**255 - 1)
    return y < _FIELD and y not in _SMALL_Y


@lru_cache(maxsize=2 * limits.PEERS_MAX)
def node_id_from_text(text: str) -> bytes:
    """Return the 32 bytes of a node id given as text; kept, as `node_text`.

    Raises:
        ArgumentInvalid: not the text of 32 bytes, or of no key that somebody can have.
    """
    if len(text) != TEXT_CHARS:
        raise errors.ArgumentInvalid(
            f"a node id has {TEXT_CHARS} characters, this has {len(text)}",
            hint="`xsc node status` shows a node's id; a peer may also go by its name",
        )
    raw = from_text(text)
    if not is_strong(raw):
        raise errors.ArgumentInvalid("that is no node's id: everybody could sign for such a key")
    return raw
