"""Schedules: what is refused, and the bounds that no document passes."""

from __future__ import annotations

import pytest

from tests.unit.programs.documents import (
    MEMORY,
    MODULE,
    call,
    compiled,
    derived,
    from_parts,
    local,
    sub,
)
from xsc.base.errors import ProgramInvalid
from xsc.programs.limits import (
    DEBOUNCE_MS_MAX,
    FETCH_MS_MAX,
    LIST_ITEMS_MAX,
    PROGRAM_VALUES_BYTES_MAX,
    RING_MAX,
    STATE_CELLS_MAX,
    VALUE_BYTES_MAX,
)
from xsc.programs.numbers import size_max


def test_a_local_variable_has_one_writer_of_its_own_type():
    variables = {"a": sub(), "l": local(), "f": local("f64")}
    with pytest.raises(ProgramInvalid, match="two writers: one and two"):
        compiled(
            variables,
            {
                "one": call("math.add", {"x": "a", "y": "a"}, s={"local": "l"}),
                "two": call("math.add", {"x": "a", "y": "a"}, t={"local": "l"}),
            },
        )
    with pytest.raises(ProgramInvalid, match="a i32 does not fit the f64 'f'"):
        compiled(variables, {"one": call("math.add", {"x": "a", "y": "a"}, s={"local": "f"})})
    with pytest.raises(ProgramInvalid, match="no local variable 'a'"):
        compiled(variables, {"one": call("math.add", {"x": "a", "y": "a"}, s={"local": "a"})})


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_a_circle_of_any_length_is_named_and_what_is_behind_it_is_not(length):
    variables = {f"v{n}": derived(f"c{n}", f"o{n}") for n in range(length)}
    computations = {
        f"c{n}": call("math.add", {"x": f"v{(n + 1) % length}", "y": "a"}, **{f"o{n}": MEMORY})
        for n in range(length)
    }
    variables |= {"a": sub(), "behind": derived("c0", "o0")}
    computations["aaa"] = call("math.add", {"x": "behind", "y": "a"}, z=MEMORY)
    circle = " < ".join([*(f"c{n}" for n in range(length)), "c0"])
    with pytest.raises(ProgramInvalid, match=f"computations.c0: depends on itself: {circle}$"):
        compiled(variables, computations)


def test_local_variables_of_a_program_have_a_bound_together():
    one = {"one": call("math.add", {"x": "a", "y": "a"}, s=MEMORY)}
    fits = {f"l{n}": local(size=RING_MAX) for n in range(STATE_CELLS_MAX // RING_MAX)}
    compiled({"a": sub()} | fits, one)
    with pytest.raises(ProgramInvalid, match=f"{STATE_CELLS_MAX + 1} values, {STATE_CELLS_MAX}"):
        compiled({"a": sub(), "more": local()} | fits, one)


def test_the_values_of_a_program_have_a_bound_together():
    join = call("text.join", {"items": "l", "between": "t0"}, o=MEMORY)
    most = PROGRAM_VALUES_BYTES_MAX // VALUE_BYTES_MAX
    texts = {f"t{n}": sub("text") for n in range(most - 2)}
    compiled({"l": sub("[text]")} | texts, {"join": join})
    with pytest.raises(ProgramInvalid, match=f"bytes, {PROGRAM_VALUES_BYTES_MAX} at most"):
        compiled({"l": sub("[text]"), "more": sub("bytes")} | texts, {"join": join})


@pytest.mark.parametrize(
    ("type_", "size_bytes"),
    [
        ("u32", 8),
        ("integer", 8),
        ("[f64]", 8 * LIST_ITEMS_MAX),
        ("text", VALUE_BYTES_MAX),
        ("[bytes]", VALUE_BYTES_MAX),
    ],
)
def test_a_type_says_how_large_its_values_get(type_, size_bytes):
    assert size_max(type_) == size_bytes


def test_waiting_and_debounce_have_bounds():
    one = {"one": call("math.add", {"x": "a", "y": "a"}, s=MEMORY)}

    def fetch(wait_ms):
        return {"a": {"kind": "fetch", "type": "i32", "path": "a", "wait_ms": wait_ms}}

    from_parts(fetch(FETCH_MS_MAX), one, debounce_ms=DEBOUNCE_MS_MAX)
    with pytest.raises(ProgramInvalid, match=f"wait_ms: must be 0 to {FETCH_MS_MAX}"):
        from_parts(fetch(FETCH_MS_MAX + 1), one)
    with pytest.raises(ProgramInvalid, match=f"debounce_ms: must be 0 to {DEBOUNCE_MS_MAX}"):
        from_parts(fetch(0), one, debounce_ms=DEBOUNCE_MS_MAX + 1)


def test_a_module_takes_its_inputs_in_the_order_of_their_names():
    program = compiled(
        {"one": sub(), "two": sub("f64")},
        {"run": call(MODULE, {"b": "one", "a": "two"}, r={**MEMORY, "type": "i32"})},
    )
    assert [(read.param, read.slot.type) for read in program.steps[0].inputs] == [
        ("a", "f64"),
        ("b", "i32"),
    ]


def test_a_given_variable_is_for_programs_that_come_with_xsc():
    variables = {"a": {"kind": "given", "type": "i32"}}
    computations = {"c": call("text.of", {"value": "a"})}
    message = "variables.a.kind: 'given' is a kind for programs that come with XSC"
    with pytest.raises(ProgramInvalid, match=message):
        compiled(variables, computations)
