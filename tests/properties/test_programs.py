"""Laws of programs. Each law is also given a broken variant, which it must find."""

from __future__ import annotations

import asyncio
import ctypes
import json
import math
import struct
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.unit.programs.documents import MEMORY, call, derived, local, sub
from tests.unit.programs.provenances import NETWORK, Runner
from xsc.base.errors import ArgumentInvalid
from xsc.programs import compile as compiling
from xsc.programs.compile import compile_program
from xsc.programs.document import parse, resolve
from xsc.programs.frame import Execution, Fault
from xsc.programs.functions import BUILT_IN, Functions
from xsc.programs.numbers import to_space
from xsc.programs.runtime import create_runtime_state, hot_swap
from xsc.programs.state import StateBuffer
from xsc.programs.values import SlotMeta, ValueStore
from xsc.programs.why import check_record, rerun, value_in
from xsc.space.paths import UserSpacePaths, below

QUICK = settings(max_examples=60, deadline=None)
FINDING = settings(
    max_examples=300,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


# A store that stamps frames is a store that keeps a set.

SLOTS = (0, 1, 5)


class Forgetful(ValueStore):
    """Marks no write, so that a slot has several writers."""

    __slots__ = ()

    def write(self, slot, value):
        super().write(slot, value)
        self._written[slot] -= 1


class Stuck(ValueStore):
    """Does not begin the next frame."""

    __slots__ = ()

    def clear(self):
        pass


def machine(store_type):
    class Stores(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.store = store_type([SlotMeta(slot, "i32", slot) for slot in SLOTS])
            self.values = {}
            self.written = set()

        @rule(slot=st.sampled_from((*SLOTS, 3)), value=st.sampled_from((1, 2, -1, 1.5, 2**31)))
        def write(self, slot, value):
            fits = isinstance(value, int) and value < 2**31
            if slot in SLOTS and slot not in self.written and fits:
                self.store.write(slot, value)
                self.values[slot] = value
                self.written.add(slot)
            else:
                with pytest.raises(ArgumentInvalid):
                    self.store.write(slot, value)

        @rule()
        def clear(self):
            self.store.clear()
            self.written.clear()

        @invariant()
        def same(self):
            for slot in SLOTS:
                assert self.store.written(slot) is (slot in self.written)
                if slot in self.values:
                    assert self.store.read(slot) == self.values[slot]

    return Stores


def test_a_store_of_frame_stamps_is_a_store_with_a_set():
    run_state_machine_as_test(machine(ValueStore), settings=QUICK)


@pytest.mark.parametrize("mutant", [Forgetful, Stuck])
def test_the_law_of_stores_finds_a_mutant(mutant):
    with pytest.raises((AssertionError, ArgumentInvalid, pytest.fail.Exception)):
        run_state_machine_as_test(machine(mutant), settings=FINDING)


# A compiled graph gives what a naive interpreter gives.

NUMBERS = ("i32", "f64", "f32")
VALUES = {
    "i32": (0, 1, 2, -3, 2**16, 2**31 - 1),
    "f64": (0.0, -0.0, 0.1, -3.0, 1e308, 5e-324, math.inf, math.nan),
    "f32": (0.0, -0.0, 0.5, -3.0, 3.4028234663852886e38, 2.0**-149, math.inf, math.nan),
    "text": ("", "a", "é\n"),
}
GONE = Fault("gone")


def variables_of(number):
    """Return types by name. `b` and `t` have no default: they may be missing from the start."""
    return {"a": number, "b": number, "k": "i32", "s": "text", "t": "text"}


def signatures(number):
    """Return functions with the types of their parameters and of their result."""
    for name in ("add", "subtract", "multiply", "divide"):
        yield f"math.{name}", {"x": number, "y": number}, number
    for type_ in {number, "text"}:
        yield "compare.equal", {"x": type_, "y": type_}, "i32"
        yield "compare.less", {"x": type_, "y": type_}, "i32"
        yield "compare.choose", {"if": "i32", "then": type_, "else": type_}, type_
        yield "list.of", {"p": type_, "q": type_}, f"[{type_}]"
        yield "list.length", {"items": f"[{type_}]"}, "i32"
    yield "list.sum", {"items": f"[{number}]"}, number
    yield "text.join", {"items": "[text]", "between": "text"}, "text"
    yield "text.of", {"value": "i32"}, "text"


def f32(value):
    return ctypes.c_float(value).value


def quotient(type_, x, y):
    if type_ == "i32":
        return int(x / y)
    if y:
        return x / y
    return math.nan if x == 0 or math.isnan(x) else x * math.copysign(math.inf, y)


def total(type_, items):
    found = 0 if type_ == "i32" else 0.0
    for item in items:
        found = f32(found + item) if type_ == "f32" else found + item
    return found


def bits(value):
    """Return what two values share if and only if they are the same."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack(">d", value)
    return tuple(map(bits, value)) if isinstance(value, tuple) else value


NAIVE = {
    "math.add": lambda _, x, y: x + y,
    "math.subtract": lambda _, x, y: x - y,
    "math.multiply": lambda _, x, y: x * y,
    "math.divide": quotient,
    "compare.equal": lambda _, x, y: int(bits(x) == bits(y)),
    "compare.less": lambda _, x, y: int(x < y),
    "compare.choose": lambda _, **given: given["then" if given["if"] else "else"],
    "list.of": lambda _, p, q: (p, q),
    "list.length": lambda _, items: len(items),
    "list.sum": total,
    "text.join": lambda _, items, between: between.join(items),
    "text.of": lambda _, value: str(value),
}


@st.composite
def graphs(draw):
    """Return a type of numbers, and computations as (id, function, inputs, type of the result).

    Inputs are variables or earlier ids.
    """
    number = draw(st.sampled_from(NUMBERS))
    types, found = variables_of(number), []
    for name in draw(st.permutations([f"c{at}" for at in range(draw(st.integers(1, 6)))])):
        known = set(types.values())
        fitting = sorted(
            (f for f in signatures(number) if known.issuperset(f[1].values())),
            key=lambda one: (one[0], one[2]),
        )
        function, params, result = draw(st.sampled_from(fitting))
        inputs = {
            param: draw(st.sampled_from([one for one, has in types.items() if has == type_]))
            for param, type_ in params.items()
        }
        found.append((name, function, inputs, result))
        types[name] = result
    return number, found


@st.composite
def histories(draw):
    """Return a graph, and what enters in each frame."""
    number, computations = draw(graphs())
    change = st.fixed_dictionaries(
        {},
        optional={
            name: st.sampled_from((*VALUES[type_], GONE))
            for name, type_ in variables_of(number).items()
        },
    )
    return (number, computations), draw(st.lists(change, max_size=6))


def document_of(graph):
    number, computations = graph
    defaults = {"a": 1, "k": 1, "s": "-"}
    variables = {
        name: sub(type_, path=f"in/{name}")
        | ({"default": defaults[name]} if name in defaults else {})
        for name, type_ in variables_of(number).items()
    }
    known = set(variables)
    variables |= {f"v-{name}": derived(name, f"o-{name}") for name, *_ in computations}
    return {
        "id": "p",
        "variables": variables,
        "computations": {
            name: call(
                function,
                {param: one if one in known else f"v-{one}" for param, one in inputs.items()},
                **{f"o-{name}": MEMORY},
            )
            for name, function, inputs, _ in computations
        },
    }


def compiled(document, functions=None):
    found = parse(json.dumps(document).encode(), "json")
    return compile_program(resolve(found, {}, {}), functions or Functions())


def start_of(graph):
    """Return what all variables are before the first frame."""
    first = 1 if graph[0] == "i32" else 1.0
    return {"a": first, "b": GONE, "k": 1, "s": "-", "t": GONE}


def naive(graph, values):
    """Return the bits of every computation, "error" or "stale"."""
    number, computations = graph
    found, shown = dict(values), {}
    for name, function, inputs, type_ in computations:
        given = {param: found[one] for param, one in inputs.items()}
        if GONE in given.values():
            found[name], shown[name] = GONE, "stale"
            continue
        try:
            value = NAIVE[function](number, **given)
            if type_ == "i32" and not -(2**31) <= value < 2**31:
                raise OverflowError
        except (ZeroDivisionError, OverflowError):
            found[name], shown[name] = GONE, "error"
            continue
        found[name] = f32(value) if type_ == "f32" else value
        shown[name] = bits(found[name])
    return shown


def shown(running, graph):
    found = {}
    for name, *_ in graph[1]:
        value = running.output(f"o-{name}")
        if name in running.errors:
            found[name] = "error"
        elif name in running.stale:
            found[name] = "stale"
        else:
            found[name] = bits(value)
        assert (value is None) is (name in running.errors or name in running.stale)
    return found


def nothing(running):
    pass


def check_graph(history, spoil):
    graph, changes = history
    running = Execution.begin(compiled(document_of(graph)))
    spoil(running)
    values = start_of(graph)
    for number, change in enumerate([{}, *changes]):
        values |= change
        result = running.run(change)
        assert result.frame == number + 1
        assert shown(running, graph) == naive(graph, values)


@QUICK
@given(histories())
def test_a_compiled_graph_gives_what_a_naive_interpreter_gives(history):
    check_graph(history, nothing)


def no_readers(running):
    running._readers.clear()


def test_the_law_of_graphs_finds_a_mutant():
    @FINDING
    @given(histories())
    def law(history):
        check_graph(history, no_readers)

    with pytest.raises(AssertionError):
        law()


def no_staleness(running):
    running._gives = dict.fromkeys(running._gives, frozenset())


def test_the_law_of_graphs_finds_a_frame_without_staleness():
    """What depends on an error goes on with what the computation gave before."""
    # Or it reads what was never computed.
    with pytest.raises((AssertionError, ArgumentInvalid)):
        FINDING(given(histories(), st.just(no_staleness))(check_graph))()


# A replay of every recorded frame gives the hashes of its outputs.


async def check_replay(history, functions):
    graph, changes = history
    program, node = compiled(document_of(graph), functions), Runner()
    types, values = variables_of(graph[0]), start_of(graph)
    for change in [{}, *changes]:
        values |= change
        for name, value in change.items():
            if value is GONE:
                node.space.entries.pop(f"in/{name}", None)
                values[name] = start_of(graph)[name]  # a default stands for it again
            else:
                node.space.write({f"in/{name}": to_space(types[name], value)})
        result = await node.frame(program)
        records = {
            record.computation: record
            for record in records_of(node, program)
            if record.frame == result.frame
        }
        assert records.keys() == {ran.step.id for ran in result.executed}
        wanted = naive(graph, values)
        for name, record in records.items():
            assert rerun(record, Functions(), {}) == (True, "")
            assert bits(value_in(record.output)) == wanted[name]


def records_of(node, program):
    prefix = below(UserSpacePaths.PROVENANCE, program.hash)
    for path, entry in list(node.space.entries.items()):
        if path.startswith(prefix):
            yield check_record(entry.value, network=NETWORK, author=node.owner).record


@QUICK
@given(histories())
def test_a_replay_of_every_recorded_frame_gives_its_hashes(history):
    asyncio.run(check_replay(history, Functions()))


def impure():
    """Return functions that give another integer each second time."""
    calls = count()

    def again(run):
        def changed(*given):
            value = run(*given)
            return value + next(calls) % 2 if type(value) is int else value

        return changed

    return Functions(replace(function, run=again(function.run)) for function in BUILT_IN)


def test_the_law_of_replays_finds_a_mutant():
    @FINDING
    @given(histories())
    def law(history):
        asyncio.run(check_replay(history, impure()))

    with pytest.raises(AssertionError):
        law()


# The order of lines, dicts and arrivals changes nothing.


def trace(document, changes):
    program = compiled(document)
    running = Execution.begin(program)
    results = [running.run(change) for change in changes]
    steps = [step.id for step in program.steps]
    return program.hash, steps, [str(result) for result in results], dict(running.errors)


def shuffled(table, random):
    if not isinstance(table, dict):
        return table
    items = [(key, shuffled(value, random)) for key, value in table.items()]
    random.shuffle(items)
    return dict(items)


@QUICK
@given(histories(), st.randoms(use_true_random=False))
def test_the_order_of_lines_and_arrivals_changes_nothing(history, random):
    graph, changes = history
    document = document_of(graph)
    again = [shuffled(change, random) for change in changes]
    assert trace(document, changes) == trace(shuffled(document, random), again)


def test_the_law_of_orders_finds_a_mutant(monkeypatch):
    """A schedule whose ties are broken by chance, which an order of lines might stand for."""
    numbers = iter(range(10**9))

    def by_chance(depends):
        left, found = list(depends), []
        if next(numbers) % 2:
            left.reverse()
        while left:
            name = next(name for name in left if set(depends[name]) <= set(found))
            left.remove(name)
            found.append(name)
        return tuple(found)

    monkeypatch.setattr(compiling, "order", by_chance)

    @FINDING
    @given(graphs())
    def law(graph):
        assert trace(document_of(graph), [{}]) == trace(document_of(graph), [{}])

    with pytest.raises(AssertionError):
        law()


# A hot swap keeps damping.


def damped(extra):
    """Return a program that keeps the last three values, beside other local variables."""
    variables = {"ring": local(size=3), "in": sub(default=0)}
    variables |= {f"x{number}": local(size=size) for number, size in enumerate(extra)}
    keep = call("math.add", {"x": "in", "y": "in"}, o={"local": "ring"})
    sums = call("list.sum", {"items": "ring"}, s=MEMORY)
    return compiled({"id": "p", "variables": variables, "computations": {"k": keep, "s": sums}})


def check_swaps(histories):
    runtime, kept = create_runtime_state(damped([])), [0, 0, 0]
    last = None
    for extra, values in histories:
        program = damped(extra)
        runtime = hot_swap(runtime, program)
        running, last = Execution.begin(program, runtime), None
        for value in values:
            running.run({"in": value})
            if value != last:
                kept.append(2 * value)
            last = value
            assert runtime.state.read(("ring", "local")) == tuple(kept[-3:])


HISTORIES = st.lists(
    st.tuples(st.lists(st.integers(1, 4), max_size=3), st.lists(st.integers(0, 3), max_size=4)),
    max_size=4,
)


@QUICK
@given(HISTORIES)
def test_a_hot_swap_keeps_damping(histories):
    check_swaps(histories)


def test_the_law_of_hot_swaps_finds_a_mutant(monkeypatch):
    monkeypatch.setattr(StateBuffer, "restore", lambda self, saved: frozenset())
    with pytest.raises(AssertionError):
        FINDING(given(HISTORIES)(check_swaps))()
