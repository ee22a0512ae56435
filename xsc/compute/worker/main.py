"""The sandbox worker: `python -I -m xsc.compute.worker.main`, started by the pool.

Reads jobs on its standard input and answers on its standard output, one at a
time (`xsc.compute.worker.frames`). It first loads all it needs, then gives up what it
does not (`xsc.compute.worker.confine`), and only then meets a module.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from typing import BinaryIO

from xsc.base.encoding import Value
from xsc.base.errors import XscError
from xsc.compute.wasm import code_format as codes
from xsc.compute.wasm.engine import ENGINE, ENGINE_CONFIG, Machine, compile_module, new_engine
from xsc.compute.wasm.sandbox import Job
from xsc.compute.worker import frames
from xsc.compute.worker.confine import confine, no_more_threads
from xsc.compute.worker.mailbox import Inbox
from xsc.compute.worker.output_stream import OutputStream

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
    frames.result_of(frames.from_frame(raw), job)
    frames.job_of(frames.job_message(job))
    frames.calls_of(frames.calls_message([job]))
    frames.to_frame(frames.answer_message(result))
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
            if message["kind"] == "calls":
                for call in frames.calls_of(message):
                    self._send(self._answer_call(call))
            else:
                self._send(self._answer(message))

    def _receive(self) -> dict[str, Value] | None:
        prefix = self._source.read(frames.PREFIX_BYTES)
        if len(prefix) < frames.PREFIX_BYTES:
            return None
        return frames.from_frame(self._source.read(frames.length_of(prefix)))

    def _send(self, message: dict[str, Value]) -> None:
        self._sink.write(frames.to_frame(message))
        self._sink.flush()

    def _say(self, stream: int, data: bytes) -> None:
        self._send(frames.output_message(stream, data))

    def _load(self, module_hash: bytes, brought: Value) -> None:
        """Load the code of a module that the job brought, or ask for it."""
        if not isinstance(brought, dict):
            self._send({"kind": "code_wanted"})
            brought = self._receive()
            if brought is None:
                raise SystemExit
        about, size = codes.announced(brought)
        self._machine.load(module_hash, about, self._inbox.read(size))
        self._send({"kind": "running"})

    def _answer_call(self, call: Job) -> dict[str, Value]:
        if not self._machine.has(call.module_hash):
            return {"kind": "code_wanted"}  # it is not waited for: others are behind this one
        try:
            return frames.answer_message(self._machine.run(call))
        except XscError as error:
            return frames.error_message(error)

    def _answer(self, message: dict[str, Value]) -> dict[str, Value]:
        job = frames.job_of(message)
        try:
            if not self._machine.has(job.module_hash):
                self._load(job.module_hash, message["code"])
            tell = self._output.wrote if message["stream"] else None
            return frames.result_message(self._machine.run(job, tell=tell))
        except XscError as error:
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
