"""Small requests in their plainest form, read and answered without a general HTTP parser.

A call of a small function takes less than a general HTTP server takes for its
request. What a client of ours sends has one form: a POST of HTTP/1.1 with a
length, whole in one or two segments. That form is read here, strictly; whatever
differs from it in anything (another method, a field given twice, a chunked or
larger body, a request right behind another) is not judged here but left to the
general parser, whose word then stands. Nothing is accepted here that it refuses.

`xsc.net.transport.front` reads connections by it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from xsc.base.limits import KIB, PLAIN_BYTES_MAX, PLAIN_HEAD_BYTES_MAX
from xsc.net.transport.port import Buffer

PIECE_BYTES = 128 * KIB
"""Written at once: the event loop copies what the socket does not take. Less than a body brings
that is slow, but not too slow, in NO_PROGRESS_MS."""
_END = b"\r\n\r\n"
_METHOD = b"POST "
_PATH = re.compile(r"/[A-Za-z0-9._/-]*")
"""Without queries, escapes and all else that a parser of URLs may have a view on."""
_FIELDS = re.compile(r"(?:[A-Za-z0-9-]{1,64}:\t?[\x20-\x7e]*(?:\r\n|\Z)){1,32}")
"""Each head matches in one way at most: with two for a field, a fault behind 30 of them would be
looked for in 2**30 ways, by anybody's request."""
_LENGTH = re.compile(r"0|[1-9][0-9]{0,6}")
_NAMES = frozenset(
    {
        "accept",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "signature",
        "signature-input",
        "user-agent",
        "xsc-code",
        "xsc-head-digest",
        "xsc-name",
        "xsc-network",
        "xsc-part",
        "xsc-resume",
        "xsc-size",
        "xsc-survive",
        "xsc-to",
    }
)
"""The fields that our clients send. None changes how a request is read or its connection goes
on; of any other, the general parser may know more than is known here."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A whole request. Names of fields are lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    source: str = ""
    """Whom the connection is counted for."""


def may_begin(data: bytes) -> bool:
    """Say whether a plain request may begin with these bytes, as far as they go."""
    return data[: len(_METHOD)] == _METHOD[: len(data)]


@lru_cache(maxsize=64)
def _known_head(raw: bytes) -> tuple[str, Mapping[str, str]] | None:
    """Return the same as `_head`: a client that calls again sends the same head again."""
    found = _head(raw)
    return None if found is None else (found[0], MappingProxyType(found[1]))


def _head(raw: bytes) -> tuple[str, dict[str, str]] | None:
    """Return path and fields of a head, or None where it is not plain."""
    try:
        line, _, rest = raw.decode("ascii").partition("\r\n")
    except UnicodeDecodeError:
        return None
    parts = line.split(" ")
    if (
        len(parts) != 3
        or not _PATH.fullmatch(parts[1])
        or parts[2] != "HTTP/1.1"
        or not _FIELDS.fullmatch(rest)
    ):
        return None
    headers: dict[str, str] = {}
    for field in rest.split("\r\n"):
        name, _, value = field.partition(":")
        name = name.lower()
        if name in headers or name not in _NAMES:
            return None
        headers[name] = value.strip(" \t")
    return parts[1], headers


def read(data: bytes, paths: Collection[str] | None, source: str = "") -> Plain | int | None:
    """Return the request that the bytes are.

    Args:
        data: all that a connection has brought since its last request.
        paths: which are answered in the plain form; None for all.
        source: whom the connection is counted for.

    Returns:
        The request; or how many bytes it has at least, more than there are; or None
        where the general parser must read it.
    """
    if not may_begin(data):
        return None
    end = data.find(_END, 0, PLAIN_HEAD_BYTES_MAX)
    if end < 0:
        return len(data) + 1 if len(data) < PLAIN_HEAD_BYTES_MAX else None
    head = data[:end]
    # A signed head is never the same; one that is refused is not seen again either.
    found = _head(head) if b"ignature" in head else _known_head(head)
    if found is None:
        return None
    path, headers = found
    length = headers.get("content-length", "")
    if "host" not in headers or not _LENGTH.fullmatch(length):
        return None
    if paths is not None and path not in paths:
        return None
    start = end + len(_END)
    whole = start + int(length)
    if whole > PLAIN_BYTES_MAX or len(data) > whole:
        return None
    return whole if len(data) < whole else Plain(path, headers, data[start:], source)


def head_of(status: int, headers: Mapping[str, str], size_bytes: int) -> bytes:
    """Return the head of an answer; its fields must be of this node's making."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    reason = "OK" if status < 300 else "Refused"
    return (
        f"HTTP/1.1 {status} {reason}\r\n{fields}content-length: {size_bytes}\r\nserver: xsc\r\n\r\n"
    ).encode("ascii")


def pieces(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """Yield the buffers in pieces of PIECE_BYTES at most; small bodies as one."""
    if sum(len(buffer) for buffer in buffers) <= PIECE_BYTES:
        yield b"".join(buffers)
        return
    for buffer in buffers:
        view = memoryview(buffer)
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]
