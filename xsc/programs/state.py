"""What a program keeps from frame to frame: typed cells, made from constants.

A cell is a number, or a ring of them, and belongs to a node of the graph under a role. It
outlives its buffer under that pair: a restart and a new version of a program restore it the
same way (docs/design/programs.md, S1 to S6).
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from xsc.base.errors import ArgumentInvalid, ProgramInvalid
from xsc.programs.numbers import Value, check_value
from xsc.programs.values import CODES

STORAGES: Final = ("f64", "f32", "i32")


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
    """Which pool holds a constant, and at what position."""

    kind: str
    position: int


@dataclass(frozen=True, slots=True)
class ConstPool:
    """Constants: an index of (kind, position) for each id, and a pool for each kind."""

    index: Mapping[str, Const] = field(default_factory=dict)
    pools: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def get(self, const_id: str, kind: str, wanted_by: str) -> Value:
        """Return a constant of a kind.

        Raises:
            ProgramInvalid: there is none of that id, or it is of another kind.
        """
        const = self.index.get(const_id)
        if const is None:
            raise ProgramInvalid(f"constant {const_id} not found in const_pool for {wanted_by}")
        if const.kind != kind:
            raise ProgramInvalid(
                f"constant {const_id} is of kind {const.kind}, and {wanted_by} needs {kind}"
            )
        pool = self.pools.get(kind, ())
        if not 0 <= const.position < len(pool):
            raise ProgramInvalid(
                f"constant {const_id} for {wanted_by} is at {const.position} of {kind}, "
                f"which has {len(pool)}"
            )
        return pool[const.position]


@dataclass(frozen=True, slots=True)
class SavedCell:
    """A cell as it is kept on the disk: its values are their bits, big-endian."""

    storage: str
    bits: bytes


class StateBuffer:
    """The cells of one running program.

    Raises:
        ProgramInvalid: a cell of an unknown storage, without a size, beyond its bank or over
            another, or an id or key that is there twice.
    """

    __slots__ = ("_banks", "_cells", "f32", "f64", "i32")

    def __init__(self, layout: StateLayout) -> None:
        _check_layout(layout)
        banks: dict[str, array[Any]] = {
            storage: array(CODES[storage], bytes(size * array(CODES[storage]).itemsize))
            for storage, size in layout.sizes.items()
        }
        self.f64: array[float] = banks["f64"]
        self.f32: array[float] = banks["f32"]
        self.i32: array[int] = banks["i32"]
        self._banks = banks
        self._cells = {cell.key: cell for cell in layout.cells}

    def bank(self, storage: str) -> array[Any]:
        """Return the bank of a storage."""
        return self._banks[storage]

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
        return tuple(self.bank(cell.storage)[cell.offset : cell.offset + cell.size])

    def push(self, key: tuple[str, str], value: object) -> None:
        """Append a value to a cell, whose oldest value leaves.

        Raises:
            ArgumentInvalid: no such cell, or its storage cannot hold the value.
        """
        cell = self._cell(key)
        kept = check_value(cell.storage, value)
        bank = self.bank(cell.storage)
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
                    self.bank(cell.storage)[position] = check_value(cell.storage, value)
                taken.add(key)
        return frozenset(taken)


def _format(cell: StateCellLayout) -> str:
    return f">{cell.size}{CODES[cell.storage]}"


def _check_layout(layout: StateLayout) -> None:
    ends: dict[str, list[tuple[int, int, str]]] = {storage: [] for storage in STORAGES}
    ids: set[str] = set()
    keys: set[tuple[str, str]] = set()
    for cell in layout.cells:
        name = f"state cell {cell.state_id}"
        if cell.storage not in ends:
            raise ProgramInvalid(f"{name} has the storage '{cell.storage}', not f64, f32 or i32")
        if cell.size < 1 or cell.offset < 0:
            raise ProgramInvalid(f"{name} has the offset {cell.offset} and the size {cell.size}")
        if cell.offset + cell.size > layout.sizes[cell.storage]:
            raise ProgramInvalid(f"{name} ends beyond {cell.storage}")
        if cell.state_id in ids or cell.key in keys:
            raise ProgramInvalid(f"{name} ({cell.node_id}:{cell.role}) is there twice")
        ids.add(cell.state_id)
        keys.add(cell.key)
        ends[cell.storage].append((cell.offset, cell.offset + cell.size, cell.state_id))
    for spans in ends.values():
        spans.sort()
        for (_, end, one), (start, _, other) in itertools.pairwise(spans):
            if start < end:
                raise ProgramInvalid(f"state cells {one} and {other} overlap")


def initialize_state(buffer: StateBuffer, layout: StateLayout, constants: ConstPool) -> None:
    """Fill each cell with its constant, or with zeros; a ring is filled whole.

    Raises:
        ProgramInvalid: a constant that is missing, of another kind, or no value of its kind.
    """
    for cell in layout.cells:
        value: Value = 0
        if cell.initial_const_id is not None:
            name = f"state cell {cell.state_id}"
            found = constants.get(cell.initial_const_id, cell.storage, name)
            try:
                value = check_value(cell.storage, found)
            except ArgumentInvalid as fault:
                raise ProgramInvalid(f"{name}: {fault.message}") from None
        for position in range(cell.offset, cell.offset + cell.size):
            buffer.bank(cell.storage)[position] = value
