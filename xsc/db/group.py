"""Group commit: writers that come together share one synced write.

A synced write costs the same for one change as for many, so one flusher writes
while the next group gathers. A caller that is cancelled takes nobody's write
along, not even its own.
"""

from __future__ import annotations

import asyncio
from collections import deque

from xsc.base.clock import Executor
from xsc.base.errors import XscError
from xsc.base.keyvalue import Change, KeyValue
from xsc.base.limits import MIB

GROUP_BYTES = 16 * MIB
"""A group is closed once it holds this much; one larger commit makes a group of its own."""


class GroupCommit:
    """Commits to one store, in the order of the calls."""

    def __init__(
        self, store: KeyValue, executor: Executor, *, group_bytes: int = GROUP_BYTES
    ) -> None:
        self._store = store
        self._executor = executor
        self._group_bytes = group_bytes
        self._waiting: deque[tuple[list[Change], int, asyncio.Future[None]]] = deque()
        self._flusher: asyncio.Task[None] | None = None

    async def commit(self, changes: list[Change]) -> None:
        """Return once all the changes are on the disk; they are applied all or none.

        Raises:
            XscError: the write of the group failed; every caller in it gets the error.
        """
        size = sum(len(key) + (0 if value is None else len(value)) for key, value in changes)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((changes, size, done))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        await done

    def _next_group(self) -> tuple[list[Change], list[asyncio.Future[None]]]:
        changes, size, done = self._waiting.popleft()
        group, callers = list(changes), [done]
        while self._waiting and size + self._waiting[0][1] <= self._group_bytes:
            changes, more, done = self._waiting.popleft()
            group.extend(changes)
            callers.append(done)
            size += more
        return group, callers

    async def _flush(self) -> None:
        callers: list[asyncio.Future[None]] = []
        try:
            while self._waiting:
                group, callers = self._next_group()
                fault: XscError | None = None
                try:
                    await self._executor.run(self._store.write, group, sync=True)
                except XscError as error:
                    fault = error
                for caller in callers:
                    if caller.done():
                        continue
                    if fault is None:
                        caller.set_result(None)
                    else:
                        caller.set_exception(type(fault)(fault.message, hint=fault.hint))
        finally:
            # A fault that nobody named (a bug, the end of the loop) must not leave callers waiting.
            self._flusher = None
            for caller in [*callers, *(done for _, _, done in self._waiting)]:
                if not caller.done():
                    caller.cancel()
            self._waiting.clear()

    async def settle(self) -> None:
        """Return once everything that was asked for so far is written or has failed."""
        while self._flusher is not None:
            await asyncio.wait([self._flusher])
