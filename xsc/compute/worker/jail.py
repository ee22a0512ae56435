"""The compile jail, one process a module: `python -I -m xsc.compute.worker.jail MS`.

Compiling is not bounded by the engine, and compilers have faults: so it is done
where there is little memory, little processor time, no file, and nothing of
another customer, before or after. The process that the node starts only carries
bytes: it never looks at a module, and forks itself, warm, for each. What a
module breaks is its own process, whose answer has a pipe of its own.

What it carries lies in memory that is given back to the system before the next
module comes: a process that is forked has all that its parent ever freed and did
not give back.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import resource
import sys
from typing import NoReturn

from xsc.base.encoding import Value
from xsc.base.errors import XscError
from xsc.base.fields import take_bytes
from xsc.base.limits import COMPILE_ADDRESS_BYTES, WORKER_FRAME_BYTES_MAX
from xsc.compute.wasm import code_format as codes
from xsc.compute.wasm.engine import ENGINE, ENGINE_CONFIG, compile_module, new_engine
from xsc.compute.worker import frames
from xsc.compute.worker.confine import confine, die_with_parent, no_more_threads
from xsc.compute.worker.main import WARM_UP

_PIECE_BYTES = 1 << 20
_STDIN, _STDOUT = 0, 1


def _bound_compiling(limit_ms: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (COMPILE_ADDRESS_BYTES, COMPILE_ADDRESS_BYTES))
    seconds = 1 + -(-limit_ms // 1000)  # of this process, which has used none
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def _memory(size: int) -> mmap.mmap:
    """Return memory that is given back to the system, with all that it holds, at its end."""
    return mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _read(size: int) -> bytes:
    """Return so many bytes of the input, or less at its end."""
    raw = b""
    while len(raw) < size and (piece := os.read(_STDIN, size - len(raw))):
        raw += piece
    return raw


def _fill(memory: mmap.mmap, source: int, size: int) -> int:
    """Read so many bytes into memory and nowhere else; return how many came before the end."""
    filled = 0
    with memoryview(memory) as view:
        while filled < size:
            with view[filled : min(size, filled + _PIECE_BYTES)] as room:
                if not (came := os.readv(source, [room])):
                    break
            filled += came
    return filled


def _write(data: bytes | memoryview | mmap.mmap, size: int | None = None) -> None:
    """Write data, or so many bytes of it, from where they lie."""
    with memoryview(data) as whole, whole[:size] as view:
        written = 0
        while written < len(view):
            with view[written:] as rest:
                written += os.write(_STDOUT, rest)


class Jail:
    """Forks a process for each module that it is given."""

    def __init__(self, limit_ms: int) -> None:
        self._limit_ms = limit_ms
        self._engine = new_engine()
        # What compiling loads from the disk is loaded before there is no disk.
        warm = compile_module(self._engine, hashlib.sha256(WARM_UP).digest(), WARM_UP)
        frames.from_frame(frames.to_frame(codes.message_of(warm))[frames.PREFIX_BYTES :])

    def serve(self) -> None:
        """Answer each module until the input ends."""
        while len(prefix := _read(frames.PREFIX_BYTES)) == frames.PREFIX_BYTES:
            size = frames.length_of(prefix)
            with _memory(size) as raw:
                if _fill(raw, _STDIN, size) < size:
                    return
                self._apart(raw, size)

    def _apart(self, raw: mmap.mmap, size: int) -> None:
        """Tell how the process ended that compiled a message's module, and what it said."""
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            self._compile(raw[:size], theirs)
        os.close(theirs)
        most = WORKER_FRAME_BYTES_MAX + 1
        with _memory(most) as answer:
            said = _fill(answer, ours, most)
            os.close(ours)  # one that says more than that is ended by the next thing it says
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            _write(frames.to_frame({"kind": "ended", "status": code, "size": said}))
            _write(answer, said)

    def _compile(self, raw: bytes, pipe: int) -> NoReturn:
        status = 1
        try:
            os.dup2(pipe, _STDOUT)
            os.dup2(2, _STDIN)  # nothing of what is meant for another
            confine()
            no_more_threads()
            _bound_compiling(self._limit_ms)
            message, code = self._answer(frames.from_frame(raw))
            _write(frames.to_frame(message))
            _write(code)
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
    """Compile each module that the parent sends, in a forked process of its own."""
    die_with_parent()
    jail = Jail(int(sys.argv[-1]))
    hello = frames.hello_message(ENGINE, ENGINE_CONFIG, {})
    _write(frames.to_frame(hello))
    jail.serve()


if __name__ == "__main__":
    main()
