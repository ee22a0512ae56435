"""A worker's queue: pipelines quick calls to one worker, without waiting for each answer.

Half the time of a small job is its round trip to the worker, which idles meanwhile. Calls of
functions known to be quick are therefore sent while others are still running, all of one turn
of the event loop in one message. The worker runs one at a time, each in a fresh store, and
answers each separately.

The call at the head of the queue is the one that runs. Its deadline starts when it becomes the
head. A head that runs long stalls the queue, and later is overdue; the owner is told of both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid
from xsc.base.limits import KILL_GRACE_MS
from xsc.compute.wasm.sandbox import Job, SandboxResult
from xsc.compute.worker import frames
from xsc.compute.worker.process import ProcessLost, SandboxProcess
from xsc.compute.worker.quick import QUICK_MS

QUEUE_CALLS_MAX = 16
"""Quick calls that a worker is given at once."""

_STALL_S = QUICK_MS / 1000


class QueuedCall:
    """A job that waits for a worker, or in a worker's queue.

    `done` yields its result; or the free worker to run it on alone, None for any worker.

    Args:
        job: the job.
        alone: whether it is to have a worker of its own, and no place in a worker's queue.
    """

    __slots__ = ("alone", "done", "job", "queue")

    def __init__(self, job: Job, *, alone: bool = False) -> None:
        self.job = job
        self.alone = alone
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[SandboxResult | SandboxProcess | None] = loop.create_future()
        self.queue: WorkerQueue | None = None


class QueueOwner(Protocol):
    """Is told of events of a queue."""

    def emptied(self, queue: WorkerQueue) -> None:
        """The worker has answered every call."""

    def stalled(self, queue: WorkerQueue) -> None:
        """The first call runs long."""

    def overdue(self, queue: WorkerQueue) -> None:
        """The first call exceeded its time limit."""

    def broken(self, queue: WorkerQueue, reason: str) -> None:
        """The worker ended, or broke the protocol."""


class WorkerQueue:
    """The calls that were given to a worker and are not answered."""

    def __init__(self, worker: SandboxProcess, owner: QueueOwner) -> None:
        self.worker = worker
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._calls: deque[QueuedCall] = deque()
        self._unsent: list[Job] = []
        self._sending = False
        self._stalled = False
        self._began_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many calls are not answered."""
        return len(self._calls)

    @property
    def first(self) -> QueuedCall:
        """The call that runs; there must be one."""
        return self._calls[0]

    def takes(self, module_hash: bytes) -> bool:
        """Say whether a call of that module may be queued."""
        return (
            len(self._calls) < QUEUE_CALLS_MAX
            and not self._stalled
            and module_hash in self.worker.seen
        )

    def give(self, call: QueuedCall) -> None:
        """Queue a call; the worker must be free, or run calls of this queue already."""
        call.queue = self
        self._calls.append(call)
        self._unsent.append(call.job)
        if len(self._calls) == 1:
            self.worker.pipes.hear = self._heard
            self._begin()
            if self.worker.pipes.ended:
                self._loop.call_soon(self._heard)
        if not self._sending:
            self._sending = True
            self._loop.call_soon(self._send)

    def clear(self) -> list[QueuedCall]:
        """Empty the queue and return its calls; the worker's answers are ignored from now on."""
        calls = list(self._calls)
        self._calls.clear()
        self._unsent.clear()
        self._rest()
        return calls

    def shorten(self) -> list[QueuedCall]:
        """Return the calls behind the first; the worker's answers to them are ignored."""
        waiting = [self._calls[place] for place in range(1, len(self._calls))]
        for place, call in enumerate(waiting, 1):
            call.queue = None
            gone = QueuedCall(call.job)
            gone.done.cancel()
            self._calls[place] = gone
        return waiting

    def _send(self) -> None:
        self._sending = False
        if self._unsent:
            jobs, self._unsent = self._unsent, []
            self.worker.pipes.write(frames.to_frame(frames.calls_message(jobs)))

    def _allowed_s(self) -> float:
        return (self._calls[0].job.limits.timeout_ms + KILL_GRACE_MS) / 1000

    def _begin(self) -> None:
        """Start the deadline of the first call."""
        self._stalled = False
        self._began_s = self._loop.time()
        self._wait_until(self._began_s + min(_STALL_S, self._allowed_s()))

    def _wait_until(self, due_s: float) -> None:
        # An early timer checks again; a timer for each call would double the cost of a call.
        if self._timer is not None:
            if self._timer.when() <= due_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._calls:
            return
        now_s = self._loop.time()
        end_s = self._began_s + self._allowed_s()
        if now_s >= end_s:
            self._owner.overdue(self)
        elif self._stalled or now_s < self._began_s + _STALL_S:
            self._wait_until(end_s if self._stalled else min(end_s, self._began_s + _STALL_S))
        else:
            self._stalled = True
            self._wait_until(end_s)
            self._owner.stalled(self)

    def _heard(self) -> None:
        """Read the complete answers that have arrived."""
        try:
            answered = 0
            while (message := self.worker.heard()) is not None:
                if not self._calls:
                    raise ProcessLost("it broke the protocol: it answers what nobody asked")
                _settle(self._calls[0], self.worker, message)
                self._calls.popleft()
                answered += 1
            if self.worker.pipes.ended:
                raise ProcessLost("it ended")
        except (ProcessLost, RecordInvalid) as fault:
            reason = str(fault)
            if isinstance(fault, RecordInvalid):
                reason = f"it broke the protocol: {fault.message}"
            self._owner.broken(self, reason)
            return
        if self._calls:
            if answered:
                self._begin()
        elif answered:
            self._rest()
            self._owner.emptied(self)

    def _rest(self) -> None:
        self._stalled = False
        self.worker.pipes.hear = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _settle(call: QueuedCall, worker: SandboxProcess, message: dict[str, Value]) -> None:
    """Resolve a call with its answer.

    Raises:
        RecordInvalid, ProcessLost: it is no answer to that call.
    """
    done = call.done
    match message.get("kind"):
        case "answer":
            result = frames.result_of_answer(message, call.job, worker.engine, worker.config)
        case "result":
            result = frames.result_of(message, call.job)
        case "error":
            if not done.done():
                done.set_exception(frames.error_of(message))
            return
        case "code_wanted":
            worker.seen.discard(call.job.module_hash)
            if not done.done():
                done.set_result(None)
            return
        case other:
            raise ProcessLost(f"it broke the protocol: it said {other!r}")
    if not done.done():
        done.set_result(result)
