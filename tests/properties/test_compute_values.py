"""Numbers: text and bits are two forms of one thing."""

from __future__ import annotations

import struct
from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from xsc.base.numerals import WIDTHS
from xsc.compute.wasm.values import format_bits, parse_bits


def numbers():
    return st.sampled_from(sorted(WIDTHS)).flatmap(
        lambda kind: st.binary(min_size=WIDTHS[kind], max_size=WIDTHS[kind]).map(
            lambda bits: (kind, bits)
        )
    )


@given(numbers())
@example(("f32", b"\1\0\xa0\x7f"))
@example(("f64", b"\1\0\0\0\0\0\0\x80"))
def test_a_number_shown_and_read_back_is_the_same_bits(number):
    kind, bits = number
    assert parse_bits(format_bits(kind, bits), kind) == bits


@given(st.integers(0, 2**32 - 1))
def test_no_shorter_text_stands_for_an_f32(bits):
    raw = bits.to_bytes(4, "little")
    text = format_bits("f32", raw)
    if "n" in text:
        return
    (value,) = struct.unpack("<f", raw)
    digits = len(text.lstrip("-").split("e")[0].replace(".", "").strip("0"))
    if digits > 1:
        shorter = f"{value:.{digits - 2}e}"
        assert parse_bits(shorter, "f32") != raw


@given(st.fractions(min_value=-(10**12), max_value=10**12), st.integers(0, 12))
def test_decimals_are_rounded_to_the_nearest_double(value, places):
    text = str(Fraction(round(value * 10**places), 10**places).limit_denominator(10**places))
    decimal = f"{round(value * 10**places)}e-{places}"
    assert parse_bits(decimal, "f64") == struct.pack("<d", float(decimal)), text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_hexadecimal_floats_are_exact(value):
    assert parse_bits(value.hex(), "f64") == struct.pack("<d", value)


@given(st.text(max_size=20), st.sampled_from([*sorted(WIDTHS), "v128", ""]))
def test_any_text_is_a_number_or_none(text, kind):
    bits = parse_bits(text, kind)
    assert bits is None or len(bits) == WIDTHS[kind]
