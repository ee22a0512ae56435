"""What a program keeps from frame to frame: typed cells, made from constants.

A cell is a number, or a ring of them, and belongs to a node of the graph under a role. It
outlives its buffer under that pair: a restart and a new version of a program restore it the
same way (docs/design/programs.md, S2 to S6).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from xsc.base.errors import ArgumentInvalid, ProgramInvalid
from xsc.programs.numbers import Value, check_value
from xsc.programs.values import CODES, bank_of


@dataclass(frozen=True, slots=True)
class StateCellLayout:
    """Where a cell is, whose it is, and which constant it begins with; zero without one."""

    state_id: str
    storage: str
    offset: int
    size: int
    node_id: str
    role: str
    initial_const_id: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What a cell is known by in every version of a program."""
        return self.node_id, self.role


@dataclass(frozen=True, slots=True)
class StateLayout:
    """All cells of a program, and the sizes of the banks."""

    cells: tuple[StateCellLayout, ...] = ()
    f64_size: int = 0
    f32_size: int = 0
    i32_size: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each bank."""
        return {"f64": self.f64_size, "f32": self.f32_size, "i32": self.i32_size}


@dataclass(frozen=True, slots=True)
class Const:
    """A constant, and of which storage it is."""

    kind: str
    value: Value


ConstPool: TypeAlias = Mapping[str, Const]
"""Constants by their ids."""


@dataclass(frozen=True, slots=True)
class SavedCell:
    """A cell as it is kept on the disk: its values are their bits, big-endian."""

    storage: str
    bits: bytes


class StateBuffer:
    """The cells of one running program, in a bank for each storage."""

    __slots__ = ("_cells", "banks")

    def __init__(self, layout: StateLayout) -> None:
        self.banks = {storage: bank_of(storage, size) for storage, size in layout.sizes.items()}
        self._cells = {cell.key: cell for cell in layout.cells}

    def _cell(self, key: tuple[str, str]) -> StateCellLayout:
        try:
            return self._cells[key]
        except KeyError:
            raise ArgumentInvalid(f"no state cell '{key[0]}:{key[1]}'") from None

    def read(self, key: tuple[str, str]) -> tuple[float | int, ...]:
        """Return the values of a cell, the oldest of a ring first.

        Raises:
            ArgumentInvalid: no such cell.
        """
        cell = self._cell(key)
        return tuple(self.banks[cell.storage][cell.offset : cell.offset + cell.size])

    def push(self, key: tuple[str, str], value: object) -> None:
        """Append a value to a cell, whose oldest value leaves.

        Raises:
            ArgumentInvalid: no such cell, or its storage cannot hold the value.
        """
        cell = self._cell(key)
        kept = check_value(cell.storage, value)
        bank = self.banks[cell.storage]
        start, end = cell.offset, cell.offset + cell.size
        bank[start : end - 1] = bank[start + 1 : end]
        bank[end - 1] = kept

    def save(self) -> dict[tuple[str, str], SavedCell]:
        """Return all cells as they are kept across a restart."""
        return {
            key: SavedCell(cell.storage, struct.pack(_format(cell), *self.read(key)))
            for key, cell in self._cells.items()
        }

    def restore(self, saved: Mapping[tuple[str, str], SavedCell]) -> frozenset[tuple[str, str]]:
        """Take over saved cells of equal storage and size; return which ones.

        All others stay as they are, and what has no cell here any more is dropped.
        """
        taken = set()
        for key, cell in self._cells.items():
            old = saved.get(key)
            form = _format(cell)
            if old and old.storage == cell.storage and len(old.bits) == struct.calcsize(form):
                for position, value in enumerate(struct.unpack(form, old.bits), cell.offset):
                    self.banks[cell.storage][position] = check_value(cell.storage, value)
                taken.add(key)
        return frozenset(taken)


def _format(cell: StateCellLayout) -> str:
    return f">{cell.size}{CODES[cell.storage]}"


def initialize_state(buffer: StateBuffer, layout: StateLayout, constants: ConstPool) -> None:
    """Fill each cell with its constant, or with zeros; a ring is filled whole.

    Raises:
        ProgramInvalid: a constant that is missing, of another kind, or no value of its kind.
    """
    for cell in layout.cells:
        value: Value = 0
        if cell.initial_const_id is not None:
            const = constants.get(cell.initial_const_id)
            name = f"constant {cell.initial_const_id} for state cell {cell.state_id}"
            if const is None:
                raise ProgramInvalid(f"{name} is not found")
            if const.kind != cell.storage:
                raise ProgramInvalid(f"{name} is of kind {const.kind}, and not {cell.storage}")
            value = check_value(const.kind, const.value)
        for position in range(cell.offset, cell.offset + cell.size):
            buffer.banks[cell.storage][position] = value
