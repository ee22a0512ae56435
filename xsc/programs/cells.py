"""Cells and propagators of one node, for code inside of it: programs made from a few arguments.

A cell is a path at which several owners say something, merged by a rule. A propagator is a program
of one computation between cells. Users write both as documents (docs/programs.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from xsc.base.ids import to_text
from xsc.programs.numbers import Value, check_value, parse_value, to_space
from xsc.programs.service import ComputeRuntimeManager
from xsc.space.paths import UserSpacePaths
from xsc.space.port import Space


class SyncedCell:
    """One value out of what its sources say; a program of its own keeps it."""

    def __init__(
        self, manager: CellSyncManager, name: str, type_: str, merge: str, sources: Iterable[str]
    ) -> None:
        self.name = name
        path = UserSpacePaths.cell(name)
        self.variable: dict[str, Any] = {"kind": "cell", "type": type_, "path": path}
        self.variable |= {"merge": merge, "sources": list(sources)}
        """As it stands in the document of a program."""
        self.program = b""
        self._manager = manager

    def strongest(self) -> Value | None:
        """Return what the sources come to; None where they contradict each other or say nothing."""
        text = self._manager.programs.get_results(self.program).variables[self.name]
        return None if text is None else parse_value(self.variable["type"], text)

    async def load_strongest(self) -> Value | None:
        """Return the same, with what is too large to have come by itself loaded from its owner."""
        await self._manager.programs.execute(self.program)
        return self.strongest()

    async def update(self, value: Value) -> None:
        """Say something as this node; it counts where this node is one of the sources.

        Raises:
            ArgumentInvalid: no value of the cell's type.
        """
        raw = to_space(self.variable["type"], check_value(self.variable["type"], value))
        await self._manager.space.put(self.variable["path"], raw)


class CarriedCell(SyncedCell):
    """A cell that holds the names of other cells, which are read when they are asked for."""

    def children(self) -> list[str]:
        """Return the names."""
        found = self.strongest()
        return [str(name) for name in found] if isinstance(found, tuple) else []

    async def child(self, name: str, type_: str, merge: str = "last") -> SyncedCell:
        """Return one of the cells, with the sources of this one."""
        cell = SyncedCell(self._manager, name, type_, merge, self.variable["sources"])
        return await self._manager.follow(cell)


class CellSyncManager:
    """The cells and propagators that code of one node made."""

    def __init__(self, programs: ComputeRuntimeManager, space: Space) -> None:
        self.programs = programs
        self.space = space

    async def cell(
        self, name: str, type_: str, merge: str = "last", sources: Iterable[bytes] = ()
    ) -> SyncedCell:
        """Return a cell that is followed; this node is its only source where none are given.

        Raises:
            ProgramInvalid: no such name, type or rule.
        """
        return await self.follow(SyncedCell(self, name, type_, merge, map(to_text, sources)))

    async def carried(self, name: str, sources: Iterable[bytes] = ()) -> CarriedCell:
        """Return a cell of the names of cells: all that its sources name."""
        cell = CarriedCell(self, name, "[text]", "union", map(to_text, sources))
        await self.follow(cell)
        return cell

    async def follow(self, cell: SyncedCell) -> SyncedCell:
        """Begin to follow a cell, and return it."""
        outputs = {"strongest": {"memory": True}}
        cell.program = await self._start(f"cell-{cell.name}", "merge.last", {"said": cell}, outputs)
        return cell

    async def unfollow(self, cell: SyncedCell) -> None:
        """Follow a cell no longer."""
        await self.programs.deactivate(cell.program)

    async def register_propagator(
        self, name: str, function: str, inputs: Mapping[str, SyncedCell], output: SyncedCell
    ) -> bytes:
        """Compute a cell from others whenever they change; return the hash of the program.

        Args:
            name: of the program.
            function: one of this node's; its name alone leaves the node.
            inputs: cells by the parameter of the function.
            output: where this node says what the function gives.

        Raises:
            ProgramInvalid: no such function, or types that do not fit.
        """
        outputs = {"said": {"path": output.variable["path"]}}
        return await self._start(name, function, inputs, outputs)

    async def _start(
        self,
        id_: str,
        function: str,
        inputs: Mapping[str, SyncedCell],
        outputs: Mapping[str, Mapping[str, object]],
    ) -> bytes:
        named = {param: cell.name for param, cell in inputs.items()}
        document = {
            "id": id_,
            "variables": {cell.name: cell.variable for cell in inputs.values()},
            "computations": {
                "propagator": {"function": function, "inputs": named, "outputs": outputs}
            },
        }
        return await self.programs.start(json.dumps(document).encode(), "json")
