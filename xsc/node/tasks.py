"""Supervised background tasks: a loop that fails is reported and started again.

This and the request handlers are the only places that catch whatever comes:
one broken round of probes must not end the node, and must not go unseen.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Coroutine

from xsc.base.clock import Clock
from xsc.base.errors import XscError
from xsc.base.log import Log

BACK_OFF_MS_MIN = 100
BACK_OFF_MS_MAX = 30_000


class Tasks:
    """Runs named loops until it is stopped."""

    def __init__(self, clock: Clock, log: Log) -> None:
        self._clock = clock
        self._log = log
        self._running: dict[asyncio.Task[None], None] = {}
        """In the order in which they were started: a simulation ends them in the same one."""

    def start(self, name: str, loop: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run a loop until its task is cancelled; one that fails runs again after a pause."""
        return self._run(name, self._keep(name, loop))

    def every(self, name: str, pause_ms: int, work: Callable[[], Awaitable[object]]) -> None:
        """Run something again and again, each time after a pause."""

        async def loop() -> None:
            while True:
                await self._clock.sleep_ms(pause_ms)
                await work()

        self.start(name, loop)

    def once(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        """Run something once in the background; a fault is reported and not repeated."""

        async def run() -> None:
            await self._is_done(name, work, self._log.info)

        self._run(name, run())

    def _run(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._running[task] = None
        task.add_done_callback(lambda done: self._running.pop(done, None))
        return task

    async def _keep(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        back_off_ms = BACK_OFF_MS_MIN
        begun_ms = self._clock.monotonic_ms()
        while not await self._is_done(name, loop, self._log.warning):
            if self._clock.monotonic_ms() - begun_ms > BACK_OFF_MS_MAX:
                back_off_ms = BACK_OFF_MS_MIN
            await self._clock.sleep_ms(back_off_ms)
            back_off_ms = min(back_off_ms * 2, BACK_OFF_MS_MAX)
            begun_ms = self._clock.monotonic_ms()

    async def _is_done(
        self, name: str, work: Callable[[], Awaitable[object]], tell: Callable[..., None]
    ) -> bool:
        """Run something; return whether it came to its end, and report why it did not."""
        try:
            await work()
        except XscError as fault:
            tell("task.failed", task=name, code=fault.code, fault=fault.message)
        except Exception:  # noqa: BLE001 - see the module's opening
            self._log.error("task.bug", task=name, trace=traceback.format_exc())
        else:
            return True
        return False

    async def stop(self) -> None:
        """End all loops and wait for them."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
