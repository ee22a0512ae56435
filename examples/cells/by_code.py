"""Cells, propagators and their stores from code inside of a node, by the names of their seeds."""

from __future__ import annotations

from xsc.compute.worker.runtime import ComputeRuntime
from xsc.programs.runtime import FrameCache
from xsc.programs.service import CarriedCell, CellSyncManager, SyncedCell


async def follow_a_load(cells: CellSyncManager, sources: list[bytes]) -> SyncedCell:
    """Return what the sources say, of which the greatest counts."""
    load = await cells.cell("load", "integer", "max", sources)
    await load.update(3)
    return load


async def double(cells: CellSyncManager, load: SyncedCell) -> SyncedCell:
    """Return a cell that this node computes from another whenever that changes."""
    twice = await cells.cell("twice", "integer")
    await cells.register_propagator("double", "math.add", {"x": load, "y": load}, twice)
    return twice


async def carry(cells: CellSyncManager, sources: list[bytes]) -> CarriedCell:
    """Return a cell that refers to other cells."""
    carried = await cells.carried("all", sources)
    await carried.update(("load", "twice"))
    return carried


def call(module: bytes) -> object:
    """Return what a function of a module gives, in the sandbox and under its limits."""
    runtime = ComputeRuntime()
    try:
        return runtime.execute(module, "add", [2, 3])
    finally:
        runtime.close()


def cache() -> list[object]:
    """Return what a cache has in the frame in which it was put, and in the next one."""
    frames = FrameCache()
    frames.put("sum", 5)
    found = [frames.get("sum")]
    frames.new_frame()
    return [*found, frames.get("sum")]
