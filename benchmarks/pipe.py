"""Memory of client and nodes while a stream goes in and out through pipes.

The stream is as long as no memory is: by turns a run of zeros, as of a sparse file,
and random bytes. Nobody knows its length before its end.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from benchmarks.size import least
from xsc.base.limits import GIB, MIB

SIZE = 4 * GIB
QUICK_SIZE = least(256, 16) * MIB
BLOCK = 8 * MIB
READ_BYTES = MIB

Watch = Callable[["subprocess.Popen[bytes]"], int]
"""Waits for the end of a process; returns the most memory it had, in MiB."""


def stream(size: int) -> Iterator[bytes]:
    """Yield the stream, a block at a time."""
    zeros, noise = bytes(BLOCK), os.urandom(BLOCK)
    for number in range(size // BLOCK):
        if number % 2:
            yield zeros
        else:
            # No two blocks are the same.
            yield number.to_bytes(8, "big") + noise[8:]


def _feed(target: BinaryIO, size: int, told: hashlib._Hash) -> None:
    with target:
        for block in stream(size):
            told.update(block)
            target.write(block)


def _drain(source: BinaryIO, told: hashlib._Hash) -> None:
    while block := source.read(READ_BYTES):
        told.update(block)


def run(home: Path, watch: Watch, *, quick: bool) -> tuple[int, int, int, bool]:
    """Return the size in MiB, what putting and getting took, and whether all came back."""
    size = QUICK_SIZE if quick else SIZE
    base = [sys.executable, "-m", "xsc", "--home", str(home), "store"]
    sent, came = hashlib.sha256(), hashlib.sha256()
    with subprocess.Popen(
        [*base, "put", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as putting:
        assert putting.stdin is not None
        assert putting.stdout is not None
        feeder = threading.Thread(target=_feed, args=(putting.stdin, size, sent))
        feeder.start()
        put_mib = watch(putting)
        feeder.join()
        capability = putting.stdout.read().strip()
    with subprocess.Popen(
        [*base, "get", "-", "-o", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as getting:
        assert getting.stdin is not None
        assert getting.stdout is not None
        with getting.stdin as told:
            told.write(capability)
        reader = threading.Thread(target=_drain, args=(getting.stdout, came))
        reader.start()
        get_mib = watch(getting)
        reader.join()
    return size // MIB, put_mib, get_mib, sent.digest() == came.digest()
