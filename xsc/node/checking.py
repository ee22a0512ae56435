"""Processes that check signatures: that holds the interpreter lock, so threads share one core.

Each reads `count`, then author, signature, length and message of each from its input, and writes
the place of the first that does not fit, or NONE. It ends with its input.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import BinaryIO, Final

from xsc.identity.keys import Check, Unverified, first_wrong

NONE: Final = 2**32 - 1
_NUMBER: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">32s64sI")


def frame(items: Sequence[Unverified]) -> bytes:
    """Return the question for signatures."""
    heads = ((_HEAD.pack(by, signature, len(said)), said) for by, signature, said in items)
    return _NUMBER.pack(len(items)) + b"".join(part for each in heads for part in each)


def serve(source: BinaryIO, target: BinaryIO) -> None:
    """Check what comes until the input ends."""
    while raw := source.read(_NUMBER.size):
        items = []
        for _ in range(*_NUMBER.unpack(raw)):
            by, signature, size = _HEAD.unpack(source.read(_HEAD.size))
            items.append((by, signature, source.read(size)))
        wrong = first_wrong(items)
        target.write(_NUMBER.pack(NONE if wrong is None else wrong))
        target.flush()


@asynccontextmanager
async def processes() -> AsyncIterator[Check]:
    """Start one for each core, and end them."""
    command = (sys.executable, "-m", "xsc.node.checking")
    free: asyncio.Queue[Process] = asyncio.Queue()
    made = [
        await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        for _ in os.sched_getaffinity(0)
    ]

    async def check(items: Sequence[Unverified]) -> int | None:
        process = await free.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(frame(items))
            await process.stdin.drain()
            (found,) = _NUMBER.unpack(await process.stdout.readexactly(_NUMBER.size))
        except (OSError, asyncio.IncompleteReadError):
            # It was killed. What it had to check is checked here.
            return first_wrong(items)
        finally:
            free.put_nowait(process)
        return None if found == NONE else int(found)

    for process in made:
        free.put_nowait(process)
    try:
        yield check
    finally:
        await asyncio.gather(*(process.communicate(b"") for process in made))


if __name__ == "__main__":
    os.nice(5)  # The node itself does not wait for them.
    serve(sys.stdin.buffer, sys.stdout.buffer)
