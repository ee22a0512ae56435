"""The acceptance list of the state buffer, under its own sentences; saving and restoring."""

from __future__ import annotations

import math

import pytest

from xsc.base.errors import ArgumentInvalid, ProgramInvalid
from xsc.programs.state import (
    Const,
    SavedCell,
    StateBuffer,
    StateCellLayout,
    StateLayout,
    initialize_state,
)

ACCUMULATOR = StateCellLayout("integrate-1", "f64", 0, 1, "n1", "accumulator")
RING = StateCellLayout("delay-1", "f64", 1, 10, "n2", "ring")
LAYOUT = StateLayout((ACCUMULATOR, RING), f64_size=11)


def cell(storage="f64", offset=0, size=1, const=None, *, node="n", role="r", state_id="s"):
    return StateCellLayout(state_id, storage, offset, size, node, role, const)


def pool(kind, *values):
    """Return constants `c0`, `c1`, … of one kind."""
    return {f"c{number}": Const(kind, value) for number, value in enumerate(values)}


def initialized(layout, constants=None):
    buffer = StateBuffer(layout)
    initialize_state(buffer, layout, constants or {})
    return buffer


# `createStateBuffer(layout)` allocates typed arrays with sizes from layout


def test_f64_is_an_array_of_f64_size():
    """buffer.f64 is Float64Array(layout.f64Size)."""
    buffer = StateBuffer(LAYOUT)
    assert (buffer.banks["f64"].typecode, list(buffer.banks["f64"])) == ("d", [0.0] * 11)


def test_f32_is_an_array_of_f32_size():
    """buffer.f32 is Float32Array(layout.f32Size)."""
    buffer = StateBuffer(StateLayout(f32_size=3))
    bank = buffer.banks["f32"]
    assert (bank.typecode, bank.itemsize, list(bank)) == ("f", 4, [0.0] * 3)


def test_i32_is_an_array_of_i32_size():
    """buffer.i32 is Int32Array(layout.i32Size)."""
    buffer = StateBuffer(StateLayout(i32_size=3))
    bank = buffer.banks["i32"]
    assert (bank.typecode, bank.itemsize, list(bank)) == ("i", 4, [0] * 3)


def test_arrays_are_of_length_zero_where_there_is_no_state_of_that_type():
    """Zero-length arrays if size is 0 (no state of that type)."""
    buffer = StateBuffer(StateLayout())
    assert [len(bank) for bank in buffer.banks.values()] == [0, 0, 0]


@pytest.mark.parametrize("sizes", [(1, 0, 0), (0, 2, 0), (0, 0, 3), (4, 5, 6)])
def test_allocation_with_various_layout_sizes(sizes):
    """Allocation with various layout sizes (f64Size, f32Size, i32Size)."""
    buffer = StateBuffer(StateLayout((), *sizes))
    assert tuple(map(len, buffer.banks.values())) == sizes


# `initializeState(buffer, layout, constPool)` sets initial values for all state cells


@pytest.mark.parametrize(("kind", "value"), [("f64", 3.14), ("f32", 0.5), ("i32", -7)])
def test_a_cell_with_a_constant_has_its_value_in_the_whole_range(kind, value):
    """If `cell.initialConstId` is defined: write to buffer[cell.storage][offset..offset+size]."""
    layout = StateLayout((cell(kind, 1, 3, "c1"),), **{f"{kind}_size": 5})
    buffer = initialized(layout, pool(kind, 9, value, 8))
    assert list(buffer.banks[kind]) == [0, value, value, value, 0]


def test_a_cell_without_a_constant_has_zeros():
    """If `cell.initialConstId` is undefined: write zeros (default)."""
    buffer = StateBuffer(LAYOUT)
    buffer.push(RING.key, 5)
    initialize_state(buffer, LAYOUT, pool("f64", 1.0))
    assert list(buffer.banks["f64"]) == [0.0] * 11


def test_scalar_cells_and_rings_are_filled_whole():
    """Handles scalar cells (size=1) and array cells (size>1, e.g., ring buffers)."""
    layout = StateLayout(
        (cell(const="c0", state_id="a", node="a"), cell(offset=1, size=10, const="c1")),
        f64_size=11,
    )
    assert list(initialized(layout, pool("f64", 3.14, 1)).banks["f64"]) == [3.14] + [1.0] * 10


def test_cells_of_each_storage_go_to_their_own_array():
    """f64 cells write to buffer.f64, f32 cells to buffer.f32, i32 cells to buffer.i32."""
    layout = StateLayout(
        tuple(
            cell(kind, 1, 2, f"c-{kind}", node=kind, state_id=f"s-{kind}")
            for kind in ("f64", "f32", "i32")
        ),
        f64_size=3,
        f32_size=3,
        i32_size=3,
    )
    values = {"f64": 0.1, "f32": 0.25, "i32": 3}
    constants = {f"c-{kind}": Const(kind, value) for kind, value in values.items()}
    buffer = initialized(layout, constants)
    assert list(buffer.banks["f64"]) == [0, 0.1, 0.1]
    assert list(buffer.banks["f32"]) == [0, 0.25, 0.25]
    assert list(buffer.banks["i32"]) == [0, 3, 3]


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({}, "constant c0 for state cell s is not found"),
        (pool("f64", 3.0), "constant c0 for state cell s is of kind f64, and not i32"),
        (pool("object", "3"), "constant c0 for state cell s is of kind object"),
    ],
)
def test_a_constant_that_is_missing_or_of_another_kind_is_refused(constants, message):
    """Type mismatch: ensure cell.storage matches constPool storage type."""
    layout = StateLayout((cell("i32", const="c0"),), i32_size=1)
    with pytest.raises(ProgramInvalid, match=message):
        initialized(layout, constants)


# Across frames, restarts and versions


def test_a_ring_keeps_the_newest_values_in_their_order():
    buffer = initialized(LAYOUT)
    for number in range(13):
        buffer.push(RING.key, number)
    assert buffer.read(RING.key) == tuple(float(number) for number in range(3, 13))
    assert buffer.read(ACCUMULATOR.key) == (0.0,)


@pytest.mark.parametrize("value", [1.5, True, 2**31, "1"])
def test_a_cell_takes_no_value_that_it_would_change(value):
    layout = StateLayout((cell("i32"),), i32_size=1)
    buffer = initialized(layout)
    with pytest.raises(ArgumentInvalid):
        buffer.push(("n", "r"), value)
    assert buffer.read(("n", "r")) == (0,)


def test_an_unknown_cell_is_named():
    buffer = initialized(LAYOUT)
    for use in (buffer.read, lambda key: buffer.push(key, 1)):
        with pytest.raises(ArgumentInvalid, match="no state cell 'n9:ring'"):
            use(("n9", "ring"))


def test_state_is_kept_across_a_restart():
    buffer = initialized(LAYOUT)
    for value in (1.5, math.nan, -0.0, math.inf):
        buffer.push(RING.key, value)
    saved = buffer.save()
    assert saved[RING.key].bits[-32:].hex() == (
        "3ff80000000000007ff800000000000080000000000000007ff0000000000000"
    )
    again = initialized(LAYOUT)
    assert again.restore(saved) == {RING.key, ACCUMULATOR.key}
    assert again.save() == saved


def test_a_cell_of_another_storage_or_size_begins_anew():
    saved = initialized(LAYOUT).save() | {("gone", "r"): SavedCell("f64", bytes(8))}
    layout = StateLayout(
        (
            StateCellLayout("a", "f32", 0, 1, "n1", "accumulator", "c0"),
            StateCellLayout("b", "f64", 0, 3, "n2", "ring"),
        ),
        f64_size=3,
        f32_size=1,
    )
    buffer = initialized(layout, pool("f32", 0.5))
    assert buffer.restore(saved) == frozenset()
    assert buffer.read(("n1", "accumulator")) == (0.5,)
