"""Types of values: which Python values they have, their bits, their records, and their text.

A value is a Python float, int, str or bytes, or a tuple of these for a list. A float that is
kept, compared, hashed or sent is its IEEE 754 bits, big-endian, because records hold no
floats. Every NaN is the one canonical NaN. No number is changed to fit a type: it is refused,
and `to_f32` is the one rounding (docs/design/programs.md, N1 to N9).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Final, TypeAlias

from xsc.base import encoding, numerals
from xsc.base.encoding import Value as Encodable
from xsc.base.errors import ArgumentInvalid
from xsc.programs.limits import LIST_ITEMS_MAX, VALUE_BYTES_MAX
from xsc.terms.execution import Number

Scalar: TypeAlias = "float | int | str | bytes"
Value: TypeAlias = "float | int | str | bytes | tuple[float | int | str | bytes, ...]"
"""The value of a variable or output."""

NAN: Final[float] = struct.unpack(">d", bytes.fromhex("7ff8000000000000"))[0]
"""The one NaN, whatever its payload was."""
INTEGERS: Final = {
    "i32": (-(2**31), 2**31 - 1),
    "u32": (0, 2**32 - 1),
    "integer": (-(2**63), 2**63 - 1),
}
FLOATS: Final = {"f64": ">d", "f32": ">f"}
NUMBERS: Final = (*FLOATS, *INTEGERS)
SCALARS: Final = (*NUMBERS, "text", "bytes")
TYPES: Final = (*SCALARS, *(f"[{scalar}]" for scalar in SCALARS))
"""All types; `[T]` is a list of T."""
EXPORTED: Final = {"f64": "f64", "f32": "f32", "i32": "i32", "u32": "i32", "integer": "i64"}
"""The WebAssembly type in which an export takes and gives a value; no other is taken."""


def item_of(type_: str) -> str | None:
    """Return the type of a list's items; None for the type of a scalar."""
    return type_[1:-1] if type_.startswith("[") else None


def size_max(type_: str) -> int:
    """Return how many bytes a value of a type has at most."""
    item = item_of(type_)
    if (item or type_) in {"text", "bytes"}:
        return VALUE_BYTES_MAX
    return 8 if item is None else 8 * LIST_ITEMS_MAX


def to_f32(value: float) -> float:
    """Return the f32 nearest to a float, ties to even; infinity beyond the range."""
    try:
        return float(struct.unpack(">f", struct.pack(">f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _refuse(type_: str, value: object) -> ArgumentInvalid:
    shown = repr(value)
    return ArgumentInvalid(f"{shown[:40]} is no {type_}: a value is not changed to fit")


def as_float(value: object, type_: str) -> float:
    """Return a number as an f64 or f32 has it, NaN canonical.

    Raises:
        ArgumentInvalid: no number, or one that the type cannot hold exactly.
    """
    if type(value) is int:
        # Compared as integers: an f64 beyond 2^53 could equal what it does not hold.
        try:
            exact = float(value)
        except OverflowError:
            raise _refuse(type_, value) from None
        if int(exact) != value:
            raise _refuse(type_, value)
        value = exact
    if type(value) is not float:
        raise _refuse(type_, value)
    if value != value:  # noqa: PLR0124 (NaN)
        return NAN
    if type_ == "f32" and to_f32(value) != value:
        raise ArgumentInvalid(f"{value!r} is no f32 exactly", hint="round it with to_f32")
    return value


def as_integer(value: object, type_: str) -> int:
    """Return an integer of a type's range.

    Raises:
        ArgumentInvalid: a float, a truth value, or out of range.
    """
    least, most = INTEGERS[type_]
    if type(value) is not int or not least <= value <= most:
        raise _refuse(type_, value)
    return value


def _as_text(value: object, type_: str) -> str:
    if type(value) is not str:
        raise _refuse(type_, value)
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ArgumentInvalid("a text holds half a surrogate pair, which is no Unicode") from None
    _bounded(size)
    return value


def _as_bytes(value: object, type_: str) -> bytes:
    if type(value) is not bytes:
        raise _refuse(type_, value)
    _bounded(len(value))
    return value


def _bounded(size: int) -> None:
    if size > VALUE_BYTES_MAX:
        raise ArgumentInvalid(f"a value of {size} bytes is over the bound of {VALUE_BYTES_MAX}")


_CHECKS: Final[dict[str, Callable[[object, str], Scalar]]] = {
    "f64": as_float,
    "f32": as_float,
    "i32": as_integer,
    "u32": as_integer,
    "integer": as_integer,
    "text": _as_text,
    "bytes": _as_bytes,
}


def check_value(type_: str, value: object) -> Value:
    """Return a value as its type has it: NaN canonical, all else unchanged.

    Raises:
        ArgumentInvalid: no value of the type, or too large.
    """
    item = item_of(type_)
    if item is None:
        return _CHECKS[type_](value, type_)
    if not isinstance(value, (tuple, list)):
        raise _refuse(type_, value)
    if len(value) > LIST_ITEMS_MAX:
        raise ArgumentInvalid(f"a list of {len(value)} items is over the bound of {LIST_ITEMS_MAX}")
    items = tuple(_CHECKS[item](part, item) for part in value)
    if item == "text":
        _bounded(sum(len(part.encode()) for part in items))  # type: ignore[union-attr, misc]
    elif item == "bytes":
        _bounded(sum(map(len, items)))  # type: ignore[arg-type]
    return items


def _same_float(one: float, other: float) -> bool:
    if one == other:
        return one != 0 or math.copysign(1, one) == math.copysign(1, other)
    return one != one and other != other  # noqa: PLR0124 (NaN)


def same(type_: str, one: Value, other: Value) -> bool:
    """Say whether two values of a type have the same bits: NaN is NaN, and −0 is not +0."""
    if type_ in FLOATS:
        return _same_float(one, other)  # type: ignore[arg-type]
    if item_of(type_) in FLOATS:
        return len(one) == len(other) and all(map(_same_float, one, other))  # type: ignore[arg-type]
    return one == other


def to_bits(type_: str, value: float) -> bytes:
    """Return the bits of an f64 or f32, big-endian; every NaN gives the canonical one.

    Raises:
        ArgumentInvalid: not a number that the type holds exactly.
    """
    return struct.pack(FLOATS[type_], as_float(value, type_))


def from_bits(type_: str, bits: bytes) -> float:
    """Return the f64 or f32 of its bits.

    Raises:
        ArgumentInvalid: not as many bits as the type has, or a NaN that is not canonical.
    """
    try:
        (value,) = struct.unpack(FLOATS[type_], bits)
    except struct.error:
        raise ArgumentInvalid(f"{len(bits)} bytes are no {type_}") from None
    found = as_float(value, type_)
    if struct.pack(FLOATS[type_], found) != bits:
        raise ArgumentInvalid(f"{bits.hex()} is no canonical NaN of {type_}")
    return found


def _record_of(type_: str, value: Scalar) -> Encodable:
    return to_bits(type_, value) if type_ in FLOATS else value  # type: ignore[arg-type, return-value]


def to_record(type_: str, value: Value) -> Encodable:
    """Return a checked value as a record holds it: a float as its bits."""
    item = item_of(type_)
    if item is None:
        return _record_of(type_, value)  # type: ignore[arg-type]
    return [_record_of(item, part) for part in value]  # type: ignore[union-attr]


def from_record(type_: str, found: Encodable) -> Value:
    """Return the value that a record holds.

    Raises:
        ArgumentInvalid: no value of the type.
    """
    item = item_of(type_)
    if item is not None:
        if not isinstance(found, list):
            raise _refuse(type_, found)
        return check_value(type_, tuple(from_record(item, part) for part in found))
    if type_ in FLOATS:
        if type(found) is not bytes:
            raise _refuse(type_, found)
        return from_bits(type_, found)
    return check_value(type_, found)


def value_bytes(type_: str, value: Value) -> bytes:
    """Return the canonical bytes of a type and a value, of which `digest_of` is the hash."""
    return encoding.encode([type_, to_record(type_, value)])


def digest_of(raw: bytes) -> bytes:
    """Return the hash of a value and its type, of their canonical bytes; 32 bytes."""
    return encoding.tagged_sha256("program_value", raw)


def parse_value(type_: str, text: str) -> Value:
    """Return the value that a text stands for, by the rules of a module's arguments.

    Numbers are decimal or hexadecimal, bytes are hexadecimal, a list is a JSON array. A
    decimal for a float is rounded to the nearest; an integer out of range is refused.

    Raises:
        ArgumentInvalid: it stands for none.
    """
    item = item_of(type_)
    if item is not None:
        return _parse_list(type_, item, text)
    found: object = None
    if type_ in FLOATS:
        bits = numerals.parse_float(text, type_)
        if bits is not None:
            width = struct.calcsize(FLOATS[type_])
            found = struct.unpack(FLOATS[type_], bits.to_bytes(width, "big"))[0]
    elif type_ in INTEGERS:
        found = numerals.parse_integer(text, *INTEGERS[type_])
    elif type_ == "text":
        found = text
    else:
        try:
            found = bytes.fromhex(text) if text == "".join(text.split()) else None
        except ValueError:
            found = None
    if found is None:
        raise ArgumentInvalid(f"'{text[:40]}' is no {type_}")
    return check_value(type_, found)


class _Literal(str):
    """A number of a JSON text, not yet read."""

    __slots__ = ()


def _parse_list(type_: str, item: str, text: str) -> Value:
    fault = ArgumentInvalid(f"'{text[:40]}' is no {type_}: write a JSON array")
    if len(text) > 6 * VALUE_BYTES_MAX:
        raise fault
    try:
        found = json.loads(text, parse_int=_Literal, parse_float=_Literal, parse_constant=_Literal)
    except (ValueError, RecursionError):
        raise fault from None
    if not isinstance(found, list) or len(found) > LIST_ITEMS_MAX:
        raise fault
    if not all(isinstance(part, str) for part in found):
        raise fault
    if item == "text" and any(isinstance(part, _Literal) for part in found):
        raise fault
    return check_value(type_, tuple(parse_value(item, part) for part in found))


def format_value(type_: str, value: Value) -> str:
    """Return the text of a checked value, which `parse_value` reads back as the same bits."""
    item = item_of(type_)
    if item is not None:
        texts = [format_value(item, part) for part in value]  # type: ignore[union-attr]
        bare = [
            text if item in INTEGERS or (item in FLOATS and "n" not in text) else json.dumps(text)
            for text in texts
        ]
        return f"[{', '.join(bare)}]"
    if type_ in FLOATS:
        return numerals.format_float(type_, int.from_bytes(to_bits(type_, value), "big"))  # type: ignore[arg-type]
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def from_space(type_: str, raw: bytes) -> Value:
    """Return the value of a record's bytes in the space: bytes as they are, all else as text.

    Raises:
        ArgumentInvalid: they are no value of the type.
    """
    if type_ == "bytes":
        return check_value(type_, raw)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ArgumentInvalid(f"the bytes are no text, so no {type_}") from None
    return parse_value(type_, text if type_ == "text" else text.strip())


def to_space(type_: str, value: Value) -> bytes:
    """Return the bytes that are published for a value."""
    return value if isinstance(value, bytes) else format_value(type_, value).encode()


def to_number(type_: str, value: Value) -> Number:
    """Return a value as an argument of a module: an integer as i64, u32 as the bits of an i32."""
    wasm = EXPORTED[type_]
    if type_ in FLOATS:
        bits = to_bits(type_, value)[::-1]  # type: ignore[arg-type]
    else:
        width = 8 if wasm == "i64" else 4
        bits = (int(value) % (1 << width * 8)).to_bytes(width, "little")  # type: ignore[arg-type]
    return Number(type=wasm, bits=bits)  # type: ignore[arg-type]


def from_number(type_: str, number: Number) -> Value:
    """Return a result of a module as a value.

    Raises:
        ArgumentInvalid: the result is of another WebAssembly type.
    """
    if number.type != EXPORTED.get(type_):
        raise ArgumentInvalid(f"the module gives an {number.type}, which is no {type_}")
    if type_ in FLOATS:
        return as_float(struct.unpack(FLOATS[type_], number.bits[::-1])[0], type_)
    return int.from_bytes(number.bits, "little", signed=type_ != "u32")
