"""The sandbox in this process: for simulations and tests, where nothing hostile runs.

The same engine and the same results as in the worker processes, but nothing can
be killed: a module that compiles for minutes holds its thread for minutes. Who
watches a job sees its output when it is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from xsc.base import clock, encoding, errors
from xsc.compute.wasm.engine import ENGINE, ENGINE_CONFIG, Machine
from xsc.compute.wasm.sandbox import Job, OutputWatch, SandboxResult


class LocalSandbox:
    """Runs jobs through an executor, one at a time."""

    def __init__(self, executor: clock.Executor) -> None:
        self._executor = executor
        self._machine: Machine | None = None
        self._jobs = 0

    async def start(self) -> None:
        """Make the engine."""
        if self._machine is None:
            self._machine = Machine()

    async def stop(self) -> None:
        """Let the engine go."""
        if self._machine is not None:
            self._machine.close()
            self._machine = None

    async def prepare(self, job: Job) -> None:
        """Compile a module; errors as `Sandbox.prepare` names them."""
        if self._machine is None:
            raise errors.SandboxFailed("the sandbox is not running")
        await self._executor.run(self._machine.prepare, job)

    async def run(self, job: Job, watch: OutputWatch | None = None) -> SandboxResult:
        """Return what the job gave; errors as `Sandbox.run` names them."""
        if self._machine is None:
            raise errors.SandboxFailed("the sandbox is not running")
        self._jobs += 1
        compiled = not self._machine.has(job.module_hash)
        try:
            if watch is not None:
                if compiled:
                    watch.compiling()
                watch.began()
            result = await self._executor.run(self._machine.run, job)
            if watch is not None:
                watch.finish(result.stdout, result.stderr)
            return replace(result, compiled=True) if compiled else result
        finally:
            self._jobs -= 1

    def keep_workers(self, count: Callable[[int], int]) -> None:
        """Do nothing: it has no workers."""

    def describe(self) -> dict[str, encoding.Value]:
        """Return what runs, and that nothing confines it."""
        return {
            "workers": 0,
            "running": min(1, self._jobs),
            "queued": max(0, self._jobs - 1),
            "queue_ms": 0,
            "engine": ENGINE,
            "engine_config": ENGINE_CONFIG.hex(),
            "confined": {},
        }
