"""The sandbox worker: `python -I -m xsc.compute.worker.main`, started by the pool.

Reads jobs on its standard input and answers on its standard output, one at a
time (`xsc.compute.worker.frames`). It first loads all it needs, then gives up what it
does not (`xsc.compute.worker.confine`), and only then meets a module.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from xsc.base import encoding, errors
from xsc.base.limits import STREAM_PIECE_BYTES
from xsc.compute.wasm import code_format as codes
from xsc.compute.wasm.engine import ENGINE, ENGINE_CONFIG, Machine, compile_module, new_engine
from xsc.compute.wasm.sandbox import Job
from xsc.compute.worker import frames
from xsc.compute.worker.confine import confine, no_more_threads
from xsc.compute.worker.mailbox import Inbox

STREAM_FLUSH_MS = 20
"""What a program writes within this time is shown together."""


class OutputStream:
    """Coalesces writes and sends them, from the writing thread or its own."""

    def __init__(self, tell: Callable[[int, bytes], None]) -> None:
        """Start the thread.

        Args:
            tell: receives a stream (1 or 2) and bytes, from one thread at a time.
        """
        self._tell = tell
        self._condition = threading.Condition()
        self._waiting: list[tuple[int, bytearray]] = []
        self._told = 0.0
        threading.Thread(target=self._watch, name="xsc-output", daemon=True).start()

    def wrote(self, stream: int, data: bytes) -> None:
        """Send it now, or together with what follows soon."""
        if not data:
            return
        with self._condition:
            if self._waiting and self._waiting[-1][0] == stream:
                self._waiting[-1][1].extend(data)
            else:
                self._waiting.append((stream, bytearray(data)))
            late = time.monotonic() - self._told >= STREAM_FLUSH_MS / 1000
            if late or len(self._waiting[-1][1]) >= STREAM_PIECE_BYTES or len(self._waiting) > 64:
                self._flush()
            else:
                self._condition.notify()

    def flush(self) -> None:
        """Send what is pending; call it before any other message about the run."""
        with self._condition:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for stream, data in waiting:
            self._tell(stream, bytes(data))
        self._told = time.monotonic()

    def _watch(self) -> None:
        with self._condition:
            while True:
                self._condition.wait()
                while self._waiting:
                    left_s = self._told + STREAM_FLUSH_MS / 1000 - time.monotonic()
                    if left_s <= 0:
                        self._flush()
                    else:
                        self._condition.wait(left_s)


WARM_UP = bytes.fromhex("0061736d01000000010401600000030201000707010372756e00000a040102000b")
"""A module that exports `run` and does nothing."""


def warm_up() -> None:
    """Run once everything that a job runs: later, nothing more can be loaded from the disk."""
    machine = Machine()
    job = Job(hashlib.sha256(WARM_UP).digest(), WARM_UP, function="run")
    code = compile_module(new_engine(), job.module_hash, WARM_UP)
    machine_code = (ctypes.c_uint8 * len(code.machine)).from_buffer_copy(code.machine)
    machine.load(job.module_hash, code.about, machine_code)
    result = machine.run(job)
    raw = frames.to_frame(frames.result_message(result))[frames.PREFIX_BYTES :]
    frames.result_of(frames.from_frame(raw), job, ENGINE, ENGINE_CONFIG)
    frames.jobs_of(frames.jobs_message([job]))
    machine.close()


class Worker:
    """Answers jobs until its input ends."""

    def __init__(self, machine: Machine, inbox: Inbox, source: BinaryIO, sink: BinaryIO) -> None:
        self._machine = machine
        self._inbox = inbox
        self._source = source
        self._sink = sink
        self._output = OutputStream(self._say)

    def serve(self) -> None:
        """Answer each job."""
        while (message := self._receive()) is not None:
            for job in frames.jobs_of(message):
                self._send(self._answer(job, message))

    def _receive(self) -> dict[str, encoding.Value] | None:
        prefix = self._source.read(frames.PREFIX_BYTES)
        if len(prefix) < frames.PREFIX_BYTES:
            return None
        return frames.from_frame(self._source.read(frames.length_of(prefix)))

    def _send(self, message: dict[str, encoding.Value]) -> None:
        self._sink.write(frames.to_frame(message))
        self._sink.flush()

    def _say(self, stream: int, data: bytes) -> None:
        self._send(frames.output_message(stream, data))

    def _answer(self, job: Job, message: dict[str, encoding.Value]) -> dict[str, encoding.Value]:
        brought = message["code"]
        try:
            if not self._machine.has(job.module_hash):
                if not isinstance(brought, dict):
                    return {"kind": "code_wanted"}
                about, size = codes.announced(brought)
                self._machine.load(job.module_hash, about, self._inbox.read(size))
            if brought is not None:
                self._send({"kind": "running"})
            tell = self._output.wrote if message["stream"] else None
            return frames.result_message(self._machine.run(job, tell=tell))
        except errors.XscError as error:
            return frames.error_message(error)
        finally:
            self._output.flush()  # nothing of this job is told during the next


def main() -> None:
    """Confine this process, then run the jobs that the pool sends."""
    inbox = Inbox(int(sys.argv[-1]))
    warm_up()
    report = confine()
    worker = Worker(Machine(), inbox, sys.stdin.buffer, sys.stdout.buffer)
    no_more_threads()
    hello = frames.hello_message(ENGINE, ENGINE_CONFIG, report)
    sys.stdout.buffer.write(frames.to_frame(hello))
    sys.stdout.buffer.flush()
    worker.serve()


if __name__ == "__main__":
    main()
