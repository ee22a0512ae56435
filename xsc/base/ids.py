"""Identifiers and their text forms.

An identifier is `bytes` in records and lower-case base32 without padding
(RFC 4648) in text: 52 characters for 32 bytes. People see a short form, the
first ten characters.
"""

from __future__ import annotations

import base64
import re

from xsc.base.errors import ArgumentInvalid

ID_BYTES = 32
TEXT_CHARS = 52
SHORT_CHARS = 10
_TEXT = re.compile(r"[a-z2-7]+")


def to_text(raw: bytes) -> str:
    """Return the base32 text of bytes, lower case and without padding."""
    return base64.b32encode(raw).decode().rstrip("=").lower()


def from_text(text: str) -> bytes:
    """Return the bytes of a base32 text.

    Only the one text that `to_text` gives for some bytes is accepted, so that
    text can be compared instead of bytes.

    Raises:
        ArgumentInvalid: not base32, upper case, padded, or with stray low bits.
    """
    if not _TEXT.fullmatch(text):
        raise ArgumentInvalid("that is not base32 text (a-z and 2-7)")
    try:
        raw = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except ValueError:
        raise ArgumentInvalid("that base32 text has an impossible length") from None
    if to_text(raw) != text:
        raise ArgumentInvalid("that base32 text has stray bits at its end")
    return raw


def short(raw: bytes) -> str:
    """Return the form for people: the first ten characters of the text."""
    return to_text(raw)[:SHORT_CHARS]


def node_id_from_text(text: str) -> bytes:
    """Return the 32 bytes of a node id given as text.

    Raises:
        ArgumentInvalid: not the text of 32 bytes.
    """
    if len(text) != TEXT_CHARS:
        raise ArgumentInvalid(
            f"a node id has {TEXT_CHARS} characters, this has {len(text)}",
            hint="`xsc node status` shows a node's id; a peer may also go by its name",
        )
    return from_text(text)
