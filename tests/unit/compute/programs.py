"""The test programs, and short ways to make jobs of them."""

from __future__ import annotations

import hashlib
import struct
import time
from pathlib import Path
from typing import Any

from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.sandbox import Bits, Job

FOLDER = Path(__file__).parents[3] / "fixtures" / "wasm"

UNSOUND = bytes.fromhex(
    "0061736d0100000001040160000003020100070a01065f737461727400000a050103006a0b"
)
"""A command whose code adds two numbers that are not there: only the engine sees it."""


def wasm(name: str) -> bytes:
    return (FOLDER / f"{name}.wasm").read_bytes()


def i32(value: int) -> Bits:
    return "i32", (value % 2**32).to_bytes(4, "little")


def i64(value: int) -> Bits:
    return "i64", (value % 2**64).to_bytes(8, "little")


def f64(value: float) -> Bits:
    return "f64", struct.pack("<d", value)


def job_of(module: bytes, function: str, *arguments: Bits, **fields: Any) -> Job:
    limits = {
        name: fields.pop(name)
        for name in ("fuel", "memory_bytes", "timeout_ms", "output_bytes")
        if name in fields
    }
    return Job(
        hashlib.sha256(module).digest(),
        module,
        fields.pop("mode", "invoke"),
        function,
        arguments,
        limits=Limits(**{"fuel": 10_000_000, **limits}),
        **fields,
    )


def job(name: str, function: str, *arguments: Bits, **fields: Any) -> Job:
    return job_of(wasm(name), function, *arguments, **fields)


def command(name: str, *args: str, **fields: Any) -> Job:
    return job(name, "_start", mode="run", args=args, **fields)


class SteadyClock:
    """Real time: worker processes live in it."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    async def sleep_ms(self, duration_ms: int) -> None:
        raise AssertionError("nothing here waits")
