"""Reads the fields of a decoded message header, refusing what does not fit."""

from __future__ import annotations

from collections.abc import Mapping

from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid


def _missing(name: str, wanted: str) -> RecordInvalid:
    return RecordInvalid(f"the field '{name}' must be {wanted}")


def take_int(
    header: Mapping[str, Value], name: str, *, least: int = 0, most: int = 2**63 - 1
) -> int:
    """Return an integer from `least` to `most`."""
    value = header.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _missing(name, f"an integer from {least} to {most}")
    return value


def take_bool(header: Mapping[str, Value], name: str) -> bool:
    """Return a truth value."""
    value = header.get(name)
    if not isinstance(value, bool):
        raise _missing(name, "true or false")
    return value


def take_str(header: Mapping[str, Value], name: str, *, most: int = 1024) -> str:
    """Return a text of at most `most` characters."""
    value = header.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise _missing(name, f"a text of at most {most} characters")
    return value


def take_bytes(header: Mapping[str, Value], name: str, *, size: int | None = None) -> bytes:
    """Return bytes, of exactly `size` where it is given."""
    value = header.get(name)
    if not isinstance(value, bytes) or (size is not None and len(value) != size):
        raise _missing(name, "bytes" if size is None else f"{size} bytes")
    return value


def take_opt_bytes(
    header: Mapping[str, Value], name: str, *, size: int | None = None
) -> bytes | None:
    """Return bytes, or None where the field is absent or null."""
    if header.get(name) is None:
        return None
    return take_bytes(header, name, size=size)


def take_list(header: Mapping[str, Value], name: str, *, most: int = 4096) -> list[Value]:
    """Return a list of at most `most` items."""
    value = header.get(name)
    if not isinstance(value, list) or len(value) > most:
        raise _missing(name, f"a list of at most {most} items")
    return value


def take_texts(header: Mapping[str, Value], name: str, *, most: int) -> list[str]:
    """Return a list of at most `most` texts, of any length."""
    found: list[str] = []
    for item in take_list(header, name, most=most):
        if not isinstance(item, str):
            raise _missing(name, "a list of texts")
        found.append(item)
    return found


def take_map(header: Mapping[str, Value], name: str) -> dict[str, Value]:
    """Return a map."""
    value = header.get(name)
    if not isinstance(value, dict):
        raise _missing(name, "a map")
    return value
