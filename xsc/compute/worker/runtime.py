"""Runs WebAssembly from plain Python, without a node: nothing is ordered, signed or paid.

    with ComputeRuntime() as runtime:
        runtime.execute(Path("add.wasm").read_bytes(), "add", [1, 2])    # 3
        await runtime.execute_async(module, "add", [1, 2])               # the same

The program runs in a sandbox worker process, under the same limits and the same
virtual world as a job of a peer, so that it gives the same results.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, TypedDict, Unpack

from xsc.base.limits import COMPILE_MS_MAX
from xsc.base.log import SilentLog
from xsc.compute.wasm import inputs, program
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.sandbox import CLOCK_START_MS, Job, SandboxResult, trap_error
from xsc.compute.wasm.values import parse_arguments, to_python
from xsc.compute.worker.pool import PoolSandbox

_SEED = b"\0" * 32


class _SystemClock:
    """The clock of this process: the node's own is above this layer."""

    def now_ms(self) -> int:
        """Return the wall time."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return the steady time."""
        return time.monotonic_ns() // 1_000_000

    async def sleep_ms(self, duration_ms: int) -> None:
        """Wait."""
        await asyncio.sleep(duration_ms / 1000)


class CallOptions(TypedDict, total=False):
    """How to call a function."""

    limits: Limits
    """Those of the runtime where left out."""
    seed: bytes
    """What random bytes follow from: the same seed gives the same run."""


class ProgramOptions(CallOptions, total=False):
    """How to run a program."""

    env: Mapping[str, str]
    stdin: bytes
    files: Mapping[str, bytes]
    """The program finds them at /in/NAME."""
    clock_ms: int
    """Where its virtual clock starts."""


class ComputeRuntime:
    """Calls functions and runs commands; what does not end in `_async` blocks until they are done.

    May be used from several threads. The worker starts with the first call and
    ends with `close`.

    Args:
        limits: what each run may use, unless a call says otherwise.
        workers: how many programs can run at once.
    """

    def __init__(self, limits: Limits | None = None, *, workers: int = 1) -> None:
        self._limits = limits or Limits()
        self._sandbox = PoolSandbox(workers, _SystemClock(), SilentLog(), compile_ms=COMPILE_MS_MAX)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def execute(
        self,
        module: bytes,
        function: str,
        args: Sequence[int | float | str] = (),
        **options: Unpack[CallOptions],
    ) -> int | float | list[int | float] | None:
        """Call an exported function and return its result.

        Args:
            module: the WebAssembly binary.
            function: the name of an export.
            args: numbers, or texts as on the command line ("0xff", "nan:0x1").
            options: limits and seed.

        Returns:
            The number; a list where there are several; None where there is none.

        Raises:
            ModuleInvalid, ExportUnknown, SignatureMismatch: it cannot run.
            FuelExhausted, TimeExceeded, ModuleTrapped and the like: how it ended.
        """
        return _value(self._run(self._call_job(module, function, args, options)))

    async def execute_async(
        self,
        module: bytes,
        function: str,
        args: Sequence[int | float | str] = (),
        **options: Unpack[CallOptions],
    ) -> int | float | list[int | float] | None:
        """Call an exported function as `execute` does, without blocking the event loop.

        Cancelling it ends the program.
        """
        job = await asyncio.to_thread(self._call_job, module, function, args, options)
        return _value(await self._run_async(job))

    def run(
        self, module: bytes, args: Sequence[str] = (), **options: Unpack[ProgramOptions]
    ) -> SandboxResult:
        """Run a WASI command and return its exit code, output and files.

        Raises:
            ModuleInvalid, ExportUnknown: it cannot run.
            FuelExhausted, OutputTooLarge and the like: a limit ended it.
        """
        return self._run(self._run_job(module, args, options))

    async def run_async(
        self, module: bytes, args: Sequence[str] = (), **options: Unpack[ProgramOptions]
    ) -> SandboxResult:
        """Run a WASI command as `run` does, without blocking the event loop.

        Cancelling it ends the program.
        """
        job = await asyncio.to_thread(self._run_job, module, args, options)
        return await self._run_async(job)

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        with self._lock:
            if self._loop is None or self._thread is None:
                return
            asyncio.run_coroutine_threadsafe(self._sandbox.stop(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                # A thread of its own: the caller's may have an event loop running.
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="xsc-compute", daemon=True
                )
                self._thread.start()
                asyncio.run_coroutine_threadsafe(self._sandbox.start(), self._loop).result()
            return self._loop

    def _call_job(
        self, module: bytes, function: str, args: Sequence[int | float | str], options: CallOptions
    ) -> Job:
        signature = program.read(module).signature(function)
        texts = [arg if isinstance(arg, str) else repr(arg) for arg in args]
        numbers = parse_arguments(texts, function, signature)
        return Job(
            hashlib.sha256(module).digest(),
            module,
            "invoke",
            function,
            numbers,
            limits=options.get("limits") or self._limits,
            seed=options.get("seed", _SEED),
        )

    def _run_job(self, module: bytes, args: Sequence[str], options: ProgramOptions) -> Job:
        given = inputs.RunInput(
            tuple(args),
            tuple(sorted(options.get("env", {}).items())),
            options.get("stdin", b""),
            tuple(sorted(options.get("files", {}).items())),
        )
        inputs.check_input(given)
        program.read(module).signature("_start")
        return Job(
            hashlib.sha256(module).digest(),
            module,
            "run",
            args=given.args,
            environment=given.environment,
            stdin=given.stdin,
            files=given.files,
            limits=options.get("limits") or self._limits,
            seed=options.get("seed", _SEED),
            clock_ms=options.get("clock_ms", CLOCK_START_MS),
        )

    def _run(self, job: Job) -> SandboxResult:
        running = asyncio.run_coroutine_threadsafe(self._sandbox.run(job), self._started())
        return _ended(running.result())

    async def _run_async(self, job: Job) -> SandboxResult:
        loop = await asyncio.to_thread(self._started)
        running = asyncio.run_coroutine_threadsafe(self._sandbox.run(job), loop)
        return _ended(await asyncio.wrap_future(running))


def _ended(result: SandboxResult) -> SandboxResult:
    if result.trap is not None:
        raise trap_error(result.trap)
    return result


def _value(result: SandboxResult) -> int | float | list[int | float] | None:
    values = [to_python(kind, bits) for kind, bits in result.results]
    if not values:
        return None
    return values[0] if len(values) == 1 else values
