"""Numbers as text, and back: integers of a range, and IEEE 754 numbers as their bits.

Modules' arguments and programs' values are read by the same rules. Floats are bits here:
a Python float would quiet a signalling f32 NaN. Text that is out of a type's range is
refused, never wrapped.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from fractions import Fraction

_INTEGER = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F_]+)|([0-9_]+))")
_INFINITY = re.compile(r"[+-]?inf(?:inity)?")
_NAN = re.compile(r"([+-]?)nan(?::0x([0-9a-fA-F]+))?")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?")
_HEX_FLOAT = re.compile(
    r"([+-]?)0[xX]([0-9a-fA-F]*)(?:\.([0-9a-fA-F]*))?(?:[pP]([+-]?[0-9]{1,5}))?"
)
WIDTHS = {"i32": 4, "i64": 8, "f32": 4, "f64": 8}
"""In bytes, by type."""
CHARS_MAX = 512
"""Of a text that is read as a number."""


@dataclass(frozen=True, slots=True)
class Format:
    """The shape of an IEEE 754 binary format."""

    fraction_bits: int
    ones: int
    """The exponent field of infinities and NaNs; half of it is added to each exponent."""

    @property
    def sign_bit(self) -> int:
        """How many bits are below the sign."""
        return self.fraction_bits + self.ones.bit_length()


FORMATS = {"f32": Format(23, 2**8 - 1), "f64": Format(52, 2**11 - 1)}
"""By type."""


def _bits_of(value: Fraction, negative: bool, shape: Format) -> int:
    """Return the bits nearest to |value|, ties to even; infinity beyond the range."""
    sign, bias = int(negative) << shape.sign_bit, shape.ones >> 1
    magnitude = abs(value)
    if magnitude == 0:
        return sign
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, 1 - bias)
    # The unit in the last place; round() of a Fraction is to even.
    units = round(magnitude / Fraction(2) ** (exponent - shape.fraction_bits))
    # Carries and subnormals fall out of the addition: the fields are adjacent.
    hidden = 1 << shape.fraction_bits
    bits = (exponent + bias) * hidden + units - hidden
    return sign | min(bits, shape.ones << shape.fraction_bits)


def parse_integer(text: str, least: int, most: int) -> int | None:
    """Return the integer that a text stands for, or None where it stands for none in the range.

    Decimal or 0x, with a sign or without, `_` between digits.
    """
    if len(text) > CHARS_MAX:
        return None
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    digits = (match[2] or match[3]).replace("_", "")
    if not digits:
        return None
    value = int(digits, 16 if match[2] else 10)
    value = -value if match[1] == "-" else value
    return value if least <= value <= most else None


def parse_float(text: str, kind: str) -> int | None:
    """Return the bits of the f32 or f64 that a text stands for, or None.

    Decimal, hexadecimal (0x1.8p3), inf, nan, nan:0x… with a payload; rounded to nearest,
    ties to even. A finite text beyond the range is refused.
    """
    if len(text) > CHARS_MAX:
        return None
    shape = FORMATS[kind]
    sign = int(text.startswith("-")) << shape.sign_bit
    lower = text.lower()
    if _INFINITY.fullmatch(lower):
        return sign | shape.ones << shape.fraction_bits
    if match := _NAN.fullmatch(lower):
        payload = int(match[2], 16) if match[2] else 1 << shape.fraction_bits - 1
        if not 0 < payload < 1 << shape.fraction_bits:
            return None
        return sign | shape.ones << shape.fraction_bits | payload
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
    bits = _bits_of(value, bool(sign), shape)
    infinite = bits >> shape.fraction_bits & shape.ones == shape.ones
    return None if infinite else bits


def _shortest_f32(bits: int) -> str:
    """Return the shortest decimal that reads back as these f32 bits, in the form of repr."""
    (value,) = struct.unpack("<f", bits.to_bytes(4, "little"))
    # Nine digits always suffice for an f32; each candidate is read back exactly.
    shape = FORMATS["f32"]
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        if _bits_of(Fraction(text), text.startswith("-"), shape) == bits:
            return repr(float(text))
    raise AssertionError("nine digits identify every f32")


def format_float(kind: str, bits: int) -> str:
    """Return the shortest text that `parse_float` reads back as these bits."""
    shape = FORMATS[kind]
    sign = "-" if bits >> shape.sign_bit else ""
    payload = bits & (1 << shape.fraction_bits) - 1
    if bits >> shape.fraction_bits & shape.ones == shape.ones:
        if not payload:
            return f"{sign}inf"
        canonical = payload == 1 << shape.fraction_bits - 1
        return f"{sign}nan" if canonical else f"{sign}nan:{payload:#x}"
    if kind == "f32":
        return _shortest_f32(bits)
    (value,) = struct.unpack("<d", bits.to_bytes(8, "little"))
    return repr(value)
