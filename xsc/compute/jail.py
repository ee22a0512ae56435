"""The jail: `python -I -m xsc.compute.jail`, where modules are compiled, a process for each.

Compiling is not bounded by the engine, and compilers have faults: so it is done
where there is little memory, little processor time, no file, and nothing of
another customer, before or after. The process that the node starts only carries
bytes: it never looks at a module, and forks itself, warm, for each. What a
module breaks is its own process, whose answer has a pipe of its own.
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
from typing import NoReturn

from xsc.base.encoding import Value
from xsc.base.errors import XscError
from xsc.base.fields import take_bytes
from xsc.base.limits import COMPILE_ADDRESS_BYTES, COMPILE_MS_MAX, WORKER_FRAME_BYTES_MAX
from xsc.compute import code as codes
from xsc.compute import frames
from xsc.compute.confine import confine, die_with_parent, no_more_threads
from xsc.compute.engine import ENGINE, ENGINE_CONFIG, compile_module, new_engine
from xsc.compute.worker import WARM_UP

_PIECE_BYTES = 1 << 20


def _bound_compiling() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (COMPILE_ADDRESS_BYTES, COMPILE_ADDRESS_BYTES))
    seconds = 1 + -(-COMPILE_MS_MAX // 1000)  # of this process, which has used none
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


class Jail:
    """Forks a process for each module that it is given."""

    def __init__(self) -> None:
        self._engine = new_engine()
        # What compiling loads from the disk is loaded before there is no disk.
        warm = compile_module(self._engine, hashlib.sha256(WARM_UP).digest(), WARM_UP)
        frames.from_frame(frames.to_frame(codes.message_of(warm))[frames.PREFIX_BYTES :])

    def serve(self) -> None:
        """Answer each module until the input ends."""
        source, sink = sys.stdin.buffer, sys.stdout.buffer
        while len(prefix := source.read(frames.PREFIX_BYTES)) == frames.PREFIX_BYTES:
            raw = source.read(frames.length_of(prefix))
            status, answer = self._apart(raw)
            sink.write(frames.to_frame({"kind": "ended", "status": status, "size": len(answer)}))
            sink.write(answer)
            sink.flush()

    def _apart(self, raw: bytes) -> tuple[int, bytes]:
        """Return how the process ended that compiled it, and what it said."""
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            self._compile(raw, theirs)
        os.close(theirs)
        pieces, size = [], 0
        while size <= WORKER_FRAME_BYTES_MAX and (piece := os.read(ours, _PIECE_BYTES)):
            pieces.append(piece)
            size += len(piece)
        os.close(ours)  # one that says more than that is ended by the next thing it says
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), b"".join(pieces)

    def _compile(self, raw: bytes, pipe: int) -> NoReturn:
        status = 1
        try:
            os.dup2(pipe, 1)
            os.dup2(2, 0)  # nothing of what is meant for another
            confine()
            no_more_threads()
            _bound_compiling()
            message, code = self._answer(frames.from_frame(raw))
            with os.fdopen(1, "wb", closefd=False) as sink:
                sink.write(frames.to_frame(message))
                sink.write(code)
            status = 0
        finally:
            os._exit(status)  # whatever went wrong, the child never goes on as the parent

    def _answer(self, message: dict[str, Value]) -> tuple[dict[str, Value], bytes | memoryview]:
        module_hash, module = take_bytes(message, "hash"), take_bytes(message, "module")
        try:
            code = compile_module(self._engine, module_hash, module)
        except XscError as error:
            return frames.error_message(error), b""
        return codes.message_of(code), code.machine


def main() -> None:
    """Be a jail."""
    die_with_parent()
    jail = Jail()
    hello = frames.hello_message(ENGINE, ENGINE_CONFIG, {})
    sys.stdout.buffer.write(frames.to_frame(hello))
    sys.stdout.buffer.flush()
    jail.serve()


if __name__ == "__main__":
    main()
