"""Calls for the space: get, put, delete, list, watch, count and compact."""

from __future__ import annotations

from base64 import b64decode

from xsc.api import space as api
from xsc.api.endpoint import Nothing
from xsc.base.errors import ArgumentInvalid
from xsc.client.calls import FSCK_TIMEOUT_S
from xsc.client.core import Core, Document, Events
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


class SpaceCalls:
    """The calls of one node. An address is `[OWNER:]PATH`, with OWNER the name or id of a node."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def get(self, address: str, sequence: int | None = None) -> Document:
        """Return the newest record at an address, or a replaced one, with its `value_of`."""
        return self.core.ask(api.GET, api.Get(at=address_of(address), sequence=sequence))

    def put(self, path: str, value: bytes) -> Document:
        """Write a value at a path of this node; return the `sequence` of its record."""
        return self.core.ask(api.PUT, api.At(at=address_of(path)), value)

    def remove(self, path: str) -> Document:
        """Delete a path of this node; return the `sequence` of the deletion."""
        return self.core.ask(api.REMOVE, api.At(at=address_of(path)))

    def records(self, prefix: str = "") -> Document:
        """Return the records under a prefix, without values."""
        return self.core.ask(api.LIST, api.Under(under=address_of(prefix)))

    def versions(self, path: str) -> Document:
        """Return the replaced records of an own path that are kept, without values."""
        return self.core.ask(api.VERSIONS, api.At(at=address_of(path)))

    def watch(self, prefix: str = "") -> Events:
        """Return each change under a prefix from now on, to be used in a `with`."""
        return self.core.events(api.WATCH, api.Under(under=address_of(prefix)))

    def stats(self) -> Document:
        """Return how much the space holds."""
        return self.core.ask(api.STATS, Nothing())

    def diagnostics(self) -> Document:
        """Return programs, subscriptions, peers and the node's place in causality."""
        return self.core.ask(api.DIAGNOSTICS, Nothing())

    def compact(self) -> Document:
        """Have the node drop what it need not keep of the space; return its stats after that."""
        return self.core.ask(api.COMPACT, Nothing(), timeout_s=FSCK_TIMEOUT_S)
