"""Ranges of bytes, as HTTP (RFC 9110, section 14) and `xsc store get --range` write them.

One range at a time: `1000-1999` with both ends in it, `1000-` to the end, `-500`
for the last bytes.
"""

from __future__ import annotations

import re

from xsc.base.errors import ArgumentInvalid, RangeUnsatisfiable

UNIT = "bytes="
_RANGE = re.compile(r"([0-9]{0,19})-([0-9]{0,19})")


def _numbers(text: str) -> tuple[int | None, int | None]:
    match = _RANGE.fullmatch(text)
    if match is not None:
        first, last = (int(item) if item else None for item in match.groups())
        suffix = first is None and last is not None
        if suffix or (first is not None and (last is None or first <= last)):
            return first, last
    raise ArgumentInvalid(
        f"{text[:60]!r} is no range of bytes",
        hint="write for example 1000-1999, 1000- or -500, one range at a time",
    )


def check_range(text: str) -> str:
    """Return a range that is well formed.

    Raises:
        ArgumentInvalid: it is not.
    """
    _numbers(text)
    return text


def resolve(text: str, size_bytes: int) -> tuple[int, int]:
    """Return the first byte of a range and the one after its last, in an object of that size.

    Raises:
        ArgumentInvalid: not a range.
        RangeUnsatisfiable: no byte of the object lies in it.
    """
    first, last = _numbers(text)
    if first is None:
        assert last is not None
        start, stop = max(0, size_bytes - last), size_bytes
    else:
        start = first
        stop = size_bytes if last is None else min(last + 1, size_bytes)
    if start >= stop:
        raise RangeUnsatisfiable(f"the object has {size_bytes} bytes, none of them in {text}")
    return start, stop


def from_header(value: str, size_bytes: int) -> tuple[int, int]:
    """Return what a `Range` field asks for, as `resolve`.

    Raises:
        ArgumentInvalid, RangeUnsatisfiable: as `resolve`; another unit is no range either.
    """
    if not value.startswith(UNIT):
        raise ArgumentInvalid("ranges are counted in bytes", hint="send `Range: bytes=1000-1999`")
    return resolve(value.removeprefix(UNIT).strip(), size_bytes)


def content_range(start: int, stop: int, size_bytes: int) -> str:
    """Return the `Content-Range` field of an answer."""
    return f"bytes {start}-{stop - 1}/{size_bytes}"


def read_content_range(value: str) -> tuple[int, int] | None:
    """Return the first byte of an answer and the size of the object; None where it is malformed."""
    match = re.fullmatch(r"bytes ([0-9]{1,19})-[0-9]{1,19}/([0-9]{1,19})", value)
    return None if match is None else (int(match[1]), int(match[2]))
