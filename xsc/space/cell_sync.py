"""Cells that follow the space: `SyncedCell`, `CarriedCell`, and the propagators between them.

A cell reads the records that its sources have at its path, and writes this node's own. What came
from others is never written again, so nodes come to rest. Propagators run on their own node
only; each node publishes what it runs, and no function travels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from xsc.base.encoding import Value
from xsc.base.errors import ArgumentInvalid, NotFound, XscError
from xsc.base.ids import to_text
from xsc.base.log import Log
from xsc.space.cells import (
    Content,
    Propagator,
    Strongest,
    cell_bytes,
    check_rule,
    contribution,
    strongest,
)
from xsc.space.limits import CELLS_MAX, PROPAGATORS_MAX
from xsc.space.paths import UserSpacePaths
from xsc.space.record import Change, Entry
from xsc.space.store import Stats

Function = Callable[[Sequence[Strongest]], Value]
"""Computes a value from the strongest values of the inputs; None for no value yet."""


class Space(Protocol):
    """What cells need of the space."""

    @property
    def owner(self) -> bytes:
        """The id of this node."""

    def get(self, path: str, owner: bytes | None = None) -> Entry:
        """Return the newest record of a path with its value."""

    async def put_soon(self, path: str, value: bytes) -> None:
        """Write a value within some time, with others."""

    async def compact(self) -> Stats:
        """Delete what need not be kept, return its space to the disk, and say what is left."""

    def on_change(self, told: Callable[[Change], None]) -> None:
        """Call a function with every change that is stored from now on."""


class SyncedCell:
    """One value out of what several owners say."""

    def __init__(
        self,
        name: str,
        merge: str,
        sources: Iterable[bytes],
        read: Callable[[bytes], Entry | None],
        write: Callable[[bytes], Awaitable[None]],
        *,
        followed: Callable[[], None],
    ) -> None:
        self.name = name
        self.merge = check_rule(merge)
        self.content: Content = {}
        self._read = read
        self._write = write
        self._followed = followed
        self._told: list[Callable[[SyncedCell], None]] = []
        self._strongest = strongest(self.merge, {})
        self.sources: set[bytes] = set()
        for source in sources:
            self.add_source(source)

    def strongest(self) -> Strongest:
        """Return what the content comes to by the merge rule."""
        return self._strongest

    async def update(self, value: Value) -> None:
        """Write this node's own contribution, and return once it is on the disk.

        Raises:
            RecordInvalid: no value of a cell.
        """
        await self._write(cell_bytes(value))

    def subscribe(self, told: Callable[[SyncedCell], None]) -> None:
        """Call a function whenever the strongest value changes."""
        self._told.append(told)

    def unsubscribe(self, told: Callable[[SyncedCell], None]) -> None:
        """Call that function no longer; others still are."""
        self._told.remove(told)

    def add_source(self, source: bytes) -> None:
        """Let an owner contribute."""
        self.sources.add(source)
        self._followed()
        self.refresh(source)

    def remove_source(self, source: bytes) -> None:
        """Let an owner contribute no longer; the strongest value is computed from the others."""
        self.sources.discard(source)
        self._followed()
        self.content.pop(source, None)
        self._settle()

    def refresh(self, source: bytes) -> None:
        """Read again what a source says; until a value is loaded, what it said before counts."""
        if source not in self.sources:
            return
        entry = self._read(source)
        try:
            said = None if entry is None else contribution(entry.signed, entry.value)
        except NotFound:
            return
        if said is None:
            self.content.pop(source, None)
        else:
            self.content[source] = said
        self._settle()

    def _settle(self) -> None:
        found = strongest(self.merge, self.content)
        if found != self._strongest:
            self._strongest = found
            for told in list(self._told):
                told(self)


class CarriedCell:
    """A cell that holds the names of other cells, and reads them when they are asked for."""

    def __init__(self, manager: CellSyncManager, cell: SyncedCell) -> None:
        self._manager = manager
        self.cell = cell

    def references(self) -> dict[str, str]:
        """Return the names of the cells by key; of a list, the keys are places."""
        value = self.cell.strongest().value
        if isinstance(value, list):
            value = {str(place): name for place, name in enumerate(value)}
        if not isinstance(value, dict):
            return {}
        return {key: name for key, name in value.items() if isinstance(name, str)}

    def child(self, key: str, merge: str = "last") -> SyncedCell:
        """Return the cell of a key, with the sources of this one.

        Raises:
            NotFound: no cell has that key.
        """
        name = self.references().get(key)
        if name is None:
            raise NotFound(f"no cell is at '{key}'")
        return self._manager.cell(name, merge, self.cell.sources)

    async def carry(self, references: dict[str, str] | list[str]) -> None:
        """Write this node's own references: cells are referred to, and not copied."""
        value: Value = [*references] if isinstance(references, list) else dict(references)
        await self.cell.update(value)


@dataclass(slots=True)
class _Running:
    described: Propagator
    inputs: list[SyncedCell]
    output: SyncedCell
    function: Function
    error: str | None = None
    """Of its last run."""


class CellSyncManager:
    """The cells and propagators of one node.

    Args:
        space: where they are.
        log: hears of propagators that fail.
        followed: called when `subscriptions` changes.
    """

    def __init__(self, space: Space, log: Log, followed: Callable[[], None] = lambda: None) -> None:
        self._space = space
        self._log = log
        self._followed = followed
        self._cells: dict[str, SyncedCell] = {}
        self._paths: dict[str, str] = {}
        self._running: dict[str, _Running] = {}
        self._due: dict[str, None] = {}
        self._some_due = asyncio.Event()
        space.on_change(self._changed)

    # Cells

    def cell(
        self, name: str, merge: str = "last", sources: Iterable[bytes] | None = None
    ) -> SyncedCell:
        """Return the cell of a name; this node is its only source where none are given.

        Raises:
            ArgumentInvalid: no name or rule, another rule than before, or too many cells.
        """
        known = self._cells.get(name)
        if known is not None:
            if known.merge != merge:
                raise ArgumentInvalid(f"the cell '{name}' merges by '{known.merge}'")
            for source in sources or ():
                if source not in known.sources:
                    known.add_source(source)
            return known
        if len(self._cells) >= CELLS_MAX:
            raise ArgumentInvalid(f"more than {CELLS_MAX} cells")
        path = UserSpacePaths.cell(name)

        def read(source: bytes) -> Entry | None:
            try:
                return self._space.get(path, source)
            except NotFound:
                return None

        async def write(value: bytes) -> None:
            await self._space.put_soon(path, value)

        own = (self._space.owner,)
        made = SyncedCell(name, merge, sources or own, read, write, followed=self._followed)
        self._cells[name], self._paths[path] = made, name
        self._followed()
        return made

    def carried(self, name: str, sources: Iterable[bytes] | None = None) -> CarriedCell:
        """Return a cell of references by key, the last writer's for each key."""
        return CarriedCell(self, self.cell(name, "map", sources))

    def release(self, name: str) -> None:
        """Follow a cell no longer.

        Raises:
            ArgumentInvalid: a propagator uses it.
        """
        cell = self._cells.get(name)
        if any(cell in (*run.inputs, run.output) for run in self._running.values()):
            raise ArgumentInvalid(f"a propagator uses the cell '{name}'")
        if cell is not None:
            del self._cells[name], self._paths[UserSpacePaths.cell(name)]
            self._followed()

    def active_cell_ids(self) -> list[str]:
        """Return the names of the cells that are followed."""
        return sorted(self._cells)

    def subscriptions(self) -> set[tuple[bytes, str]]:
        """Return owner and path of everything that the cells follow at others."""
        return {
            (source, path)
            for path, name in self._paths.items()
            for source in self._cells[name].sources
            if source != self._space.owner
        }

    async def compact(self) -> Stats:
        """Compact the space that the cells are in; what they follow stays."""
        return await self._space.compact()

    def _changed(self, change: Change) -> None:
        name = self._paths.get(change.path)
        if name is not None:
            self._cells[name].refresh(change.owner)

    # Propagators

    async def register_propagator(
        self, name: str, inputs: Sequence[SyncedCell], output: SyncedCell, function: Function
    ) -> Propagator:
        """Compute a cell from others whenever they change, and publish that this node does.

        `function` gets the strongest values of the inputs. What it returns becomes this node's
        contribution to the output, unless it is None or is that already.

        Raises:
            ArgumentInvalid: too many propagators.
        """
        if len(self._running) >= PROPAGATORS_MAX:
            raise ArgumentInvalid(f"more than {PROPAGATORS_MAX} propagators")
        described = Propagator(
            name=name,
            inputs=tuple(cell.name for cell in inputs),
            outputs=(output.name,),
        )
        key = to_text(described.id)
        self._running[key] = _Running(described, list(inputs), output, function)

        def due(_: SyncedCell) -> None:
            self._due[key] = None
            self._some_due.set()

        for cell in inputs:
            cell.subscribe(due)
        due(output)
        await self._publish()
        return described

    def errors(self) -> dict[str, str]:
        """Return the error of each propagator whose last run failed, by its id."""
        return {key: run.error for key, run in self._running.items() if run.error is not None}

    async def _publish(self) -> None:
        rows: list[Value] = [
            {
                "id": key,
                "name": run.described.name,
                "inputs": [*run.described.inputs],
                "outputs": [*run.described.outputs],
            }
            for key, run in sorted(self._running.items())
        ]
        await self._space.put_soon(UserSpacePaths.PROPAGATORS, cell_bytes(rows))

    async def run(self) -> None:
        """Run propagators when their inputs change, until cancelled.

        What a function raises is the error of that propagator alone, until it runs again.
        """
        while True:
            while not self._due:
                self._some_due.clear()
                await self._some_due.wait()
            key = next(iter(self._due))
            del self._due[key]
            run = self._running[key]
            try:
                value = run.function([cell.strongest() for cell in run.inputs])
                new = None if value is None else cell_bytes(value)
            except Exception as fault:  # noqa: BLE001 - it is a user's function
                run.error = f"{type(fault).__name__}: {fault}"
                self._log.warning("space.propagator_failed", propagator=key, fault=run.error)
                continue
            run.error = None
            own = run.output.content.get(self._space.owner)
            if new is not None and (own is None or own.value != value):
                try:
                    await run.output.update(value)
                except XscError:
                    self._due[key] = None
                    raise
