"""The built-in functions: what they give, in every type, and how they are known."""

from __future__ import annotations

import math
import re
import struct
from fractions import Fraction

import pytest

from tests.strategies import vectors
from tests.unit.programs.documents import MEMORY, call, compiled, execution, sub
from xsc.base.errors import ArgumentInvalid, ProgramInvalid
from xsc.programs.functions import BUILT_IN, Function, Functions
from xsc.programs.limits import VALUE_BYTES_MAX
from xsc.programs.numbers import INTEGERS, NUMBERS, SCALARS, check_value, to_bits

FUNCTIONS = Functions()
HASHES = vectors("programs")["functions"]


def run(name, type_, *values):
    return FUNCTIONS.get(name).run(type_, *values)


@pytest.mark.parametrize("case", HASHES, ids=lambda case: case["name"])
def test_a_function_has_the_hash_of_the_vectors(case):
    function = FUNCTIONS.get(case["name"])
    assert (function.version, function.hash.hex()) == (case["version"], case["hash"])


def test_every_function_is_in_the_vectors_and_has_a_hash_of_its_own():
    assert [case["name"] for case in HASHES] == [function.name for function in BUILT_IN]
    assert len({case["hash"] for case in HASHES}) == len(HASHES)


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"name": "x"}, {"result": "T"}, {"params": {"y": "N", "x": "N"}}]
)
def test_the_hash_is_that_of_name_version_and_types(change):
    add = FUNCTIONS.get("math.add")
    fields = {name: getattr(add, name) for name in ("name", "version", "params", "result", "run")}
    assert Function(**{**fields, **change}).hash != add.hash
    assert Function(**{**fields, "run": max}).hash == add.hash


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("x", "y", "bits"),
    [
        # IEEE 754-2008, 7.3 and 6.3: signs of zeros and infinities, and what is invalid.
        (1.0, 0.0, "7ff0000000000000"),
        (-1.0, 0.0, "fff0000000000000"),
        (1.0, -0.0, "fff0000000000000"),
        (-1.0, -0.0, "7ff0000000000000"),
        (INF, 0.0, "7ff0000000000000"),
        (-INF, -0.0, "7ff0000000000000"),
        (0.0, 0.0, "7ff8000000000000"),
        (-0.0, 0.0, "7ff8000000000000"),
        (NAN, 0.0, "7ff8000000000000"),
        (1.0, NAN, "7ff8000000000000"),
        (INF, INF, "7ff8000000000000"),
        (1.0, INF, "0000000000000000"),
        (-1.0, INF, "8000000000000000"),
        (0.0, -3.0, "8000000000000000"),
        (1.0, 3.0, "3fd5555555555555"),
        (5e-324, 2.0, "0000000000000000"),
        (1.7976931348623157e308, 0.5, "7ff0000000000000"),
    ],
)
def test_floats_are_divided_as_ieee_754_says(x, y, bits):
    assert to_bits("f64", run("math.divide", "f64", x, y)).hex() == bits
    if bits.startswith("7ff8"):
        assert to_bits("f32", run("math.divide", "f32", x, y)).hex() == "7fc00000"


@pytest.mark.parametrize(
    ("x", "y", "quotient"), [(7, 2, 3), (-7, 2, -3), (7, -2, -3), (-7, -2, 3), (0, 5, 0), (1, 2, 0)]
)
def test_integers_are_divided_towards_zero(x, y, quotient):
    for type_ in ("i32", "integer"):
        assert run("math.divide", type_, x, y) == quotient


@pytest.mark.parametrize("type_", INTEGERS)
def test_an_integer_is_not_divided_by_zero(type_):
    with pytest.raises(ArgumentInvalid, match="divided by zero"):
        run("math.divide", type_, 1, 0)


def nearest_f32(exact):
    """Return the f32 nearest to a fraction, ties to even, found by its neighbours alone."""
    guess = struct.unpack(">I", struct.pack(">f", float(exact)))[0]
    near = [
        struct.unpack(">f", struct.pack(">I", bits))[0] for bits in (guess - 1, guess, guess + 1)
    ]
    least = min(abs(Fraction(one) - exact) for one in near)
    (*_, best) = sorted(
        (one for one in near if abs(Fraction(one) - exact) == least),
        key=lambda one: struct.unpack(">I", struct.pack(">f", one))[0] % 2 == 0,
    )
    return best


def as_f32(value):
    return struct.unpack(">f", struct.pack(">f", value))[0]


@pytest.mark.parametrize(
    ("name", "exactly"),
    [
        ("math.add", lambda x, y: x + y),
        ("math.subtract", lambda x, y: x - y),
        ("math.multiply", lambda x, y: x * y),
        ("math.divide", lambda x, y: x / y),
    ],
)
@pytest.mark.parametrize(
    ("x", "y"), [(0.1, 0.2), (16777216.0, 1.0), (16777217.5, 3.0), (1e-3, 7.0), (3.3, 1.1)]
)
def test_an_f32_operation_rounds_once(name, exactly, x, y):
    x, y = as_f32(x), as_f32(y)
    found = run(name, "f32", x, y)
    assert found == nearest_f32(exactly(Fraction(x), Fraction(y)))
    assert check_value("f32", found) == found


def test_an_f32_that_overflows_is_infinite_and_a_sum_rounds_after_each_item():
    most = struct.unpack(">f", bytes.fromhex("7f7fffff"))[0]
    assert run("math.multiply", "f32", most, 2.0) == INF
    assert run("list.sum", "f32", (16777216.0, 1.0, 1.0)) == 16777216.0
    assert run("list.sum", "f64", (16777216.0, 1.0, 1.0)) == 16777218.0


@pytest.mark.parametrize(
    ("name", "type_", "values", "result"),
    [
        ("math.add", "i32", (2, 3), 5),
        ("math.subtract", "integer", (2, 3), -1),
        ("math.multiply", "u32", (4, 5), 20),
        ("math.divide", "f64", (1.0, 4.0), 0.25),
        ("compare.equal", "text", ("a", "a"), 1),
        ("compare.equal", "f64", (NAN, NAN), 1),
        ("compare.equal", "f64", (0.0, -0.0), 0),
        ("compare.equal", "bytes", (b"a", b"b"), 0),
        ("compare.less", "i32", (1, 2), 1),
        ("compare.less", "text", ("b", "a"), 0),
        ("compare.less", "f64", (NAN, 1.0), 0),
        ("compare.less", "f64", (1.0, NAN), 0),
        ("compare.choose", "text", (1, "yes", "no"), "yes"),
        ("compare.choose", "text", (0, "yes", "no"), "no"),
        ("compare.choose", "i32", (-5, 1, 2), 1),
        ("list.of", "i32", (1, 2, 3), (1, 2, 3)),
        ("list.of", "i32", (), ()),
        ("list.sum", "integer", ((1, 2, 3),), 6),
        ("list.sum", "f64", ((),), 0.0),
        ("list.length", "bytes", ((b"", b"a"),), 2),
        ("text.join", "", (("a", "b"), ", "), "a, b"),
        ("text.join", "", ((), ", "), ""),
        ("merge.last", "[i32]", ((1, 2),), (1, 2)),
        ("merge.min", "i32", (3, -1, 2), -1),
        ("merge.max", "f32", (0.5,), 0.5),
        ("merge.counter", "u32", (3, 1, 2), 6),
        ("merge.union", "text", (("b", "a"), (), ("a",)), ("a", "b")),
        ("merge.interval", "i32", ((0, 7), (5, 9)), (5, 7)),
        ("text.of", "f64", (0.1,), "0.1"),
        ("text.of", "i32", (-3,), "-3"),
        ("text.of", "bytes", (b"\xff",), "ff"),
    ],
)
def test_a_function_gives_its_result(name, type_, values, result):
    found = run(name, type_, *values)
    assert (found, type(found)) == (result, type(result))


@pytest.mark.parametrize("type_", INTEGERS)
def test_what_is_out_of_range_is_an_error_of_the_computation(type_):
    least, most = INTEGERS[type_]
    ran = execution(
        {"a": {"kind": "value", "type": type_, "value": most}},
        {"sum": call("math.add", {"x": "a", "y": "a"}, s=MEMORY)},
    )
    ran.run()
    assert (ran.output("s"), list(ran.errors)) == (None, ["sum"])
    assert least < most


def test_a_join_is_refused_before_it_is_made_where_it_would_be_too_long():
    half = "x" * (VALUE_BYTES_MAX // 2)
    assert len(run("text.join", "", (half, half), "")) == VALUE_BYTES_MAX
    with pytest.raises(ArgumentInvalid, match="over the bound"):
        run("text.join", "", ("",) * 4096, half)
    ran = execution(
        {"a": sub("[text]", default=[]), "b": sub("text", path="b", default="-")},
        {"join": call("text.join", {"items": "a", "between": "b"}, t=MEMORY)},
    )
    ran.run({"a": (half, half)})
    assert "over the bound" in ran.errors["join"]


@pytest.mark.parametrize("function", BUILT_IN, ids=lambda function: function.name)
def test_a_function_takes_every_type_that_its_variable_stands_for_and_no_other(function):
    variables = {type_.strip("[]") for type_ in function.params.values()}
    names = [name if name != "*" else "one" for name in function.params]
    for scalar in SCALARS:
        types = {
            name: re.sub("[NTV]", scalar, type_) if type_.strip("[]") in {"N", "T", "V"} else type_
            for name, type_ in zip(names, function.params.values(), strict=True)
        }
        if "N" in variables and scalar not in NUMBERS:
            with pytest.raises(ProgramInvalid):
                function.bind(types)
        else:
            bound, result = function.bind(types)
            assert bound == ("" if not variables & {"N", "T", "V"} else scalar)
            assert result == re.sub("[NTV]", scalar, function.result)


def test_parameters_and_names_are_checked():
    add = FUNCTIONS.get("math.add")
    with pytest.raises(ProgramInvalid, match="is given x"):
        add.bind({"x": "i32"})
    with pytest.raises(ProgramInvalid, match="is given a f64 as 'y'"):
        add.bind({"x": "i32", "y": "f64"})
    with pytest.raises(ProgramInvalid, match="no function"):
        FUNCTIONS.get("math.power")
    with pytest.raises(ProgramInvalid, match="there twice"):
        Functions([*BUILT_IN, add])
    with pytest.raises(ProgramInvalid, match="unknown type"):
        Functions([Function("x", 1, {"x": "i64"}, "i32", max)])


def test_the_type_of_a_result_is_that_of_the_inputs():
    program = compiled(
        {"a": sub("f32", default=1.5)},
        {"list": call("list.of", {"p": "a", "q": "a"}, l=MEMORY)},
    )
    assert program.steps[0].outputs[0].slot.type == "[f32]"
