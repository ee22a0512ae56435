"""Frames: what runs, what is stale, and what modules are called for."""

from __future__ import annotations

import pytest

from tests.unit.programs.documents import (
    MEMORY,
    MODULE,
    call,
    compiled,
    derived,
    execution,
    local,
    sub,
)
from xsc.base.encoding import encode
from xsc.base.errors import ArgumentInvalid, ProgramInvalid
from xsc.programs.frame import Execution, Fault, place_of
from xsc.programs.numbers import to_space
from xsc.programs.runtime import hot_swap
from xsc.terms.execution import Number

CHAIN = (
    {"a": sub(default=0), "b": sub(default=0), "s": derived("sum", "s")},
    {
        "double": call("math.add", {"x": "s", "y": "s"}, d=MEMORY),
        "other": call("math.add", {"x": "b", "y": "b"}, o=MEMORY),
        "sum": call("math.add", {"x": "a", "y": "a"}, s={"path": "demo/s"}),
    },
)


def ran(result):
    return [item.step.id for item in result.executed]


def test_only_what_depends_on_a_change_runs():
    running = execution(*CHAIN)
    first = running.run({"a": 1})
    assert (first.frame, ran(first)) == (1, ["other", "sum", "double"])
    assert ran(running.run({"a": 2})) == ["sum", "double"]
    assert ran(running.run({"b": 5})) == ["other"]
    assert ran(running.run({"a": 2})) == []
    assert running.output("d") == 8


def test_an_error_is_recorded_and_what_depends_on_it_is_stale_and_not_written():
    running = execution(*CHAIN)
    running.run({"a": 1})
    result = running.run({"a": 2**30, "b": 1})
    assert ran(result) == ["other"]
    assert set(running.errors) == {"sum"}
    assert running.stale == {"double"}
    assert running.output("s") is None
    assert running.output("d") is None
    assert ran(running.run({"b": 2})) == ["other"]
    assert running.stale == {"double"}
    assert ran(running.run({"a": 1})) == ["sum"]
    assert (running.errors, running.stale, running.output("d")) == ({}, set(), 4)


def test_a_variable_without_a_value_makes_its_readers_stale():
    running = execution({"a": sub()}, {"sum": call("math.add", {"x": "a", "y": "a"}, s=MEMORY)})
    running.run()
    assert running.errors["a"].startswith("there is no value at 'demo/a'")
    assert running.stale == {"sum"}
    running.run({"a": 1})
    assert (running.errors, running.stale, running.output("s")) == ({}, set(), 2)
    running.run({"a": Fault("gone")})
    assert (running.errors, running.output("s")) == ({"a": "gone"}, None)


def test_a_local_variable_is_read_in_the_next_frame_and_a_hot_swap_keeps_it():
    parts = (
        {"n": local(), "a": sub(default=0)},
        {"count": call("math.add", {"x": "n", "y": "a"}, o={"local": "n"})},
    )
    running = execution(*parts)
    assert running.run({"a": 1}).again
    assert (running.output("o"), running.value("n")) == (1, 0)
    running.run()
    assert (running.output("o"), running.value("n")) == (2, 1)
    program = compiled(*parts)
    swapped = Execution.begin(program, hot_swap(running.runtime, program))
    swapped.run({"a": 0})
    assert swapped.value("n") == 2


RING = (
    {"one": local(), "ring": local(size=2), "go": sub(default=0)},
    {
        "first": call("math.add", {"x": "one", "y": "go"}, f={"path": "demo/f"}),
        "total": call("list.sum", {"items": "ring"}, t={"local": "one"}),
    },
)


def test_what_is_set_is_pushed_to_a_local_variable():
    running = execution(*RING)
    running.run({"one": 7, "ring": 2})
    assert (running.value("one"), running.value("ring")) == (7, (0, 2))
    assert (running.output("f"), running.output("t")) == (7, 2)
    assert ran(running.run({"ring": 3})) == ["first", "total"]  # with what it wrote before
    assert (running.value("one"), running.value("ring"), running.output("t")) == (2, (2, 3), 5)
    running.run({"ring": 2**31})
    assert "is no i32" in running.errors["ring"]
    assert running.stale == {"total"}
    running.run({"ring": 4})
    assert (running.errors, running.value("ring")) == ({}, (3, 4))


def test_a_frame_waits_while_a_local_variable_has_another_value_than_was_read():
    running = execution(*RING)
    assert running.waits()
    assert running.run({"ring": 2}).again
    assert running.waits()
    assert not running.run({}).again
    assert not running.waits()
    running.run({"go": Fault("gone")})
    assert not running.waits()


def kept_of(running):
    """What is kept of a program, by path, as a frame writes it."""
    kept = {"state": encode([running.runtime.frame_id, running.save()])}
    for step in running.program.steps:
        for output in step.outputs:
            value = (
                running.runtime.values.read(output.slot.slot) if ran_once(running, output) else None
            )
            if value is not None:
                kept[place_of(running.program, output)] = to_space(output.slot.type, value)
    return kept


def ran_once(running, output):
    return output.slot.slot in running._had


@pytest.mark.parametrize("frames", range(1, 7))
def test_a_program_goes_on_from_what_was_kept_of_it(frames):
    """Values, errors, staleness and rings are there again, and the next frames are the same."""
    parts = (
        {
            "a": sub(default=0),
            "b": sub(),
            "ring": local(size=2),
            "s": derived("sum", "s"),
        },
        {
            "sum": call("math.add", {"x": "a", "y": "a"}, s={"local": "ring"}),
            "next": call("math.add", {"x": "s", "y": "b"}, n={"path": "demo/n"}),
            "total": call("list.sum", {"items": "ring"}, t=MEMORY),
        },
    )
    changes = [{"a": 1}, {"b": 1}, {"a": 2**30}, {"b": Fault("gone")}, {"a": 5}, {"b": 2}, {"a": 6}]
    running, again = execution(*parts), execution(*parts)
    last = {}
    for change in changes[:frames]:
        running.run(change)
        last |= change
    kept = kept_of(running)
    again.restore(kept["state"], kept.get)
    for name, value in last.items():
        assert again.keep(name, value)
    assert kept_of(again) == kept
    assert (again.waits(), again.output("n")) == (running.waits(), running.output("n"))
    for change in changes[frames:]:
        assert again.run(change) == running.run(change)
    assert kept_of(again) == kept_of(running)


def test_a_frame_stops_for_the_calls_of_modules_and_goes_on_with_their_results():
    running = execution(
        {"a": sub(default=3), "s": derived("m", "s")},
        {
            "m": call(MODULE, {"x": "a"}, s={"memory": True, "type": "i32"}),
            "t": call("math.add", {"x": "s", "y": "a"}, t=MEMORY),
        },
    )
    frame = running.frame()
    (needed,) = next(frame)
    assert (needed.computation, needed.given) == ("m", (Number(type="i32", bits=b"\3\0\0\0"),))
    with pytest.raises(StopIteration) as done:
        frame.send([(Number(type="i32", bits=b"\7\0\0\0"),)])
    assert ran(done.value.value) == ["m", "t"]
    assert running.output("t") == 10
    frame = running.frame({"a": 4})
    next(frame)
    with pytest.raises(StopIteration):
        frame.send([(Number(type="i32", bits=b"\7\0\0\0"),) * 2])
    assert running.errors == {"m": "the module gives 2 results, and 1 are named"}
    assert running.stale == {"t"}


def test_the_results_of_a_module_go_to_the_outputs_that_name_them():
    running = execution(
        {"a": sub(default=3)},
        {
            "m": call(
                MODULE,
                {"x": "a"},
                one={**MEMORY, "type": "u32", "result": 1},
                two={**MEMORY, "type": "i32", "result": 0},
                same={**MEMORY, "type": "i32", "result": 1},
            )
        },
    )
    frame = running.frame()
    next(frame)
    with pytest.raises(StopIteration):
        frame.send([(Number(type="i32", bits=b"\7\0\0\0"), Number(type="i32", bits=b"\xff" * 4))])
    assert [running.output(name) for name in ("one", "two", "same")] == [2**32 - 1, 7, -1]


def test_a_frame_that_was_not_ended_is_made_up_for_by_the_next():
    running = execution(
        {"a": sub(default=3), "b": sub(default=1)},
        {
            "m": call(MODULE, {"x": "a"}, s={"memory": True, "type": "i32"}),
            "t": call("math.add", {"x": "b", "y": "b"}, t=MEMORY),
        },
    )
    frame = running.frame()
    next(frame)
    frame.close()
    frame = running.frame()
    next(frame)
    with pytest.raises(StopIteration) as done:
        frame.send([Fault("trapped")])
    assert ran(done.value.value) == ["t"]
    assert running.errors == {"m": "trapped"}


def test_what_cannot_be_set_is_refused():
    running = execution(*CHAIN)
    for name in ("s", "nobody"):
        with pytest.raises(ArgumentInvalid, match="that can be set"):
            running.run({name: 1})


@pytest.mark.parametrize(
    ("variables", "computations", "message"),
    [
        ({}, {"c": call("math.add", {"x": "a", "y": "a"})}, "c.inputs.x: no variable 'a'"),
        ({"a": derived("d", "o")}, {"c": call("text.of", {"value": "a"})}, "no computation 'd'"),
        ({"a": derived("c", "p")}, {"c": call("text.of", {"value": "a"})}, "has no output 'p'"),
        (
            {"a": derived("c", "o")},
            {"c": call("text.of", {"value": "a"}, o=MEMORY)},
            "itself: c < c",
        ),
        ({"c": sub()}, {"c": call("text.of", {"value": "c"})}, "is the name of a variable too"),
        ({"a": sub("text")}, {"c": call("math.add", {"x": "a", "y": "a"})}, "is given a text"),
        ({"a": sub()}, {"c": call("math.add", {"x": "a"})}, "is given x"),
        ({"a": sub()}, {"c": call("no.thing", {"x": "a"})}, "no function 'no.thing'"),
        ({"a": sub()}, {"c": call("text.of", {"value": "a"}, o={"path": "nodes/x"})}, "XSC alone"),
        ({"a": sub()}, {"c": call(MODULE, {"x": "a"}, o=MEMORY)}, "needs a type of numbers"),
        ({"a": sub("text")}, {"c": call(MODULE, {"x": "a"})}, "a module takes no text"),
        (
            {"a": sub()},
            {k: call("text.of", {"value": "a"}, **{k * 2: {"path": "demo/x"}}) for k in "cd"},
            "the path 'demo/x' has two writers: c and d",
        ),
    ],
)
def test_what_would_go_wrong_in_every_frame_is_a_compile_error(variables, computations, message):
    with pytest.raises(ProgramInvalid, match=message):
        compiled(variables, computations)
