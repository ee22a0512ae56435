"""Cells: what each merge rule makes of what several owners say."""

from __future__ import annotations

import pytest

from xsc.base.errors import ArgumentInvalid, NotFound, RecordInvalid
from xsc.identity.envelope import sign
from xsc.space.cells import (
    MERGE_RULES,
    Contribution,
    Propagator,
    Strongest,
    cell_bytes,
    cell_value,
    check_rule,
    contribution,
    merge_content,
    strongest,
)
from xsc.space.itc import Stamp, event_bytes
from xsc.space.record import SpaceRecord, value_digest

A, B, C = b"\xaa" * 32, b"\xbb" * 32, b"\xcc" * 32


def says(value, *, sequence=1, written_ms=0, name=b"", event=0, domain=b"\1" * 32):
    identity = name.rjust(32, b"\0")
    return Contribution(value, sequence, written_ms, identity, Stamp(domain, event))


@pytest.mark.parametrize(
    ("rule", "values", "value"),
    [
        ("min", [3, -1, 2], -1),
        ("max", [3, -1, 2], 3),
        ("counter", [3, -1, 2], 4),
        ("union", [["a", "b"], ["b"], [3]], [3, "a", "b"]),
        ("interval", [[0, 9], [3, 12], [-5, 7]], [3, 7]),
        ("map:max", [{"x": 1, "y": 5}, {"x": 2}, {}], {"x": 2, "y": 5}),
        ("map:map:min", [{"x": {"k": 4}}, {"x": {"k": 3, "l": 1}}, {}], {"x": {"k": 3, "l": 1}}),
    ],
)
def test_merge_rules(rule, values, value):
    content = dict(zip((A, B, C), map(says, values), strict=True))
    assert strongest(check_rule(rule), content) == Strongest("value", value)


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_without_a_source_there_is_nothing(rule):
    assert strongest(rule, {}) == Strongest("nothing")
    assert strongest(rule, {A: says(5)}, sources=[]) == Strongest("nothing")


def test_the_last_by_stamp_holds_whatever_the_dates_say():
    content = {A: says("early", event=1, written_ms=100), B: says("late", event=2, written_ms=1)}
    assert strongest("last", content).value == "late"


def test_of_concurrent_ones_the_last_by_date_holds_and_then_the_greater_id():
    left, right = (0, 1, 0), (0, 0, 1)
    content = {A: says("a", event=left, written_ms=7), B: says("b", event=right, written_ms=6)}
    assert strongest("last", content).value == "a"
    content = {A: says("a", event=left, name=b"1"), B: says("b", event=right, name=b"2")}
    assert strongest("last", content).value == "b"
    content = {A: says("a", event=9, written_ms=1), B: says("b", domain=b"\2" * 32, written_ms=2)}
    assert strongest("last", content).value == "b"


def test_skewed_clocks_make_no_circle_of_last_writers():
    """Compared in pairs, A is before B by stamp, B before C by date, and C before A by date."""
    content = {
        A: says("a", event=(0, 1, 0), written_ms=10),
        B: says("b", event=(0, 2, 0), written_ms=5),
        C: says("c", event=(0, 0, 1), written_ms=7),
    }
    assert strongest("last", content).value == "c"
    for first in (A, B, C):
        turned = {source: content[source] for source in (first, *content)}
        assert strongest("last", turned).value == "c"


def test_a_source_that_is_taken_out_no_longer_counts():
    content = {A: says(5), B: says(-(10**9)), C: says(7)}
    assert strongest("min", content).value == -(10**9)
    assert strongest("min", content, sources=[A, C]).value == 5


def test_intervals_without_a_common_part_contradict():
    content = {A: says([0, 1]), B: says([2, 3])}
    assert strongest("interval", content) == Strongest("contradiction", [2, 1])
    assert strongest("interval", content, sources=[A]).value == [0, 1]
    nested = {A: says({"x": [0, 1]}), B: says({"x": [2, 3]})}
    assert strongest("map:interval", nested).state == "contradiction"


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("min", "5"),
        ("max", True),
        ("counter", None),
        ("union", {"a": 1}),
        ("interval", [3]),
        ("interval", [3, 2]),
        ("interval", [3, "4"]),
        ("map:max", {"x": "5"}),
        ("map", 5),
        ("max", b"raw"),
    ],
)
def test_a_faulty_source_is_named_and_breaks_nothing(rule, value):
    good = {"union": ["g"], "interval": [0, 1], "map:max": {"x": 1}, "map": {"x": 1}}.get(rule, 1)
    found = strongest(rule, {A: says(value), B: says(good)})
    assert found == Strongest("value", good, (A,))


def test_a_sum_beyond_64_bits_is_a_contradiction():
    content = {A: says(2**63 - 1), B: says(1)}
    assert strongest("counter", content) == Strongest("contradiction")


@pytest.mark.parametrize("rule", ["", "sum", "map:", "min:map", "map:" * 9 + "min", "MIN"])
def test_a_rule_that_does_not_exist_is_refused(rule):
    with pytest.raises(ArgumentInvalid):
        check_rule(rule)


@pytest.mark.parametrize("value", [5, -5, "é", [1, [2]], {"b": None, "a": [True]}, None])
def test_a_cell_reads_what_it_wrote(value):
    assert cell_value(cell_bytes(value)) == value


def test_what_a_user_types_is_a_cells_value():
    assert cell_value(b"5") == 5
    assert cell_bytes({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"5.0",
        b"NaN",
        b"1e3",
        b'{"a":1,"a":2}',
        b"[" * 5000,
        b"9" * 5000,
        b"\xff",
        b"1 2",
        b"18446744073709551616",
        b'"\\ud800"',
        b"[" * 40 + b"1" + b"]" * 40,
    ],
)
def test_what_is_no_value_of_a_cell_is_refused(raw):
    with pytest.raises(RecordInvalid):
        cell_value(raw)


@pytest.mark.parametrize("value", [b"bytes", [b"bytes"], 1.5, 2**64])
def test_what_a_cell_cannot_hold_is_not_written(value):
    with pytest.raises(RecordInvalid):
        cell_bytes(value)


def test_a_record_contributes_its_value(alice, network):
    def signed(value):
        return sign(
            SpaceRecord(
                path="x",
                sequence=3,
                written_ms=4,
                domain=b"\1" * 32,
                stamp=event_bytes(5),
                digest=None if value is None else value_digest(value),
                size_bytes=len(value or b""),
            ),
            alice,
            network,
        )

    record = signed(b"17")
    said = contribution(record, b"17")
    assert said == Contribution(17, 3, 4, record.id, Stamp(b"\1" * 32, 5))
    assert contribution(signed(b"\xff"), b"\xff").value == b"\xff"
    assert contribution(signed(None), None) is None
    with pytest.raises(NotFound):
        contribution(record, None)  # it is not loaded, which is no deletion


def test_the_newest_contribution_of_a_source_holds():
    old, new = says(1, sequence=1), says(2, sequence=2)
    assert merge_content({A: old}, {A: new}) == merge_content({A: new}, {A: old}) == {A: new}
    left, right = says(1, name=b"1"), says(2, name=b"2")
    assert merge_content({A: left}, {A: right}) == merge_content({A: right}, {A: left}) == {A: left}


def test_a_propagator_is_described_without_its_function():
    described = Propagator(name="add", inputs=("a/x",), outputs=("a/y",))
    assert Propagator.from_bytes(described.to_bytes()) == described
    assert set(described.to_value()) == {"v", "name", "inputs", "outputs"}
