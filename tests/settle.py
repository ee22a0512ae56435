"""Waits in tests that depend on no time and on no number of turns of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TURNS_MAX = 100_000


async def settle() -> None:
    """Return when no task and no callback is ready to run.

    Whatever still waits then waits for a clock, a thread, another process, a socket or an event
    that the test brings about. Fails where something is always ready.
    """
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
    quiet = 0
    for _ in range(TURNS_MAX):
        await asyncio.sleep(0)
        # An empty queue fills again when the next turn finds bytes on a socket.
        quiet = 0 if ready else quiet + 1
        if quiet == 2:
            return
    raise AssertionError("the event loop always has something to run")


async def until(condition: Callable[[], object]) -> None:
    """Return when a condition holds that other tasks, threads or processes bring about."""
    while not condition():  # noqa: ASYNC110 (what brings it about may be no task)
        await asyncio.sleep(0)


async def turns(count: int) -> None:
    """Return after that many turns of the event loop.

    For laws that hold at whatever turn something comes between, which a test goes through one
    after the other, and for small parts that take several turns. To wait, use `settle`.
    """
    for _ in range(count):
        await asyncio.sleep(0)
