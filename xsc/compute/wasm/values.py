"""Numbers as text: arguments by an export's signature, results back.

A number is its type and its raw bits; Python floats stand in
between only where they lose nothing, because a Python float quiets a signalling
f32 NaN. Text that is out of a type's range is refused, never wrapped. Without the
record models of orders, so that a sandbox worker need not load them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TypeAlias

from xsc.base import errors, limits, numerals
from xsc.compute.wasm.signature import Signature

Bits: TypeAlias = "tuple[str, bytes]"
"""The type of a number ("i32") and its bits, little-endian."""


def parse_bits(text: str, kind: str) -> bytes | None:
    """Return the bits of the number that a text stands for, or None where it stands for none.

    Integers: decimal or 0x, signed or unsigned, `_` between digits. Floats:
    decimal, hexadecimal (0x1.8p3), inf, nan, nan:0x… with a payload; rounded to
    nearest, ties to even; a finite text beyond the range is refused.
    """
    if kind not in numerals.WIDTHS:
        return None
    width = numerals.WIDTHS[kind]
    if kind in numerals.FORMATS:
        bits = numerals.parse_float(text, kind)
    else:
        # Signed or unsigned: a WebAssembly integer has no sign of its own.
        bits = numerals.parse_integer(text, -(1 << width * 8 - 1), (1 << width * 8) - 1)
    if bits is None:
        return None
    return (bits % (1 << width * 8)).to_bytes(width, "little")


def parse_arguments(texts: Sequence[str], name: str, signature: Signature) -> tuple[Bits, ...]:
    """Return the arguments of a function.

    Raises:
        SignatureMismatch: wrong in number, or one does not fit its type; the message
            shows the signature.
    """
    if not signature.callable:
        raise errors.SignatureMismatch(
            f"{signature.show(name)} cannot be called with numbers alone, "
            f"{limits.ARGUMENTS_MAX} in and {limits.ARGUMENTS_MAX} out at most"
        )
    if len(texts) != len(signature.params):
        count = len(signature.params)
        raise errors.SignatureMismatch(
            f"{signature.show(name)} takes {count} argument{'' if count == 1 else 's'}, "
            f"{len(texts)} given"
        )
    numbers = []
    for position, (text, kind) in enumerate(zip(texts, signature.params, strict=True), 1):
        raw = parse_bits(text, kind)
        if raw is None:
            raise errors.SignatureMismatch(
                f"argument {position} of {signature.show(name)} must be an {kind}, "
                f"not '{text[:40]}'"
            )
        numbers.append((kind, raw))
    return tuple(numbers)


def format_bits(kind: str, raw: bytes) -> str:
    """Return the text of a number: integers signed, floats as short as they read back."""
    if kind in numerals.FORMATS:
        return numerals.format_float(kind, int.from_bytes(raw, "little"))
    return str(int.from_bytes(raw, "little", signed=True))


def to_python(kind: str, raw: bytes) -> int | float:
    """Return a number as Python's own: integers signed; a NaN loses its payload."""
    text = format_bits(kind, raw)
    if kind not in numerals.FORMATS:
        return int(text)
    if "nan" in text:
        return math.nan
    if kind == "f32":
        return float(struct.unpack("<f", raw)[0])
    return float(text)
