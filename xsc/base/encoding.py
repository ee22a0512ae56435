"""Canonical bytes of a value, and back: the only encoding hashed or signed.

Strict DAG-CBOR (RFC 8949 core deterministic encoding as IPLD narrows it):
shortest integers, keys sorted by length and then bytes, definite lengths, no
floats, no tags, no duplicate keys. `cbor2` alone accepts unsorted, duplicate,
indefinite and trailing bytes; `libipld` alone lets over-long integers pass. So
decoding parses with libipld, encodes again and compares: exactly one byte
string stands for each value (docs/design/base.md).

libipld encodes eight times faster, but writes byte strings that look like a CID
as tag 42: one in some 2 500 hashes, and the bits of the number 1. Where the
beginning of such a link stands in what it wrote, encoding makes every link the byte
string that it was, and takes the result only if it decodes to the value again;
everything else is cbor2's, which takes four times as long. What anybody sends is not
decoded so: where links cannot be undone, the value is encoded with another first byte
in each byte string, so that none looks like a CID, and all other bytes are compared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from functools import lru_cache
from operator import is_not
from typing import TypeAlias

import cbor2
import libipld

from xsc.base.errors import RecordInvalid, TooLarge
from xsc.base.limits import RECORD_BYTES_MAX

RECORD_DEPTH_MAX = 32
CONTAINER_BYTES = 32
"""A value has at most one list or map for so many bytes of its bound."""

Value: TypeAlias = "bool | int | str | bytes | list[Value] | dict[str, Value] | None"
"""What can be encoded. Integers lie in -2^64 to 2^64 - 1."""


_ANY_NUMBER = 2**63
_TAG_42 = b"\xd8\x2a"
_LINK = re.compile(rb"\xd8\x2a([\x41-\x57]|\x58[\x18-\xff])\x00", re.DOTALL)
"""The beginning of a link: tag 42, the head of up to 255 bytes, and the first of them, 0."""
_ANY_LINK = re.compile(rb"\xd8\x2a(?:[\x41-\x57]|\x58.|\x59..|\x5a.{4}|\x5b.{8})\x00", re.DOTALL)
"""The same of any length. Without it libipld wrote no link."""
_NO_CID = b"\xff"
"""With this a byte string begins that libipld never takes for a CID."""
_LEAVES = frozenset({str, bytes, bool, int, type(None)})
"""Types of what holds no other value, and is encoded or refused by libipld as it must be."""


def _check(value: object, depth: int, most: int) -> int:
    """Return how many lists and maps a value has, after floats and deep nesting were refused.

    Integers, keys and texts are libipld's own to refuse; why, says `_fault_of`.

    Raises:
        RecordInvalid: they are more than `most`, or it is nothing that is encoded.
    """
    if isinstance(value, dict):
        items: Collection[object] = value.values()
    elif isinstance(value, list):
        items = value
    elif isinstance(value, float):
        raise RecordInvalid("float cannot be encoded")
    else:
        return 0
    if value and depth >= RECORD_DEPTH_MAX:
        raise RecordInvalid(f"nested deeper than {RECORD_DEPTH_MAX} levels")
    # Most containers hold leaves alone, and this asks for all of them without a turn of Python.
    count = 1
    if not _LEAVES.issuperset(map(type, items)):
        for item in items:
            if type(item) not in _LEAVES:
                count += _check(item, depth + 1, most - count)
                if count > most:
                    raise RecordInvalid("more lists and maps than its bound has room for")
    return count


def _fault_of(value: object) -> str | None:
    """Return why libipld refused a value that passed `_check`; None for a text."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            return "a key is not text"
        value = list(value.values())
    if isinstance(value, list):
        return next(filter(None, map(_fault_of, value)), None)
    if isinstance(value, int):
        return None if -(2**64) <= value < 2**64 else "an integer is outside of 64 bits"
    if value is None or isinstance(value, (str, bytes)):
        return None
    return f"{type(value).__name__} cannot be encoded"


def _bytes_head(found: re.Match[bytes]) -> bytes:
    """Return the head of the byte string that was written as a link: one byte shorter."""
    size = found[1][-1] - (0x41 if len(found[1]) == 1 else 1)
    return bytes((0x40 | size,)) if size < 24 else bytes((0x58, size))


def _canonical(value: object) -> bytes:
    """Return the one byte string of a value that was checked."""
    raw: bytes = libipld.encode_dag_cbor(value)
    if not _ANY_LINK.search(raw):
        return raw
    # Were anything replaced that only looks like a tag, another value would come back; and
    # were a tag left, its two bytes would be.
    raw = _LINK.sub(_bytes_head, raw)
    try:
        if _TAG_42 not in raw and libipld.decode_dag_cbor(raw) == value:
            return raw
    except ValueError:
        pass  # what was replaced was none
    return cbor2.dumps(value, canonical=True)


def _masked(value: object, changed: list[int]) -> object:
    """Return a value with no byte string that looks like a CID; add how many it has changed."""
    items = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(items, list):
        items = [items]
    found: list[object] = [
        _NO_CID + item[1:]
        if type(item) is bytes and item and not item.startswith(_NO_CID)
        else item
        for item in items
    ]
    changed[0] += sum(map(is_not, found, items))
    if not _LEAVES.issuperset(map(type, found)):
        found = [item if type(item) in _LEAVES else _masked(item, changed) for item in found]
    if isinstance(value, dict):
        return dict(zip(value, found, strict=True))
    return found if isinstance(value, list) else found[0]


def _is_canonical(raw: bytes, value: object) -> bool:
    """Say whether bytes are the canonical ones of the checked value that libipld read in them."""
    again: bytes = libipld.encode_dag_cbor(value)
    if not _ANY_LINK.search(again):
        return again == raw
    if _TAG_42 not in raw and _LINK.sub(_bytes_head, again) == raw:
        return True
    changed = [0]
    again = libipld.encode_dag_cbor(_masked(value, changed))
    if len(again) != len(raw):
        return False
    # They differ in one byte of each string that was changed, and in nothing else.
    other = int.from_bytes(raw, "big") ^ int.from_bytes(again, "big")
    return len(raw) - other.to_bytes(len(raw), "big").count(0) == changed[0]


def encode(value: Value) -> bytes:
    """Return the canonical bytes of a value.

    Raises:
        RecordInvalid: a float, a tag, an integer outside of 64 bits, a key that is
            not text, text that is not Unicode (half a surrogate pair, as in file
            names that are not UTF-8), or nesting deeper than RECORD_DEPTH_MAX.
    """
    _check(value, 0, _ANY_NUMBER)
    try:
        return _canonical(value)
    except ValueError:
        surrogate = "a text holds half a surrogate pair, which is no Unicode"
        raise RecordInvalid(_fault_of(value) or surrogate) from None


def decode(raw: bytes, *, size_max: int = RECORD_BYTES_MAX) -> Value:
    """Return the value of canonical bytes.

    Empty lists are a byte each and cost a hundred times as much, in memory and in time: there may
    be one list or map for CONTAINER_BYTES of `size_max`.

    Raises:
        TooLarge: longer than `size_max` bytes.
        RecordInvalid: not the canonical bytes of any value, or of too many lists and maps.
    """
    if len(raw) > size_max:
        raise TooLarge(f"a record of {len(raw)} bytes is over its bound of {size_max}")
    try:
        value = libipld.decode_dag_cbor(raw)
        _check(value, 0, size_max // CONTAINER_BYTES)
    except RecordInvalid:
        raise
    except (ValueError, RecursionError, TypeError, OverflowError):
        raise RecordInvalid("not canonical CBOR: it breaks off, or is something else") from None
    if not _is_canonical(raw, value):
        raise RecordInvalid("not canonical CBOR: the bytes are not the shortest form")
    return value  # type: ignore[no-any-return]


@lru_cache(maxsize=256)
def domain(tag: str) -> bytes:
    """Return the prefix that keeps hashes and signatures of one kind apart from all others."""
    return f"XSC/1/{tag}".encode() + b"\0"


def tagged_sha256(tag: str, *parts: bytes) -> bytes:
    """Return the SHA-256 of the parts under a domain tag, 32 bytes."""
    hasher = hashlib.sha256(domain(tag))
    for part in parts:
        hasher.update(part)
    return hasher.digest()
