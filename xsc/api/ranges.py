"""Ranges of bytes, as HTTP (RFC 9110, section 14) and `xsc store get --range` write them.

One range at a time: `1000-1999` with both ends in it, `1000-` to the end, `-500`
for the last bytes.
"""

from __future__ import annotations

import re

from xsc.base.errors import ArgumentInvalid, RangeUnsatisfiable

UNIT = "bytes="
_RANGE = re.compile(r"([0-9]{0,19})-([0-9]{0,19})")


def check_range(text: str) -> str:
    """Return a range that is well formed.

    Raises:
        ArgumentInvalid: it is not.
    """
    match = _RANGE.fullmatch(text)
    first, last = match.groups() if match is not None else ("", "")
    if not (first or last) or (first and last and int(first) > int(last)):
        raise ArgumentInvalid(
            f"{text[:60]!r} is no range of bytes",
            hint="write for example 1000-1999, 1000- or -500, one range at a time",
        )
    return text


def from_header(value: str, size_bytes: int) -> tuple[int, int]:
    """Return the first byte that a `Range` field asks for, and the one after its last.

    Raises:
        ArgumentInvalid: not a range, or counted in another unit.
        RangeUnsatisfiable: no byte of the object lies in it.
    """
    if not value.startswith(UNIT):
        raise ArgumentInvalid("ranges are counted in bytes", hint="send `Range: bytes=1000-1999`")
    text = check_range(value.removeprefix(UNIT).strip())
    first, last = text.split("-")
    start = int(first) if first else max(0, size_bytes - int(last))
    stop = min(int(last) + 1, size_bytes) if first and last else size_bytes
    if start >= stop:
        raise RangeUnsatisfiable(f"the object has {size_bytes} bytes, none of them in {text}")
    return start, stop


def content_range(start: int, stop: int, size_bytes: int) -> str:
    """Return the `Content-Range` field of an answer."""
    return f"bytes {start}-{stop - 1}/{size_bytes}"


def read_content_range(value: str) -> tuple[int, int] | None:
    """Return the first byte of an answer and the size of the object; None where it is malformed."""
    match = re.fullmatch(r"bytes ([0-9]{1,19})-[0-9]{1,19}/([0-9]{1,19})", value)
    return None if match is None else (int(match[1]), int(match[2]))
