"""What a job takes inside of a node, without API, orders and receipts: the sandbox alone."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.size import least
from xsc.base.limits import KIB, MIB
from xsc.base.log import SilentLog
from xsc.compute.wasm.sandbox import Job
from xsc.compute.worker.code_cache import CodeCache
from xsc.compute.worker.pool import PoolSandbox
from xsc.node.system import SystemClock

ONE, TWO = ("i32", b"\1\0\0\0"), ("i32", b"\2\0\0\0")
_STEP = bytes.fromhex("200020016a20006c2101")
"""local.get 0, local.get 1, i32.add, local.get 0, i32.mul, local.set 1"""


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _section(kind: int, items: list[bytes]) -> bytes:
    content = _number(len(items)) + b"".join(items)
    return bytes([kind]) + _number(len(content)) + content


def large(size_bytes: int) -> bytes:
    """Return a module of about that size which exports `add`; its other functions are code."""
    steps = b"\0" + _STEP * 100 + b"\x20\x01\x0b"
    add = b"\0\x20\x00\x20\x01\x6a\x0b"
    bodies = [add, *[steps] * (size_bytes // (len(steps) + 2))]
    return b"".join(
        [
            b"\0asm\1\0\0\0",
            _section(1, [b"\x60\x02\x7f\x7f\x01\x7f"]),
            _section(3, [b"\0"] * len(bodies)),
            _section(7, [b"\x03add\x00\x00"]),
            _section(10, [_number(len(body)) + body for body in bodies]),
        ]
    )


def _job(module: bytes) -> Job:
    return Job(hashlib.sha256(module).digest(), module, function="add", arguments=(ONE, TWO))


async def _measure(module: bytes, folder: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of first runs, each after a start of the pool, and of warm ones."""
    first: list[float] = []
    warm: list[float] = []
    job = _job(module)
    for number in range(rounds + 1):
        cache = CodeCache(folder, b"k" * 32)
        pool = PoolSandbox(1, SystemClock(), SilentLog(), cache)
        await pool.start()
        try:
            for _ in range(1 if number == 0 else least(200, 2)):
                begun = time.perf_counter()
                result = await pool.run(job)
                took = time.perf_counter() - begun
                assert result.results == (("i32", b"\3\0\0\0"),), result
                (warm if first and len(first) > number else first).append(took)
        finally:
            await pool.stop()
    return first[1:], warm


def run(quick: bool) -> None:
    """Measure, and print."""
    module = large(least(MIB, 16 * KIB))
    with tempfile.TemporaryDirectory(prefix="xsc-inside-") as folder:
        path = Path(folder) / "cache"
        first, warm = asyncio.run(_measure(module, path, least(3 if quick else 7, 1)))
        size = sum(file.stat().st_size for file in path.iterdir())
    print(f"\nsandbox of a node: a module of {len(module) / MIB:.1f} MiB, {size / MIB:.1f} of code")
    print(
        f"  first run after a restart, code cached    {median(first) * 1e3:.1f} ms "
        f"(best {min(first) * 1e3:.1f})\n"
        f"  job through the warm worker               {median(warm) * 1e3:.2f} ms "
        f"(best {min(warm) * 1e3:.2f})"
    )
