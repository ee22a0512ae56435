"""The sandbox worker: `python -I -m xsc.compute.worker`, started by the pool.

Reads jobs on its standard input and answers on its standard output, one at a
time (`xsc.compute.frames`). It first loads all it needs, then gives up what it
does not (`xsc.compute.confine`), and only then meets a module.
"""

from __future__ import annotations

import hashlib
import sys
from typing import BinaryIO

from xsc.base.encoding import Value
from xsc.base.errors import XscError
from xsc.base.fields import take_bytes
from xsc.compute import frames
from xsc.compute.confine import confine, no_more_threads, while_compiling
from xsc.compute.engine import ENGINE, ENGINE_CONFIG, Machine
from xsc.compute.sandbox import Job

_WARM_UP = bytes.fromhex("0061736d01000000010401600000030201000707010372756e00000a040102000b")
"""A module that exports `run` and does nothing."""


def warm_up() -> None:
    """Run once everything that a job runs: later, nothing more can be loaded from the disk."""
    machine = Machine()
    result = machine.run(Job(hashlib.sha256(_WARM_UP).digest(), _WARM_UP, function="run"))
    job = Job(bytes(32), b"")
    raw = frames.to_frame(frames.result_message(result))[frames.PREFIX_BYTES :]
    frames.result_of(frames.from_frame(raw), job)
    frames.job_of(frames.job_message(job, with_module=True))
    machine.close()


class Worker:
    """Answers jobs until its input ends."""

    def __init__(self, machine: Machine, source: BinaryIO, sink: BinaryIO) -> None:
        self._machine = machine
        self._source = source
        self._sink = sink

    def serve(self) -> None:
        """Answer each job."""
        while (message := self._receive()) is not None:
            self._send(self._answer(message))

    def _receive(self) -> dict[str, Value] | None:
        prefix = self._source.read(frames.PREFIX_BYTES)
        if len(prefix) < frames.PREFIX_BYTES:
            return None
        return frames.from_frame(self._source.read(frames.length_of(prefix)))

    def _send(self, message: dict[str, Value]) -> None:
        self._sink.write(frames.to_frame(message))
        self._sink.flush()

    def _note(self, phase: str) -> None:
        while_compiling(compiling=phase == "compiling")
        self._send({"kind": "phase", "phase": phase})

    def _answer(self, message: dict[str, Value]) -> dict[str, Value]:
        job, complete = frames.job_of(message)
        if not complete and not self._machine.has(job.module_hash):
            self._send({"kind": "module_wanted"})
            brought = self._receive()
            if brought is None:
                raise SystemExit
            message["module"] = take_bytes(brought, "module")
            job, _ = frames.job_of(message)
        try:
            return frames.result_message(self._machine.run(job, self._note))
        except XscError as error:
            return {
                "kind": "error",
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
            }
        finally:
            while_compiling(compiling=False)


def main() -> None:
    """Be a worker."""
    warm_up()
    report = confine()
    machine = Machine()
    no_more_threads()
    hello: dict[str, Value] = {
        "kind": "hello",
        "engine": ENGINE,
        "config": ENGINE_CONFIG,
        "confined": dict(report),
    }
    sys.stdout.buffer.write(frames.to_frame(hello))
    sys.stdout.buffer.flush()
    Worker(machine, sys.stdin.buffer, sys.stdout.buffer).serve()


if __name__ == "__main__":
    main()
