"""The head of a request to a peer, and of what a peer answers, read to the letter.

Peers answer in one form: HTTP/1.1, a length, no field twice, nothing chunked. What
differs from it is no answer of a peer and is refused; there is no second parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from xsc.base.errors import FrameInvalid

END = b"\r\n\r\n"
_LINE = re.compile(r"HTTP/1\.1 ([2-5][0-9]{2})(?: [\x20-\x7e]{0,64})?")
_FIELD = re.compile(r"([A-Za-z0-9-]{1,64}):([\t\x20-\x7e]*)")
"""Each field matches in one way at most; what is blank around the value is taken off afterwards."""
_LENGTH = re.compile(r"0|[1-9][0-9]{0,15}")
FIELDS_MAX = 32


@dataclass(frozen=True, slots=True)
class Head:
    """What an answer begins with. Names of fields are lower case."""

    status: int
    headers: Mapping[str, str]
    size_bytes: int
    """Of the body."""
    keeps: bool
    """Whether the connection serves further requests."""


def request_head(
    method: str, path: str, host: str, headers: Mapping[str, str], size_bytes: int
) -> bytes:
    """Return the head of a request; fields, path and host must be of this node's making."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    length = f"content-length: {size_bytes}\r\n" if size_bytes or method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{fields}{length}\r\n".encode("ascii")


def read_head(raw: bytes) -> Head:
    """Return the head of an answer, given without the empty line that ends it.

    Raises:
        FrameInvalid: it has another form than those of peers.
    """
    try:
        line, *fields = raw.decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        raise FrameInvalid("its head is not ASCII") from None
    first = _LINE.fullmatch(line)
    if first is None or len(fields) > FIELDS_MAX:
        raise FrameInvalid("it is no answer of HTTP/1.1 as peers give it")
    headers: dict[str, str] = {}
    for field in fields:
        found = _FIELD.fullmatch(field)
        value = "" if found is None else found[2].strip(" \t")
        if found is None or "\t" in value or found[1].lower() in headers:
            raise FrameInvalid("a field of its head is malformed, or there twice")
        headers[found[1].lower()] = value
    length = headers.get("content-length")
    if length is None or "transfer-encoding" in headers:
        raise FrameInvalid("it announces no length")
    if not _LENGTH.fullmatch(length):
        raise FrameInvalid("it announces no length that is a number")
    keeps = headers.get("connection", "keep-alive").lower() == "keep-alive"
    return Head(int(first[1]), headers, int(length), keeps)
