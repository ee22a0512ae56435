"""The operating system, where real time enters XSC: clock, randomness, threads and supervisor."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

from xsc.base import limits, work
from xsc.base.log import Log
from xsc.base.text import cause

DESCRIPTORS_MAX = 65_536
"""Descriptors that a node asks the system for, if it lets it have so many."""
DESCRIPTOR_SHARES = 16
"""Each kind of connection gets one such part of the descriptors at most, and each of the three
that come in another for those that are accepted at once; the databases have the rest."""
assert DESCRIPTOR_SHARES >= 2 * (4 + 3)

P = ParamSpec("P")
T = TypeVar("T")


class SystemClock:
    """The operating system's clock."""

    def now_ms(self) -> int:
        """Return milliseconds since 1970-01-01T00:00Z."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return milliseconds since some moment before the start."""
        return time.monotonic_ns() // 1_000_000

    async def sleep_ms(self, duration_ms: int) -> None:
        """Return after that long."""
        await asyncio.sleep(duration_ms / 1000)


class SystemEntropy:
    """The operating system's randomness."""

    def token(self, size: int) -> bytes:
        """Return `size` random bytes."""
        return os.urandom(size)


class ThreadExecutor:
    """Runs work in threads: cipher, code, hash and LevelDB all release the interpreter lock."""

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="xsc-work")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns, and tell the present call what it takes."""
        loop = asyncio.get_running_loop()
        took_us: list[int] = []

        def timed() -> T:
            began_us = self.processor_us()
            try:
                return function(*args, **kwargs)
            finally:
                took_us.append(self.processor_us() - began_us)

        try:
            return await loop.run_in_executor(self._pool, timed)
        finally:
            work.worked(sum(took_us))

    def processor_us(self) -> int:
        """Return the processor time of the present thread."""
        return time.thread_time_ns() // 1000

    def close(self) -> None:
        """Wait for what runs and refuse anything new."""
        self._pool.shutdown(wait=True)


_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8


def keep_freed_memory(size_bytes: int) -> bool:
    """Have the allocator keep what is freed, up to that size; return whether it does.

    Shards of a megabyte come and go by the thousand. glibc gives each back to the
    system and takes it anew, which costs a node that reads a third of its time in
    page faults (docs/performance.md). Other C libraries are left
    alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # What is mapped by itself goes back whole; 32 MiB is the most that glibc takes here.
    done = [
        mallopt(_MMAP_THRESHOLD, 32 * limits.MIB),
        mallopt(_TRIM_THRESHOLD, size_bytes),
        mallopt(_ARENA_MAX, 2),
    ]
    return all(done)


def give_back_memory(kept_bytes: int) -> bool:
    """Give back to the system the pages that are free; return whether some went back.

    What `keep_freed_memory` keeps is the top of the heap. Below a buffer that lives on, freed
    pages would stay for good: after four puts at a time that is most of what a node holds. It
    takes 10 ms for 300 MiB, in which other threads wait to allocate.

    Args:
        kept_bytes: what stays at the top of the heap.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(kept_bytes)))
    except (AttributeError, OSError):
        return False


def raise_descriptors() -> None:
    """Let this process have as many descriptors as the system allows, up to DESCRIPTORS_MAX."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # Some systems allow less than they say; what there is stays then, and connections
        # are counted by it.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections_of_a_kind() -> int:
    """Return how many connections of one kind the descriptors of this process allow.

    A connection too many must not keep a database from opening its files.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft
    return max(1, most // DESCRIPTOR_SHARES)


READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
TELL_TIMEOUT_S = 1.0


class Supervisor:
    """Who started this process and waits at $NOTIFY_SOCKET, if anybody does.

    It is told in systemd's protocol, a datagram a word.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._watchdog_us = os.environ.get("WATCHDOG_USEC", "")

    def tell(self, word: str) -> None:
        """Send a word; one that cannot be sent is the last, and the node goes on without."""
        if not self._address:
            return
        # "@" stands for the null byte of a socket that no file names.
        place = f"\0{self._address[1:]}" if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(TELL_TIMEOUT_S)
                sock.sendto(word.encode(), place)
        except OSError as fault:
            self._log.warning("node.supervisor_not_told", at=self._address, reason=cause(fault))
            self._address = ""

    async def assure(self) -> None:
        """Say that the event loop runs, twice in the time that the supervisor allows, for ever."""
        if self._watchdog_us.isdecimal() and int(self._watchdog_us):
            while True:
                self.tell(ALIVE)
                await asyncio.sleep(int(self._watchdog_us) / 2_000_000)
