"""The acceptance list of the runtime state, under its own sentences; caches and hot swap."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from xsc.base.errors import ArgumentInvalid, ProgramInvalid
from xsc.programs.runtime import FrameCache, create_runtime_state, hot_swap
from xsc.programs.state import Const, StateCellLayout, StateLayout
from xsc.programs.values import SlotMeta

DAMPING = ("damping", "ring")


@dataclass
class Program:
    slot_meta: list[SlotMeta] = field(default_factory=list)
    state_layout: StateLayout = field(default_factory=StateLayout)
    constants: dict[str, Const] = field(default_factory=dict)


def program(size=3, *, before=0, const="c"):
    """Return a program with a ring of damping, behind other cells."""
    cells = [
        StateCellLayout("count", "i32", 0, 1, "count", "local"),
        StateCellLayout("damping", "f64", before, size, *DAMPING, const),
    ]
    return Program(
        [SlotMeta(0, "f64", 0), SlotMeta(4, "object", 0)],
        StateLayout(tuple(cells), f64_size=size + before, i32_size=1),
        {"c": Const("f64", 0.25)},
    )


def test_create_runtime_state_makes_a_value_store_of_the_slot_meta():
    """`createRuntimeState(program)` calls `createValueStore()` with extracted slotMeta."""
    values = create_runtime_state(program()).values
    values.write(4, "x")
    assert values.read(4) == "x"
    with pytest.raises(ArgumentInvalid, match="slot 1 not found"):
        values.write(1, 1)


def test_create_runtime_state_makes_a_state_buffer_of_the_layout():
    """`createRuntimeState(program)` calls `createStateBuffer(program.stateLayout)`."""
    state = create_runtime_state(program()).state
    assert [len(bank) for bank in state.banks.values()] == [3, 0, 1]


def test_create_runtime_state_initializes_the_state_from_the_constants():
    """`createRuntimeState(program)` calls `initializeState(state, stateLayout, constants)`."""
    assert create_runtime_state(program()).state.read(DAMPING) == (0.25, 0.25, 0.25)


def test_create_runtime_state_of_a_minimal_program():
    """RuntimeState creation with minimal program (empty stateLayout, empty slotMeta)."""
    runtime = create_runtime_state(Program())
    assert runtime.frame_id == 0
    assert [runtime.begin_frame() for _ in range(3)] == [1, 2, 3]


def test_create_runtime_state_with_several_cells_and_slots():
    """RuntimeState creation with non-trivial program (multiple state cells, multiple slots)."""
    runtime = create_runtime_state(program(5, before=2))
    for frame in range(1, 4):
        assert runtime.begin_frame() == frame
        runtime.values.write(0, float(frame))
        runtime.state.push(DAMPING, runtime.values.read(0))
    assert runtime.state.read(DAMPING) == (0.25, 0.25, 1.0, 2.0, 3.0)


def test_a_missing_constant_is_refused_at_the_start_and_at_a_swap():
    """State initialization from program const pool."""
    with pytest.raises(ProgramInvalid, match="constant d for state cell damping is not found"):
        create_runtime_state(program(const="d"))
    with pytest.raises(ProgramInvalid, match="constant d for state cell damping is not found"):
        hot_swap(create_runtime_state(program()), program(const="d"))


def test_a_frame_begins_with_nothing_written():
    """Real stores replace the stubs."""
    runtime = create_runtime_state(program())
    runtime.begin_frame()
    runtime.values.write(0, 1.0)
    runtime.begin_frame()
    assert not runtime.values.written(0)


def test_frames_of_a_cache_count_from_one():
    cache = FrameCache()
    assert cache.frame_id == 1
    assert cache.get("a") is None
    cache.put("a", "value")
    assert cache.get("a") == "value"
    assert cache.get("b", "default") == "default"


def test_a_new_frame_misses_what_was_put_before_and_invalidate_forgets_it():
    cache = FrameCache()
    cache.put("a", 1)
    cache.new_frame()
    assert (cache.frame_id, cache.get("a")) == (2, None)
    cache.put("a", 2)
    cache.invalidate()
    assert (cache.frame_id, cache.get("a")) == (2, None)


def test_a_hot_swap_keeps_cells_by_node_and_role_wherever_they_are():
    runtime = create_runtime_state(program())
    for value in (1, 2):
        runtime.begin_frame()
        runtime.state.push(DAMPING, value)
    swapped = hot_swap(runtime, program(before=7))
    assert swapped.state.read(DAMPING) == (0.25, 1.0, 2.0)
    assert swapped.frame_id == 2
    with pytest.raises(ArgumentInvalid, match="slot 0 is read before"):
        swapped.values.read(0)


def test_a_hot_swap_makes_a_cell_of_another_size_anew_and_drops_what_is_gone():
    runtime = create_runtime_state(program())
    runtime.state.push(DAMPING, 9)
    runtime.state.push(("count", "local"), 9)
    swapped = hot_swap(runtime, program(4))
    assert swapped.state.read(DAMPING) == (0.25,) * 4
    assert swapped.state.read(("count", "local")) == (9,)
    assert hot_swap(swapped, Program()).state.save() == {}
