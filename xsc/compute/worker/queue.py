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

from xsc.base import encoding, errors, limits
from xsc.compute.wasm.code_format import MachineCode
from xsc.compute.wasm.sandbox import Job, OutputWatch, SandboxResult
from xsc.compute.worker import frames, quick
from xsc.compute.worker.process import ProcessLost, SandboxProcess

QUEUE_CALLS_MAX = 16
"""Quick calls that a worker is given at once."""

_STALL_S = quick.QUICK_MS / 1000
_TRANSFER_BYTES_A_MS = 100 * limits.KIB
"""The deadline is extended by the time that input and code take to reach the worker."""


class QueuedCall:
    """A job that waits for a worker, or in a worker's queue.

    `done` yields its result; None where its code must be found first.

    Args:
        job: the job.
        alone: whether it is to have a worker of its own, and no place behind others.
        watch: sees what its program writes.
        code: of its module, where that had to be compiled.
    """

    def __init__(
        self,
        job: Job,
        *,
        alone: bool = False,
        watch: OutputWatch | None = None,
        code: MachineCode | None = None,
    ) -> None:
        self.job = job
        self.alone = alone
        self.watch = watch
        self.code = code
        self.brought: dict[str, encoding.Value] | None = None
        """What announces the code that lies in the worker's mailbox for it."""
        self.loaded = False
        """Whether the worker has loaded that."""
        self.way_s = 0.0
        """How long what it brings takes to reach the worker."""
        self.left = job.limits.output_bytes
        """How much may still be told of what it writes."""
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[SandboxResult | None] = loop.create_future()
        self.queue: WorkerQueue | None = None

    def settle(self, result: SandboxResult | None) -> None:
        """Give who waits for it a result, where somebody does."""
        if not self.done.done():
            self.done.set_result(result)

    def fail(self, error: errors.XscError) -> None:
        """Give who waits for it an error, where somebody does."""
        if not self.done.done():
            self.done.set_exception(error)


class QueueOwner(Protocol):
    """Is told of events of a queue."""

    def dispatch(self) -> None:
        """The worker is free."""

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
        self.spare = False
        """Whether it has run calls for now, not at cleared rates, since it was empty."""
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._calls: deque[QueuedCall] = deque()
        self._unsent: list[QueuedCall] = []
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

    def takes(self, call: QueuedCall) -> bool:
        """Say whether a call may have the worker, or be queued behind others."""
        if not self._calls:
            return True
        return (
            len(self._calls) < QUEUE_CALLS_MAX
            and not self._stalled
            and not call.alone
            and not self._calls[0].alone
            and call.job.module_hash in self.worker.seen
        )

    def give(self, call: QueuedCall) -> None:
        """Queue a call that `takes` said yes to; `send` sends it."""
        call.queue = self
        self._calls.append(call)
        self.spare = self.spare or not call.job.cleared

    def send(self, call: QueuedCall) -> None:
        """Send a call that was given, with all others of this turn of the event loop."""
        size = len(call.job.stdin) + sum(len(data) for _, data in call.job.files)
        if call.brought is not None and call.code is not None:
            size += len(call.code.machine)
        call.way_s = size / _TRANSFER_BYTES_A_MS / 1000
        if call.watch is not None:
            call.watch.began()
        if self._calls[0] is call:
            self.worker.pipes.hear = self._heard
            self._begin()
            if self.worker.pipes.ended:
                self._loop.call_soon(self._heard)
        self._unsent.append(call)
        if not self._sending:
            self._sending = True
            self._loop.call_soon(self._send)

    def give_back(self) -> None:
        """Let go of the only call, which was not sent: it has no code yet."""
        self._calls.pop().settle(None)
        self._rest()
        self._owner.dispatch()

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
            calls, self._unsent = self._unsent, []
            first = calls[0]  # a call alone, or one of several that bring nothing
            message = frames.jobs_message(
                [call.job for call in calls], stream=first.watch is not None, code=first.brought
            )
            self.worker.pipes.write(frames.to_frame(message))

    def _allowed_s(self) -> float:
        first = self._calls[0]
        return first.way_s + (first.job.limits.timeout_ms + limits.KILL_GRACE_MS) / 1000

    def ran_ms(self) -> int:
        """Return how long the first call has been at the head."""
        return int(1000 * (self._loop.time() - self._began_s))

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
                if self._is_answer(self._calls[0], message):
                    self._calls.popleft()
                    answered += 1
            if self.worker.pipes.ended:
                raise ProcessLost("it ended")
        except (ProcessLost, errors.RecordInvalid) as fault:
            reason = str(fault)
            if isinstance(fault, errors.RecordInvalid):
                reason = f"it broke the protocol: {fault.message}"
            self._owner.broken(self, reason)
            return
        if self._calls:
            if answered:
                self._begin()
        elif answered:
            self._rest()
            self._owner.dispatch()

    def _is_answer(self, call: QueuedCall, message: dict[str, encoding.Value]) -> bool:
        """Take a message about the first call; return whether it is the last one.

        Raises:
            RecordInvalid, ProcessLost: it is none that the worker may say now.
        """
        kind = message.get("kind")
        if kind == "running" and call.brought is not None and not call.loaded:
            self.worker.empty_mailbox()
            call.loaded, call.way_s = True, 0
            self._begin()
            return False
        if kind == "output" and call.watch is not None:
            stream, data = frames.output_of(message)
            if not 0 < len(data) <= call.left:
                raise ProcessLost("it broke the protocol: it wrote nothing, or more than it may")
            call.left -= len(data)
            call.watch.wrote(stream, data)
            return False
        _settle(call, self.worker, message)
        return True

    def _rest(self) -> None:
        self._stalled = self.spare = False
        self.worker.pipes.hear = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _settle(call: QueuedCall, worker: SandboxProcess, message: dict[str, encoding.Value]) -> None:
    """Resolve a call with its answer.

    Raises:
        RecordInvalid, ProcessLost: it is no answer to that call.
    """
    match message.get("kind"):
        case "result":
            result = frames.result_of(message, call.job, worker.engine, worker.config)
            watch = call.watch
            if watch is not None and not watch.finish(result.stdout, result.stderr):
                raise ProcessLost("it broke the protocol: it takes back what it wrote")
            call.settle(result)
        case "error":
            worker.empty_mailbox()  # it may be the code that it refuses
            call.fail(frames.error_of(message))
        case "code_wanted" if call.brought is None:
            worker.seen.discard(call.job.module_hash)
            call.settle(None)
        case other:
            raise ProcessLost(f"it broke the protocol: it said {other!r}")
