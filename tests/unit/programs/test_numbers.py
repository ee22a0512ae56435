"""Types of values: their bits, records and text. The vectors were made without this code."""

from __future__ import annotations

import math
import struct

import pytest

from tests.strategies import vectors
from xsc.base.errors import ArgumentInvalid
from xsc.programs.limits import LIST_ITEMS_MAX, VALUE_BYTES_MAX
from xsc.programs.numbers import (
    EXPORTED,
    NAN,
    TYPES,
    as_float,
    check_value,
    digest_of,
    format_value,
    from_bits,
    from_number,
    from_record,
    from_space,
    parse_value,
    same,
    to_bits,
    to_f32,
    to_number,
    to_record,
    to_space,
    value_bytes,
)
from xsc.terms.execution import Number

VECTORS = vectors("programs")
FORMS = {"f64": ">d", "f32": ">f"}
WORDS = {"True": True, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def number(text):
    if text in WORDS:
        return WORDS[text]
    return float(text) if "." in text or "e" in text else int(text)


def floating(kind, bits):
    return struct.unpack(FORMS[kind], bytes.fromhex(bits))[0]


def shown(case):
    return " ".join(map(str, case.values()))


@pytest.mark.parametrize("case", VECTORS["bits"], ids=shown)
def test_a_float_has_the_bits_and_the_text_of_the_vectors(case):
    value = from_bits(case["type"], bytes.fromhex(case["bits"]))
    assert to_bits(case["type"], value).hex() == case["bits"]
    assert format_value(case["type"], value) == case["text"]
    assert to_bits(case["type"], parse_value(case["type"], case["text"])).hex() == case["bits"]


@pytest.mark.parametrize("case", VECTORS["nan"], ids=shown)
def test_every_nan_is_the_canonical_one(case):
    value = as_float(floating(case["type"], case["bits"]), case["type"])
    assert struct.pack(">d", value) == struct.pack(">d", NAN)
    assert to_bits(case["type"], floating(case["type"], case["bits"])).hex() == case["canonical"]


@pytest.mark.parametrize("case", VECTORS["nan"], ids=shown)
def test_a_record_holds_the_canonical_nan_alone(case):
    bits = bytes.fromhex(case["bits"])
    if case["bits"] == case["canonical"]:
        assert math.isnan(from_bits(case["type"], bits))
    else:
        with pytest.raises(ArgumentInvalid, match="canonical"):
            from_bits(case["type"], bits)


@pytest.mark.parametrize("case", VECTORS["rounded"], ids=shown)
def test_to_f32_rounds_to_even_and_overflows_to_infinity(case):
    value = floating("f64", case["f64"])
    assert to_bits("f32", to_f32(value)).hex() == case["f32"]


@pytest.mark.parametrize("case", VECTORS["same"], ids=shown)
def test_a_change_is_a_change_of_bits(case):
    one, other = (floating(case["type"], case[name]) for name in ("one", "other"))
    assert same(case["type"], one, other) is case["same"]
    assert same(f"[{case['type']}]", (one,), (other,)) is case["same"]


@pytest.mark.parametrize("case", VECTORS["kept"], ids=shown)
def test_a_number_that_fits_its_type_is_kept(case):
    value = number(case["value"])
    found = check_value(case["type"], value)
    assert found == value or (math.isnan(found) and math.isnan(value))
    assert type(found) is (float if case["type"] in FORMS else int)


@pytest.mark.parametrize("case", VECTORS["refused"], ids=shown)
def test_no_number_is_changed_to_fit_its_type(case):
    with pytest.raises(ArgumentInvalid):
        check_value(case["type"], number(case["value"]))


@pytest.mark.parametrize("case", VECTORS["parsed"], ids=shown)
def test_text_is_read_by_the_rules_of_a_modules_arguments(case):
    assert same(
        case["type"], parse_value(case["type"], case["text"]), number(case["value"])
    ) or math.isnan(number(case["value"]))


@pytest.mark.parametrize("case", VECTORS["unparsed"], ids=shown)
def test_text_that_stands_for_no_value_of_the_type_is_refused(case):
    with pytest.raises(ArgumentInvalid):
        parse_value(case["type"], case["text"])


@pytest.mark.parametrize("case", VECTORS["hashes"], ids=shown)
def test_a_value_has_the_hash_of_the_vectors(case):
    value = parse_value(case["type"], case["text"])
    assert digest_of(value_bytes(case["type"], value)).hex() == case["hash"]
    assert format_value(case["type"], value) == case["text"]
    assert same(case["type"], from_record(case["type"], to_record(case["type"], value)), value)
    assert same(case["type"], from_space(case["type"], to_space(case["type"], value)), value)


@pytest.mark.parametrize("type_", TYPES)
def test_a_record_of_another_type_is_no_value(type_):
    for record in ({}, None, True, b"\0" * 3, "x" if type_ != "text" else 1, [[]]):
        if type_ == "bytes" and isinstance(record, bytes):
            continue
        with pytest.raises(ArgumentInvalid):
            from_record(type_, record)


def test_values_and_lists_are_bounded():
    for type_, small, large in (
        ("text", "x" * VALUE_BYTES_MAX, "x" * VALUE_BYTES_MAX + "x"),
        ("text", "é" * (VALUE_BYTES_MAX // 2), "é" * (VALUE_BYTES_MAX // 2 + 1)),
        ("bytes", bytes(VALUE_BYTES_MAX), bytes(VALUE_BYTES_MAX + 1)),
        ("[i32]", (0,) * LIST_ITEMS_MAX, (0,) * (LIST_ITEMS_MAX + 1)),
        ("[text]", ("x" * VALUE_BYTES_MAX,), ("x" * VALUE_BYTES_MAX, "x")),
        ("[bytes]", (bytes(VALUE_BYTES_MAX),), (bytes(VALUE_BYTES_MAX), b"x")),
    ):
        assert check_value(type_, small) == small
        with pytest.raises(ArgumentInvalid, match="over the bound"):
            check_value(type_, large)
    for text in ("[" * 10_000, "[1]" + " " * 6 * VALUE_BYTES_MAX, str([0] * (LIST_ITEMS_MAX + 1))):
        with pytest.raises(ArgumentInvalid):
            parse_value("[i32]", text)


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(ArgumentInvalid, match="surrogate"):
        check_value("text", "\ud800")


def test_the_space_holds_text_and_bytes_as_they_are():
    assert from_space("bytes", b"\xff\0") == b"\xff\0"
    assert to_space("bytes", b"\xff\0") == b"\xff\0"
    assert from_space("text", b" a \n") == " a \n"
    assert from_space("i32", b"7\n") == 7
    with pytest.raises(ArgumentInvalid, match="no text"):
        from_space("i32", b"\xff")


@pytest.mark.parametrize(
    ("type_", "value", "wasm", "bits"),
    [
        ("i32", -1, "i32", "ffffffff"),
        ("u32", 2**32 - 1, "i32", "ffffffff"),
        ("integer", -2, "i64", "feffffffffffffff"),
        ("f64", 1.5, "f64", "000000000000f83f"),
        ("f32", 0.5, "f32", "0000003f"),
        ("f64", math.nan, "f64", "000000000000f87f"),
    ],
)
def test_a_module_takes_and_gives_values_as_its_own_numbers(type_, value, wasm, bits):
    made = Number(type=wasm, bits=bytes.fromhex(bits))
    assert to_number(type_, value) == made
    assert same(type_, from_number(type_, made), value)
    assert EXPORTED[type_] == wasm


def test_an_i64_of_a_module_is_an_integer_and_no_i32():
    big = Number(type="i64", bits=(2**40).to_bytes(8, "little"))
    assert from_number("integer", big) == 2**40
    for type_ in ("i32", "u32", "f64", "text"):
        with pytest.raises(ArgumentInvalid, match="gives an i64"):
            from_number(type_, big)
    assert "text" not in EXPORTED
