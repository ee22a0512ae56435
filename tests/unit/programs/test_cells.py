"""Cells: one value out of what several nodes say, by a merge rule; and propagators between them."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.programs.documents import MEMORY, call, derived
from tests.unit.programs.nodes import ProgramNode, document
from tests.unit.space.test_store import Journal
from xsc.base.errors import ArgumentInvalid, ProgramInvalid
from xsc.base.ids import short
from xsc.programs import numbers
from xsc.programs.functions import Functions, check_said
from xsc.programs.limits import LIST_ITEMS_MAX, OWN_FRAMES_MAX, VALUE_BYTES_MAX
from xsc.programs.numbers import INTEGERS, NAN, check_value, parse_value, same
from xsc.programs.running import latest
from xsc.programs.service import CellSyncManager
from xsc.space.itc import Stamp
from xsc.space.limits import VALUE_INLINE_BYTES_MAX
from xsc.space.paths import UserSpacePaths, below

EXAMPLES = Path(__file__).parents[3] / "examples"
FIXTURES = Path(__file__).parents[3] / "fixtures" / "wasm"
SAME = {"kind": "value", "type": "integer", "value": 0}


def cell(type_="[integer]", merge="interval", sources=("alice", "bob"), path="cells/x", **keys):
    return {"kind": "cell", "type": type_, "merge": merge, "path": path, "sources": [*sources]}


def reading(**keys):
    """A program that shows what a cell is."""
    return document({"x": cell(**keys)}, {"show": call("merge.last", {"x": "x"}, shown=MEMORY)})


@pytest.fixture
async def two():
    alice = ProgramNode("alice", db=Journal())
    bob = ProgramNode("bob", db=Journal(), clock=alice.clock)
    alice.meet(bob)
    yield alice, bob
    await alice.end()
    await bob.end()


async def run_on(nodes, text):
    return [await node.run(text, "json") for node in nodes]


def shown(node, program, name="x"):
    return node.manager.get_results(program).variables[name]


async def test_two_nodes_narrow_an_interval_together_and_come_to_rest(two):
    programs = await run_on(two, reading())
    assert programs[0] == programs[1], "one document is one program everywhere"
    for node, said in zip(two, ("[0, 60]", "[50, 90]"), strict=True):
        await node.put("cells/x", said)
    await two[0].pass_ms(200)
    for node, program in zip(two, programs, strict=True):
        assert shown(node, program) == "[50, 60]"
        assert node.get("cells/x") in {"[0, 60]", "[50, 90]"}, "what others say is not said again"
    written = [len(node.db.writes) for node in two]
    await two[0].pass_ms(3_600_000)
    assert [len(node.db.writes) for node in two] == written


@pytest.mark.parametrize(
    ("type_", "merge", "said", "value"),
    [
        ("integer", "min", ("3", "-1"), "-1"),
        ("f64", "max", ("0.5", "-1"), "0.5"),
        ("u32", "counter", ("3", "4"), "7"),
        ("[text]", "union", ('["b", "a"]', '["b"]'), '["a", "b"]'),
        ("[f64]", "interval", ("[0, 2]", "[1.5, 3]"), "[1.5, 2.0]"),
        ("text", "last", ("one", "two"), "two"),
        ("bytes", "last", ("one", "two"), "74776f"),
    ],
)
async def test_merge_rules(two, type_, merge, said, value):
    alice, bob = two
    program = await alice.run(reading(type_=type_, merge=merge), "json")
    await alice.put("cells/x", said[0])
    await alice.pass_ms(150)
    assert alice.manager.get_results(program).errors == {}
    await bob.put("cells/x", said[1])
    await alice.pass_ms(150)
    assert shown(alice, program) == value
    again = await alice.again()
    assert shown(again, program) == value
    await again.end()


async def test_a_faulty_source_is_named_and_breaks_nothing(two):
    alice, bob = two
    program = await alice.run(reading(), "json")
    await alice.put("cells/x", "[0, 60]")
    for said, why in (
        ("[7]", "an interval is a list of its least and its greatest number"),
        ("[7, 3]", "an interval is a list"),
        ("many", "'many' is no [integer]"),
        ("\udcff", "the bytes are no text"),
        ("x" * 6 * VALUE_BYTES_MAX, "is no [integer]"),
    ):
        await bob.space.put_all({"cells/x": said.encode(errors="surrogateescape")[:1_000_000]})
        await alice.pass_ms(150)
        results = alice.manager.get_results(program)
        assert results.variables["x"] == "[0, 60]"
        (named,) = results.errors
        assert named == f"x.{short(bob.id)}"
        assert why in results.errors[named]
    await bob.put("cells/x", "[50, 90]")
    await alice.pass_ms(150)
    results = alice.manager.get_results(program)
    assert (results.variables["x"], results.errors) == ("[50, 60]", {})


async def test_intervals_without_a_common_part_contradict_until_one_gives_way(two):
    alice, bob = two
    program = await alice.run(reading(), "json")
    await alice.put("cells/x", "[0, 1]")
    await bob.put("cells/x", "[2, 3]")
    await alice.pass_ms(150)
    results = alice.manager.get_results(program)
    assert results.errors == {
        "x.merge": "the sources contradict each other: at least 2, and at most 1"
    }
    assert (results.variables["x"], results.stale) == (None, ["show"])
    await bob.space.rm("cells/x")
    await alice.pass_ms(150)
    assert shown(alice, program) == "[0, 1]"
    await alice.space.rm("cells/x")
    await alice.pass_ms(150)
    results = alice.manager.get_results(program)
    assert (results.errors, results.stale) == ({}, ["show", "x.merge"])


async def test_a_node_that_is_no_source_says_nothing(two):
    alice, bob = two
    program = await alice.run(reading(sources=["alice"]), "json")
    await bob.put("cells/x", "[0, 1]")
    await alice.put("cells/x", "[5, 7]")
    await alice.pass_ms(150)
    assert (shown(alice, program), alice.watched) == ("[5, 7]", [])


async def test_a_large_value_of_a_source_is_loaded_when_a_frame_reads_it(two):
    alice, bob = two
    program = await alice.run(reading(type_="text", merge="last", sources=["bob"]), "json")
    loaded = []

    async def take(other, change):
        await alice.space.take(other.id, [(change.signed, None)])

    async def read(owner, path):
        loaded.append(path)
        return bob.space.get(path)

    alice.take, alice.read = take, read
    await bob.put("cells/x", "x" * (VALUE_INLINE_BYTES_MAX + 1))
    assert loaded == []
    await alice.pass_ms(150)
    assert loaded == ["cells/x"]
    assert len(shown(alice, program)) == VALUE_INLINE_BYTES_MAX + 1


async def test_a_circle_of_propagators_is_stopped_and_named(two):
    alice, _ = two
    text = document(
        {"x": cell("integer", "max", ["alice"]), "one": SAME | {"value": 1}},
        {"more": call("math.add", {"x": "x", "y": "one"}, more={"path": "cells/x"})},
    )
    program = await alice.run(text, "json")
    await alice.put("cells/x", "0")
    await alice.pass_ms(3_600_000)
    results = alice.manager.get_results(program)
    assert (results.state, results.fault[:20]) == ("oscillates", "program_oscillates: ")
    assert OWN_FRAMES_MAX <= int(alice.get("cells/x")) <= OWN_FRAMES_MAX + 3
    circle = document(
        {"x": cell("integer", "max"), "y": derived("c", "o")},
        {"c": call("math.add", {"x": "x", "y": "y"}, o=MEMORY)},
    )
    with pytest.raises(ProgramInvalid, match=r"computations.c: depends on itself: c < c"):
        await alice.manager.register(circle, "json")


async def test_what_is_said_is_explained_across_nodes_and_replayed(two):
    alice, bob = two
    text = document(
        {"x": cell(sources=["alice", "bob"])},
        {"length": call("list.length", {"items": "x"}, n={"path": "demo/n"})},
    )
    await alice.run(text, "json")
    await alice.put("cells/x", "[0, 60]")
    await bob.put("cells/x", "[50, 90]")
    await alice.pass_ms(150)
    (merged, length) = alice.recorder.made[-2:]
    assert (merged.function, length.function) == ("merge.interval", "list.length")
    assert {given.source.owner for given in merged.inputs} == {alice.id, bob.id}
    assert length.inputs[0].parents


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"merge": "sum"}, "variables.x.merge: 'sum' is no merge rule: last, min, max, counter"),
        ({"merge": "min"}, "variables.x: 'min' merges no [integer], but f64, f32, i32"),
        ({"type_": "text"}, "variables.x: 'interval' merges no text, but [f64], [f32]"),
        ({"sources": ["dora"]}, "variables.x.sources: no peer is called 'dora'"),
        ({"sources": [7]}, "variables.x.sources: must be names of nodes"),
        ({"sources": ["a"] * 65}, "variables.x.sources: 65 are more than 64"),
        ({"path": "../x"}, "variables.x.path: not a path"),
    ],
)
async def test_what_is_no_cell_is_refused(two, keys, fault):
    with pytest.raises(ProgramInvalid) as found:
        await two[0].manager.register(reading(**keys), "json")
    assert fault in found.value.message


# Laws

NUMBERS = {
    "f64": st.floats(),
    "f32": st.floats(width=32),
    "integer": st.integers(*INTEGERS["integer"]),
    "u32": st.integers(*INTEGERS["u32"]),
}
EDGES = {
    "f64": [0.0, -0.0, NAN, math.inf, -math.inf, 1e16, 1.0, -1e16, 1.7e308],
    "f32": [0.0, -0.0, NAN, math.inf, -math.inf, 2.0**24, 1.0, -(2.0**24), 2.0**127],
    "integer": [0, 2**61, 2**63 - 1, -(2**63)],
    "u32": [0, 2**31, 2**32 - 1],
}
ITEMS_MAX = 8


def contents(rule, type_):
    """What sources may say, with much of what is special."""
    number = st.sampled_from(EDGES[type_]) | NUMBERS[type_]
    if rule == "union":
        return st.lists(number, max_size=ITEMS_MAX + 1).map(tuple)
    if rule == "interval":
        return st.lists(number, min_size=1, max_size=3).map(tuple)
    return number


@pytest.mark.parametrize("type_", NUMBERS)
@pytest.mark.parametrize("rule", ["min", "max", "counter", "union", "interval"])
def test_contents_merge_in_any_order(rule, type_, monkeypatch):
    """What counts of each source fits together, whatever each says; intervals may contradict."""
    monkeypatch.setattr(numbers, "LIST_ITEMS_MAX", ITEMS_MAX)
    merge = Functions().get(f"merge.{rule}").run
    of = f"[{type_}]" if rule in {"union", "interval"} else type_

    def merged(values):
        return check_value(of, merge(type_, *values))

    def counts_for_something(value, sources):
        try:
            check_said(rule, of, value, sources)
        except ArgumentInvalid:
            return False
        return True

    @given(st.lists(contents(rule, type_), min_size=1, max_size=5), st.randoms())
    def law(said, random):
        counts = [value for value in said if counts_for_something(value, len(said))]
        lows = [value[0] for value in counts if rule == "interval"]
        highs = [value[1] for value in counts if rule == "interval"]
        if not counts or max(lows, default=0) > min(highs, default=0):
            return
        found, turned = merged(counts), counts.copy()
        random.shuffle(turned)
        assert same(of, merged(turned), found)
        if rule != "counter":
            assert same(of, merged([found, *counts]), found), "what is merged adds nothing"

    law()


@pytest.mark.parametrize(
    ("of", "fits", "wrong", "why"),
    [
        ("f64 min", "-1", "nan", "NaN is neither less nor greater"),
        ("f32 max", "1", "nan", "NaN is neither less nor greater"),
        ("f64 counter", "1", "nan", "no finite number"),
        ("f32 counter", "1", "-inf", "no finite number"),
        ("f64 counter", "1", "1e308", "over the share of one of 2 sources"),
        ("u32 counter", f"{2**31 - 1}", f"{2**31}", "the share of one of 2 sources"),
        ("integer counter", f"{-(2**62)}", f"{-(2**62) - 1}", "the share of one of 2 sources"),
        (
            "[i32] union",
            f"{[*range(LIST_ITEMS_MAX // 2)]}",
            f"{[*range(LIST_ITEMS_MAX // 2 + 1)]}",
            "the share of one of 2 sources",
        ),
        (
            "[text] union",
            f'["{"x" * (VALUE_BYTES_MAX // 2)}"]',
            f'["{"x" * (VALUE_BYTES_MAX // 2)}", "y"]',
            "the share of one of 2 sources",
        ),
    ],
)
async def test_what_a_source_says_beyond_its_share_counts_for_nothing(two, of, fits, wrong, why):
    """A source alone must not make the cell fail for the others."""
    alice, bob = two
    type_, merge = of.split()
    program = await alice.run(reading(type_=type_, merge=merge), "json")
    await alice.space.put_all({"cells/x": fits.encode()})
    await bob.space.put_all({"cells/x": wrong.encode()})
    await alice.pass_ms(150)
    results = alice.manager.get_results(program)
    assert parse_value(type_, results.variables["x"]) == parse_value(type_, fits)
    assert [*results.errors] == [f"x.{short(bob.id)}"]
    assert why in results.errors[f"x.{short(bob.id)}"]
    await bob.space.put_all({"cells/x": fits.encode()})
    await alice.pass_ms(150)
    assert alice.manager.get_results(program).errors == {}


def said(event, written_ms, name=b""):
    record = SimpleNamespace(causality=Stamp(b"\1" * 32, event), written_ms=written_ms)
    return SimpleNamespace(record=record, id=name.rjust(32, b"\0"))


def test_the_last_by_stamp_holds_whatever_the_dates_say():
    assert latest({"early": said(1, 100), "late": said(2, 1)}) == "late"


def test_of_concurrent_ones_the_last_by_date_holds_and_then_the_greater_id():
    left, right = (0, 1, 0), (0, 0, 1)
    assert latest({"a": said(left, 7), "b": said(right, 6)}) == "a"
    assert latest({"a": said(left, 7, b"1"), "b": said(right, 7, b"2")}) == "b"
    assert latest({}) is None


def test_skewed_clocks_make_no_circle_of_last_writers():
    """Compared in pairs, A is before B by stamp, B before C by date, and C before A by date."""
    three = {"a": said((0, 1, 0), 10), "b": said((0, 2, 0), 5), "c": said((0, 0, 1), 7)}
    for first in three:
        assert latest({name: three[name] for name in (first, *three)}) == "c"


# By the names of their seed


async def test_the_examples_of_cells_by_code_run(two):
    examples = SimpleNamespace(**runpy.run_path(str(EXAMPLES / "cells" / "by_code.py")))
    alice, bob = two
    one, other = (CellSyncManager(node.manager, node.space) for node in two)
    both = [alice.id, bob.id]
    loads = [await examples.follow_a_load(manager, both) for manager in (one, other)]
    twice = await examples.double(one, loads[0])
    assert loads[0].strongest() is None
    await loads[1].update(5)
    await alice.pass_ms(500)
    assert [load.strongest() for load in loads] == [5, 5]
    assert twice.strongest() == 10
    with pytest.raises(ArgumentInvalid):
        await loads[0].update("many")
    carried = await examples.carry(one, both)
    assert await carried.load_strongest() == ("load", "twice")
    assert carried.children() == ["load", "twice"]
    child = await carried.child("load", "integer", "max")
    assert await child.load_strongest() == 5
    await one.unfollow(carried)
    assert (bob.id, below(UserSpacePaths.CELLS, "all")) not in alice.watched
    assert examples.cache() == [5, None]
    assert examples.call((FIXTURES / "add.wasm").read_bytes()) == 5
