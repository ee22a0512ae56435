"""The stores of a running program, made from what it was compiled to, and carried to the next.

docs/design/programs.md, S6.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from xsc.programs.compile import CompiledProgram
from xsc.programs.state import StateBuffer, initialize_state
from xsc.programs.values import ValueStore


class FrameCache:
    """Values that are true for one frame, under any keys; frames count from 1."""

    __slots__ = ("_entries", "frame_id")

    def __init__(self) -> None:
        self.frame_id = 1
        self._entries: dict[Hashable, tuple[int, object]] = {}

    def put(self, key: Hashable, value: object) -> None:
        """Keep a value for the rest of this frame."""
        self._entries[key] = (self.frame_id, value)

    def get(self, key: Hashable, default: object = None) -> object:
        """Return what was put in this frame, else the default."""
        frame_id, value = self._entries.get(key, (0, None))
        return value if frame_id == self.frame_id else default

    def new_frame(self) -> None:
        """Begin a frame: what was put before is a miss, though its room is kept."""
        self.frame_id += 1

    def invalidate(self) -> None:
        """Forget everything, in the middle of a frame too."""
        self._entries.clear()


@dataclass(slots=True)
class RuntimeState:
    """The stores of a program, and how many frames it has begun."""

    values: ValueStore
    state: StateBuffer
    frame_id: int = 0

    def begin_frame(self) -> int:
        """Begin a frame; return its number, from 1 on."""
        self.values.clear()
        self.frame_id += 1
        return self.frame_id


def create_runtime_state(program: CompiledProgram) -> RuntimeState:
    """Return the stores of a program before its first frame.

    Raises:
        ProgramInvalid: its slots, cells or constants break a rule.
    """
    state = StateBuffer(program.state_layout)
    initialize_state(state, program.state_layout, program.constants)
    return RuntimeState(ValueStore(program.slot_meta), state)


def hot_swap(runtime: RuntimeState, program: CompiledProgram) -> RuntimeState:
    """Return the stores of a new version: cells of equal key, storage and size go on.

    Frames count on, nothing is cached, and no slot has been written.

    Raises:
        ProgramInvalid: its slots, cells or constants break a rule.
    """
    swapped = create_runtime_state(program)
    swapped.state.restore(runtime.state.save())
    swapped.frame_id = runtime.frame_id
    return swapped
