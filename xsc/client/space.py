"""Addresses and values of the space, as the node is asked for them and shows them."""

from __future__ import annotations

from base64 import b64decode

from xsc.base.errors import ArgumentInvalid
from xsc.space.paths import parse_address

ADDRESS_BYTES_MAX = 2048
"""Of `[OWNER:]PATH`: above any that is one, and below what a request's first line takes."""


def address_of(text: str) -> str:
    """Return `[OWNER:]PATH` if it is one.

    Raises:
        ArgumentInvalid: it is none.
    """
    owner, _ = parse_address(text)
    if len(text.encode(errors="surrogatepass")) > ADDRESS_BYTES_MAX:
        raise ArgumentInvalid("the owner before the colon is too long for a name or an id")
    if owner is not None and not owner.isprintable():
        raise ArgumentInvalid("the owner before the colon is no name and no id")
    return text


def value_of(shown: str | dict[str, str]) -> bytes:
    """Return the bytes of a value that the node shows: text, or {"base64": text}."""
    return shown.encode() if isinstance(shown, str) else b64decode(shown["base64"])
