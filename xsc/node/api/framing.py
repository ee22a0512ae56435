"""Requests of several parts: a big-endian 32-bit length, that many bytes of JSON, then bytes."""

from __future__ import annotations

from aiohttp import web

from xsc.base.errors import ArgumentInvalid, TooLarge
from xsc.node.api.app import JSON_BYTES_MAX, B, parse

LENGTH_BYTES = 4


def cut_short(what: str) -> ArgumentInvalid:
    """Return the error for a request that ends too early."""
    return ArgumentInvalid(f"the request ends within {what}")


def too_long() -> ArgumentInvalid:
    """Return the error for a request that goes on after its last part."""
    return ArgumentInvalid("the request goes on after its end")


def check_head(size: int) -> None:
    """Return if JSON of that many bytes is taken.

    Raises:
        TooLarge: it is not.
    """
    if size > JSON_BYTES_MAX:
        raise TooLarge(f"the JSON of a request is bounded to {JSON_BYTES_MAX} bytes")


async def exactly(request: web.Request, size: int, what: str) -> bytes:
    """Return the next bytes of a request.

    Raises:
        ArgumentInvalid: it ends before.
    """
    parts: list[bytes] = []
    left = size
    while left:
        chunk = await request.content.read(left)
        if not chunk:
            raise cut_short(what)
        parts.append(chunk)
        left -= len(chunk)
    return b"".join(parts)


async def head(request: web.Request, kind: type[B]) -> B:
    """Return the JSON in front of a request.

    Raises:
        TooLarge, ArgumentInvalid: over its bound, or not of the model.
    """
    size = int.from_bytes(await exactly(request, LENGTH_BYTES, "its length"), "big")
    check_head(size)
    return parse(await exactly(request, size, "its JSON"), kind)


async def ended(request: web.Request) -> None:
    """Return if nothing follows.

    Raises:
        ArgumentInvalid: something does.
    """
    if await request.content.read(1):
        raise too_long()
