"""A session: instances that are kept over several calls, and linked with one another.

    async with Session() as session:
        await session.start(counter)
        await session.call("add", ("i32", bits))

`make spec` runs the WebAssembly specification's tests through it. Its process is
confined like a worker, but compiles and runs in one. A node never starts one: what
a peer runs is a job, which starts from nothing (`xsc.compute.wasm.sandbox`).
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid, SandboxFailed, TooLarge
from xsc.base.fields import take_int, take_list, take_str
from xsc.base.limits import COMPILE_MS_MAX, KILL_GRACE_MS, MODULE_BYTES_MAX
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.sandbox import trap_error
from xsc.compute.wasm.values import Bits
from xsc.compute.worker import frames
from xsc.compute.worker.process import ProcessLost, SandboxProcess, spawn

COMMAND = (sys.executable, "-I", str(Path(__file__).with_name("session_worker.py")))


@dataclass(frozen=True, slots=True)
class Gave:
    """What a call gave."""

    results: tuple[Bits, ...]
    fuel_used: int


class Session:
    """One sandbox process that keeps its instances until `begin` or `close`.

    Args:
        limits: fuel and time of each call and start, bytes of each memory.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._process: SandboxProcess | None = None
        self._turn = asyncio.Lock()

    async def begin(self) -> None:
        """Forget every instance and every registered name."""
        await self._ask(self._beginning())

    async def start(self, module: bytes, name: str = "") -> Gave:
        """Make an instance and run its start function.

        Args:
            module: the binary; it may import from registered instances.
            name: what later calls name it by; the one that had that name is let go.

        Raises:
            ModuleInvalid: it cannot run, or cannot be linked.
            TooLarge: the module is over its bound.
            FuelExhausted, ModuleTrapped and the like: how its start ended.
        """
        if len(module) > MODULE_BYTES_MAX:
            raise TooLarge(f"the module has {len(module)} bytes, over {MODULE_BYTES_MAX}")
        return await self._ask(
            {"kind": "start", "name": name, "module": bytes(module)}, also_ms=COMPILE_MS_MAX
        )

    async def register(self, as_name: str, name: str = "") -> None:
        """Let modules that start later import the exports of an instance, under that name."""
        await self._ask({"kind": "register", "name": name, "as": as_name})

    async def call(self, function: str, *arguments: Bits, name: str = "") -> Gave:
        """Call an exported function of an instance.

        Numbers, and vectors ("v128", 16 bytes), are given and taken as raw bits.

        Raises:
            ExportUnknown, SignatureMismatch: it cannot be called so.
            FuelExhausted, ModuleTrapped and the like: how it ended; the instance stays.
        """
        pairs: list[Value] = [[kind, bits] for kind, bits in arguments]
        return await self._ask(
            {"kind": "call", "name": name, "export": function, "arguments": pairs}
        )

    async def read(self, exported: str, *, name: str = "") -> Bits:
        """Return the value of an exported global.

        Raises:
            ExportUnknown, SignatureMismatch: there is none of that name that is a number.
        """
        gave = await self._ask({"kind": "read", "name": name, "export": exported})
        return gave.results[0]

    async def close(self) -> None:
        """End the process; a later call starts a new one, without instances."""
        if self._process is not None:
            process, self._process = self._process, None
            await process.kill()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _beginning(self) -> dict[str, Value]:
        limits = self._limits
        given: list[Value] = [limits.fuel, limits.memory_bytes, limits.timeout_ms]
        return {"kind": "begin", "limits": given}

    async def _ask(self, message: dict[str, Value], *, also_ms: int = 0) -> Gave:
        async with self._turn:
            if self._process is None:
                self._process = await spawn(COMMAND, "session")
                await self._exchange(self._process, self._beginning(), 0)
            return await self._exchange(self._process, message, also_ms)

    async def _exchange(
        self, process: SandboxProcess, message: dict[str, Value], also_ms: int
    ) -> Gave:
        allowed_ms = self._limits.timeout_ms + also_ms + KILL_GRACE_MS
        try:
            async with asyncio.timeout(allowed_ms / 1000):
                await process.send(message)
                answer = await process.receive()
            return _read(answer)
        except TimeoutError:
            await self.close()
            raise trap_error("time_exceeded") from None
        except (ProcessLost, RecordInvalid) as fault:
            await self.close()
            raise SandboxFailed(f"the process of the session is gone: {fault}") from None
        except asyncio.CancelledError:
            await self.close()  # its answer would be taken for the next one's
            raise


def _read(answer: dict[str, Value]) -> Gave:
    match answer.get("kind"):
        case "gave":
            pairs = tuple(frames.named_bytes(item) for item in take_list(answer, "results"))
            return Gave(pairs, take_int(answer, "fuel"))
        case "trap":
            raise trap_error(take_str(answer, "trap"))
        case "error":
            raise frames.error_of(answer)
        case other:
            raise RecordInvalid(f"it said {other!r}")
