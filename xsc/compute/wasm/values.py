"""Numbers as text: arguments by an export's signature, results back.

A number is its raw bits (`xsc.terms.execution.Number`); Python floats stand in
between only where they lose nothing, because a Python float quiets a signalling
f32 NaN. Text that is out of a type's range is refused, never wrapped.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

from xsc.base.errors import SignatureMismatch
from xsc.base.limits import ARGUMENTS_MAX
from xsc.compute.wasm.signature import Signature
from xsc.terms.execution import WIDTHS, Number, NumberType

_INTEGER = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F_]+)|([0-9_]+))")
_INFINITY = re.compile(r"[+-]?inf(?:inity)?")
_NAN = re.compile(r"([+-]?)nan(?::0x([0-9a-fA-F]+))?")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?")
_HEX_FLOAT = re.compile(
    r"([+-]?)0[xX]([0-9a-fA-F]*)(?:\.([0-9a-fA-F]*))?(?:[pP]([+-]?[0-9]{1,5}))?"
)
_CHARS_MAX = 512


@dataclass(frozen=True, slots=True)
class Format:
    """The shape of an IEEE 754 binary format."""

    fraction_bits: int
    exponent_bits: int

    @property
    def bias(self) -> int:
        """What is added to an exponent."""
        return (1 << self.exponent_bits - 1) - 1

    @property
    def ones(self) -> int:
        """The exponent field of infinities and NaNs."""
        return (1 << self.exponent_bits) - 1


_FORMATS = {"f32": Format(23, 8), "f64": Format(52, 11)}


def _bits_of(value: Fraction, negative: bool, shape: Format) -> int:
    """Return the bits nearest to |value|, ties to even; infinity beyond the range."""
    sign = int(negative) << (shape.fraction_bits + shape.exponent_bits)
    magnitude = abs(value)
    if magnitude == 0:
        return sign
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, 1 - shape.bias)
    # The unit in the last place; round() of a Fraction is to even.
    units = round(magnitude / Fraction(2) ** (exponent - shape.fraction_bits))
    # Carries and subnormals fall out of the addition: the fields are adjacent.
    hidden = 1 << shape.fraction_bits
    bits = (exponent + shape.bias) * hidden + units - hidden
    return sign | min(bits, shape.ones << shape.fraction_bits)


def _parse_integer(text: str, bits: int) -> int | None:
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    digits = (match[2] or match[3]).replace("_", "")
    if not digits:
        return None
    value = int(digits, 16 if match[2] else 10)
    value = -value if match[1] == "-" else value
    return value % (1 << bits) if -(1 << bits - 1) <= value < 1 << bits else None


def _parse_float(text: str, shape: Format) -> int | None:
    sign_bit = shape.fraction_bits + shape.exponent_bits
    negative = int(text.startswith("-"))
    lower = text.lower()
    if _INFINITY.fullmatch(lower):
        return negative << sign_bit | shape.ones << shape.fraction_bits
    if match := _NAN.fullmatch(lower):
        payload = int(match[2], 16) if match[2] else 1 << shape.fraction_bits - 1
        if not 0 < payload < 1 << shape.fraction_bits:
            return None
        return negative << sign_bit | shape.ones << shape.fraction_bits | payload
    if match := _HEX_FLOAT.fullmatch(text):
        whole, part = match[2], match[3] or ""
        if not whole + part:
            return None
        value = Fraction(int(whole + part, 16), 16 ** len(part))
        value *= Fraction(2) ** int(match[4] or "0")
    elif _DECIMAL.fullmatch(text):
        value = Fraction(text)
    else:
        return None
    bits = _bits_of(value, bool(negative), shape)
    infinite = bits >> shape.fraction_bits & shape.ones == shape.ones
    return None if infinite else bits


def parse_number(text: str, kind: str) -> Number | None:
    """Return the number that a text stands for, or None where it stands for none.

    Integers: decimal or 0x, signed or unsigned, `_` between digits. Floats:
    decimal, hexadecimal (0x1.8p3), inf, nan, nan:0x… with a payload; rounded to
    nearest, ties to even; a finite text beyond the range is refused.
    """
    raw = parse_bits(text, kind)
    return None if raw is None else Number(type=cast(NumberType, kind), bits=raw)


def parse_bits(text: str, kind: str) -> bytes | None:
    """Return the bits of the number that a text stands for, little-endian, or None."""
    if len(text) > _CHARS_MAX or kind not in WIDTHS:
        return None
    width = WIDTHS[kind]
    if kind in _FORMATS:
        bits = _parse_float(text, _FORMATS[kind])
    else:
        bits = _parse_integer(text, width * 8)
    if bits is None:
        return None
    return bits.to_bytes(width, "little")


def parse_arguments(texts: Sequence[str], name: str, signature: Signature) -> tuple[Number, ...]:
    """Return the arguments of a function.

    Raises:
        SignatureMismatch: wrong in number, or one does not fit its type; the message
            shows the signature.
    """
    if not signature.callable:
        raise SignatureMismatch(
            f"{signature.show(name)} cannot be called with numbers alone, "
            f"{ARGUMENTS_MAX} in and {ARGUMENTS_MAX} out at most"
        )
    if len(texts) != len(signature.params):
        count = len(signature.params)
        raise SignatureMismatch(
            f"{signature.show(name)} takes {count} argument{'' if count == 1 else 's'}, "
            f"{len(texts)} given"
        )
    numbers = []
    for position, (text, kind) in enumerate(zip(texts, signature.params, strict=True), 1):
        number = parse_number(text, kind)
        if number is None:
            raise SignatureMismatch(
                f"argument {position} of {signature.show(name)} must be an {kind}, "
                f"not '{text[:40]}'"
            )
        numbers.append(number)
    return tuple(numbers)


def _shortest_f32(bits: int) -> str:
    """Return the shortest decimal that reads back as these f32 bits, in the form of repr."""
    (value,) = struct.unpack("<f", bits.to_bytes(4, "little"))
    # Nine digits always suffice for an f32; each candidate is read back exactly.
    shape = _FORMATS["f32"]
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        if _bits_of(Fraction(text), text.startswith("-"), shape) == bits:
            return repr(float(text))
    raise AssertionError("nine digits identify every f32")


def format_number(number: Number) -> str:
    """Return the text of a number: integers signed, floats as short as they read back."""
    return format_bits(number.type, number.bits)


def format_bits(kind: str, raw: bytes) -> str:
    """Return the text of a number's type and bits."""
    bits = int.from_bytes(raw, "little")
    width = WIDTHS[kind] * 8
    if kind not in _FORMATS:
        return str(bits - (1 << width) if bits >> width - 1 else bits)
    shape = _FORMATS[kind]
    sign = "-" if bits >> width - 1 else ""
    payload = bits & (1 << shape.fraction_bits) - 1
    if bits >> shape.fraction_bits & shape.ones == shape.ones:
        if not payload:
            return f"{sign}inf"
        canonical = payload == 1 << shape.fraction_bits - 1
        return f"{sign}nan" if canonical else f"{sign}nan:{payload:#x}"
    if kind == "f32":
        return _shortest_f32(bits)
    (value,) = struct.unpack("<d", raw)
    return repr(value)


def to_python(number: Number) -> int | float:
    """Return a number as Python's own: integers signed; a NaN loses its payload."""
    text = format_number(number)
    if number.type not in _FORMATS:
        return int(text)
    if "nan" in text:
        return math.nan
    if number.type == "f32":
        return float(struct.unpack("<f", number.bits)[0])
    return float(text)
