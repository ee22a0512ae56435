"""Heads of HTTP/1.1 messages, as XSC's own clients and nodes send them.

llhttp (`httptools`) reads a head. What it reads is then compared with the one form that our
own ends use: a length, printable ASCII, no field twice. This module frames bodies by that
length and never sees one.

A request of another form is not refused here: the general server gets it
(`xsc.net.transport.fast_path`). An answer of another form is refused; no second parser reads it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TypeVar

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser

from xsc.base.errors import FrameInvalid
from xsc.base.limits import FAST_PATH_BYTES_MAX, FAST_PATH_HEAD_BYTES_MAX

END = b"\r\n\r\n"
"""The empty line that ends a head."""
FIELDS_MAX = 32
_START = b"POST /"
_PATH = re.compile(rb"/[A-Za-z0-9._/-]*")
"""Paths without queries, escapes and all else that URL parsers read differently."""
_REQUEST_LENGTH = re.compile(r"0|[1-9][0-9]{0,6}")
_ANSWER_LENGTH = re.compile(r"0|[1-9][0-9]{0,15}")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 [2-5][0-9]{2}(?: [\x20-\x7e]{0,64})?\r\n")
"""llhttp also takes a status line without its blanks, and any byte in the reason."""
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
"""The fields that our clients send. None of them changes how a request is framed or whether its
connection is kept; the general server knows what others mean."""

P = TypeVar("P", HttpRequestParser, HttpResponseParser)


@dataclass(frozen=True, slots=True)
class SmallRequest:
    """A whole request. Names of fields are lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    source: str = ""
    """The source that its connection is counted for (`xsc.net.transport.addresses`)."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The head of an answer. Names of fields are lower case."""

    status: int
    headers: Mapping[str, str]
    size_bytes: int
    """Of the body."""
    keeps: bool
    """Whether the connection serves further requests."""


class _Head:
    """Collects what llhttp reports of one head, which must be ASCII."""

    __slots__ = ("fields", "headers", "is_whole", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[str, str] = {}
        self.fields = 0
        """How many there are, those with equal names included."""
        self.is_whole = False

    def on_url(self, part: bytes) -> None:
        """Add to the target of a request."""
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a field."""
        self.headers[name.decode().lower()] = value.decode().rstrip(" ")
        self.fields += 1

    def on_headers_complete(self) -> None:
        """End the head."""
        self.is_whole = True


def _parsed(kind: type[P], raw: bytes) -> tuple[P, _Head] | None:
    """Return what llhttp reads of one head of printable ASCII with no field twice, or None."""
    # llhttp refuses all other control characters.
    if raw.find(END) != len(raw) - len(END) or not raw.isascii() or b"\t" in raw:
        return None
    head = _Head()
    parser = kind(head)
    try:
        parser.feed_data(raw)
    except (HttpParserError, HttpParserUpgrade):
        return None
    if (
        not head.is_whole
        or parser.get_http_version() != "1.1"
        or not len(head.headers) == head.fields <= FIELDS_MAX
    ):
        return None
    return parser, head


@lru_cache(maxsize=64)
def _known_head(raw: bytes) -> tuple[str, Mapping[str, str]] | None:
    """Return the same as `_request_head`: clients that call again send the same head again."""
    found = _request_head(raw)
    return None if found is None else (found[0], MappingProxyType(found[1]))


def _request_head(raw: bytes) -> tuple[str, dict[str, str]] | None:
    """Return path and fields of a request; None if they are not as our clients send them."""
    found = _parsed(HttpRequestParser, raw)
    if found is None:
        return None
    head = found[1]
    if not _PATH.fullmatch(head.target) or not head.headers.keys() <= _NAMES:
        return None
    return head.target.decode(), head.headers


def read_request(
    data: bytes, paths: Collection[str] | None, source: str = ""
) -> SmallRequest | int | None:
    """Return the small request that the bytes are.

    Args:
        data: all that a connection has brought since its last request.
        paths: the paths of small requests; None for all.
        source: the source that the connection is counted for.

    Returns:
        The request; or the least size of it in bytes, which is more than there are; or None
        if the general server must read it.
    """
    if data[: len(_START)] != _START[: len(data)]:
        return None
    end = data.find(END, 0, FAST_PATH_HEAD_BYTES_MAX)
    if end < 0:
        return len(data) + 1 if len(data) < FAST_PATH_HEAD_BYTES_MAX else None
    start = end + len(END)
    head = data[:start]
    # No two signed heads are equal: they would only push others out of the cache.
    found = _request_head(head) if b"ignature" in head else _known_head(head)
    if found is None:
        return None
    path, headers = found
    length = headers.get("content-length", "")
    if "host" not in headers or not _REQUEST_LENGTH.fullmatch(length):
        return None
    if paths is not None and path not in paths:
        return None
    whole = start + int(length)
    if whole > FAST_PATH_BYTES_MAX or len(data) > whole:
        return None
    return whole if len(data) < whole else SmallRequest(path, headers, data[start:], source)


def read_answer(raw: bytes) -> AnswerHead:
    """Return the head of an answer; `raw` ends with its empty line.

    Raises:
        FrameInvalid: peers do not answer in that form.
    """
    found = _parsed(HttpResponseParser, raw)
    if found is None or not _STATUS_LINE.match(raw):
        raise FrameInvalid("it is no answer of HTTP/1.1 as peers give it")
    parser, head = found
    headers = head.headers
    length = headers.get("content-length")
    if length is None or "transfer-encoding" in headers:
        raise FrameInvalid("it announces no length")
    if not _ANSWER_LENGTH.fullmatch(length):
        raise FrameInvalid("it announces no length that is a number")
    keeps = headers.get("connection", "keep-alive").lower() == "keep-alive"
    return AnswerHead(parser.get_status_code(), headers, int(length), keeps)


def request_head(
    method: str, path: str, host: str, headers: Mapping[str, str], size_bytes: int
) -> bytes:
    """Return the head of a request; this node must have made its fields, path and host."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    length = f"content-length: {size_bytes}\r\n" if size_bytes or method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{fields}{length}\r\n".encode("ascii")


def answer_head(status: int, headers: Mapping[str, str], size_bytes: int) -> bytes:
    """Return the head of an answer; this node must have made its fields."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    reason = "OK" if status < 300 else "Refused"
    return (
        f"HTTP/1.1 {status} {reason}\r\n{fields}content-length: {size_bytes}\r\nserver: xsc\r\n\r\n"
    ).encode("ascii")
