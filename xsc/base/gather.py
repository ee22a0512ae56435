"""Joins calls that are made at the same time into batches.

A signature, a synced write or a request costs about the same for one call as for many.
A `Gather` therefore runs the calls of one key in batches, one batch at a time: the calls
made while a batch runs form the next one.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from xsc.base.errors import UnavailableError, XscError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Queue(Generic[T, R]):
    """The calls of one key: those of the present batch, or of the last one, and those that wait."""

    batch: Sequence[tuple[T, asyncio.Future[R]]] = ()
    """Empty before the first and after the last."""
    waiting: deque[tuple[T, asyncio.Future[R]]] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None


class Gather(Generic[K, T, R]):
    """Runs calls in batches; each caller gets its own result or error.

    The first call of an idle key starts a task. Before each batch it awaits `pause`, if there
    is one and the batch is not full yet, and takes all calls made in the meantime, at least those
    of the same turn of the event loop. Calls run in the order in which they were made.

    A call whose caller was cancelled before its batch began is left out, unless `all_run`.

    Args:
        run: called with the key and a batch; returns the result or the error of each call,
            in order. If it raises an `XscError`, each caller of the batch gets a copy.
        most: called with the numbers of waiting calls and of calls in the batch before;
            returns how many calls the next batch may have; by default all that wait.
        size_of: returns the size of a call.
        size_max: most that the sizes of a batch may add up to; a larger call is a batch of
            its own.
        all_run: whether calls are run whose callers were cancelled before.
        pause: awaited before each batch that is not full yet.
        spawn: starts the task of a key.
        stopped: makes the error of all unanswered calls where that task is cancelled. Where
            it fails by a bug, each of them raises the bug.
    """

    def __init__(
        self,
        run: Callable[[K, Sequence[T]], Awaitable[Sequence[R | XscError]]],
        *,
        most: Callable[[int, int], int] = lambda *_: sys.maxsize,
        size_of: Callable[[T], int] | None = None,
        size_max: int = 0,
        all_run: bool = False,
        pause: Callable[[], Awaitable[None]] | None = None,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]] = asyncio.create_task,
        stopped: Callable[[], XscError] = lambda: UnavailableError("this node was stopped"),
    ) -> None:
        self._run = run
        self._most = most
        self._size_of = size_of
        self._size_max = size_max
        self._all_run = all_run
        self._pause = pause
        self._spawn = spawn
        self._stopped = stopped
        self._queues: dict[K, _Queue[T, R]] = {}

    def waiting(self, key: K) -> int:
        """Return how many calls of a key are in no batch yet."""
        queue = self._queues.get(key)
        return 0 if queue is None else len(queue.waiting)

    def submit(self, key: K, call: T) -> asyncio.Future[R]:
        """Return the future result of a call, which is in one of the next batches of its key."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
            queue.task = self._spawn(self._work(key, queue))
            # A task that is cancelled before its first step runs none of its own code.
            queue.task.add_done_callback(lambda task: self._end(key, queue, task))
        queue.waiting.append((call, future))
        return future

    async def idle(self) -> None:
        """Return once no call waits or runs."""
        while tasks := [queue.task for queue in self._queues.values() if queue.task is not None]:
            await asyncio.wait(tasks)

    async def _work(self, key: K, queue: _Queue[T, R]) -> None:
        while await self._next_batch(queue):
            batch = queue.batch
            try:
                outcomes = await self._run(key, [call for call, _ in batch])
            except XscError as fault:
                outcomes = [copy(fault) for _ in batch]
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                _settle(future, outcome)
        # Nothing was awaited since the queue was found empty: a later call opens another one.
        del self._queues[key]
        queue.batch = ()

    async def _next_batch(self, queue: _Queue[T, R]) -> bool:
        """Take the next batch; return False where nothing waits."""
        waiting, before = queue.waiting, len(queue.batch)
        if self._pause is not None and len(waiting) < self._most(len(waiting), before):
            await self._pause()
        most = self._most(len(waiting), before)
        batch: list[tuple[T, asyncio.Future[R]]] = []
        size = 0
        while waiting and len(batch) < most:
            call, future = waiting[0]
            if future.done() and not self._all_run:
                waiting.popleft()
                continue
            if self._size_of is not None:
                size += self._size_of(call)
                if batch and size > self._size_max:
                    break
            batch.append(waiting.popleft())
        queue.batch = batch
        return bool(batch)

    def _end(self, key: K, queue: _Queue[T, R], task: asyncio.Task[None]) -> None:
        """Fail the calls that a task has left unanswered because it was cancelled or failed."""
        if self._queues.get(key) is queue:
            del self._queues[key]
        for _, future in (*queue.batch, *queue.waiting):
            if future.done():
                continue
            bug = None if task.cancelled() else task.exception()
            if bug is None:
                _settle(future, self._stopped())
            else:
                future.set_exception(bug)


def _settle(future: asyncio.Future[R], outcome: R | XscError) -> None:
    """Give a caller its result or error, unless it has gone."""
    if future.done():
        return
    if isinstance(outcome, XscError):
        future.set_exception(outcome)
        future.exception()  # so that asyncio does not warn where the caller has gone
    else:
        future.set_result(outcome)
