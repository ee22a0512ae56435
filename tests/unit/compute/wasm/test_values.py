from __future__ import annotations

import math

import pytest

from tests.strategies import vectors
from xsc.base.errors import SignatureMismatch
from xsc.compute.wasm.signature import Signature
from xsc.compute.wasm.values import format_bits, parse_arguments, parse_bits, to_python

ADD = Signature(("i32", "i32"), ("i32",))


def number(kind, bits):
    width = 4 if kind.endswith("32") else 8
    return kind, bits.to_bytes(width, "little")


@pytest.mark.parametrize("case", vectors("wasm_values")["parsed"], ids=lambda case: case["text"])
def test_texts_have_the_bits_of_the_vectors(case):
    _, bits = number(case["type"], int(case["bits"], 16))
    assert parse_bits(case["text"], case["type"]) == bits


@pytest.mark.parametrize("case", vectors("wasm_values")["shown"], ids=lambda case: case["text"])
def test_bits_have_the_texts_of_the_vectors(case):
    assert format_bits(*number(case["type"], int(case["bits"], 16))) == case["text"]


@pytest.mark.parametrize("case", vectors("wasm_values")["refused"], ids=str)
def test_what_is_no_number_of_its_type_is_refused(case):
    assert parse_bits(case["text"], case["type"]) is None


def test_a_text_of_any_length_is_refused_at_once():
    assert parse_bits("1" * 100_000, "i64") is None
    assert parse_bits("1e99999", "f64") is None
    assert parse_bits("0x1p-99999", "f64") == bytes(8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["1"], "add(i32, i32) -> i32 takes 2 arguments, 1 given"),
        (["1", "2", "3"], "add(i32, i32) -> i32 takes 2 arguments, 3 given"),
        (["1", "two"], "argument 2 of add(i32, i32) -> i32 must be an i32, not 'two'"),
        (["1.0", "2"], "argument 1 of add(i32, i32) -> i32 must be an i32, not '1.0'"),
    ],
)
def test_a_mismatch_shows_the_signature(given, message):
    with pytest.raises(SignatureMismatch) as caught:
        parse_arguments(given, "add", ADD)
    assert caught.value.message == message


def test_one_argument_is_named_in_the_singular():
    with pytest.raises(SignatureMismatch, match="takes 1 argument, 0 given"):
        parse_arguments([], "f", Signature(("i32",), ()))


def test_a_function_of_references_cannot_be_called():
    with pytest.raises(SignatureMismatch, match="numbers alone"):
        parse_arguments(["1"], "f", Signature(("externref",), ()))


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        (Signature((), ()), "f()"),
        (ADD, "f(i32, i32) -> i32"),
        (Signature(("f64",), ("i32", "v128")), "f(f64) -> (i32, v128)"),
    ],
)
def test_a_signature_is_shown_for_people(signature, text):
    assert signature.show("f") == text


def test_numbers_become_pythons_own():
    assert to_python(*number("i32", 2**32 - 1)) == -1
    assert to_python(*number("i64", 2**63)) == -(2**63)
    assert to_python(*number("f32", 0x3F000000)) == 0.5
    assert to_python(*number("f64", 0xBFF0000000000000)) == -1.0
    assert to_python(*number("f64", 0xFFF0000000000000)) == -math.inf
    assert math.isnan(to_python(*number("f32", 0x7FA00001)))
