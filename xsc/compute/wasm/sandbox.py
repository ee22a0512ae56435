"""The sandbox port: one job in, one result out, nothing else shared.

A job is everything that a run depends on; a result is everything that it gives.
Numbers travel as their raw bits. Two adapters keep the same laws
(tests/contracts/test_sandbox.py): `xsc.compute.worker.pool.PoolSandbox` runs jobs in
killable worker processes, `xsc.compute.worker.local.LocalSandbox` in this process, for
simulations and tests.

Laws: the same job gives the same result, fuel included, except where it meets
its time limit; no job sees anything of another; a limit that is met is named in
`SandboxResult.trap`, and only what never came to run is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from xsc.base import encoding, errors, jobs
from xsc.base.limits import COMPUTE_WAIT_MS
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.values import Bits

if TYPE_CHECKING:  # a sandbox worker need not load the record models
    from xsc.terms.quote import Tier

CLOCK_START_MS = 1_767_225_600_000
"""2026-01-01T00:00Z: where the virtual clock starts unless the job says otherwise."""

_TRAPS: dict[str, tuple[type[errors.XscError], str, str]] = {
    "fuel_exhausted": (
        errors.FuelExhausted,
        "the program used all of its fuel",
        "give it more with --fuel",
    ),
    "memory_exceeded": (
        errors.MemoryExceeded,
        "the program needs more memory than it was given",
        "give it more with --memory",
    ),
    "time_exceeded": (
        errors.TimeExceeded,
        "the program ran longer than it was allowed to",
        "give it more time with --timeout",
    ),
    "stack_exhausted": (
        errors.StackExhausted,
        "the program nests calls deeper than the stack allows",
        "",
    ),
    "output_too_large": (
        errors.OutputTooLarge,
        "the program wrote more than it was allowed to",
        "",
    ),
    "compile_limit": (
        errors.CompileLimit,
        "compiling the module takes more time or memory than is allowed",
        "a node allows what its setting `compile_limit` says",
    ),
    "worker_lost": (
        errors.WorkerLost,
        "the program ended the process that ran it, or the machine had no memory left for it",
        "run it on another node: this one refuses the module for a while",
    ),
    "cancelled": (errors.Cancelled, "the run was cancelled", ""),
    "module_trapped": (errors.ModuleTrapped, "the program failed by itself", ""),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one module."""

    module_hash: bytes
    """SHA-256 of the module."""
    module: bytes
    mode: jobs.Mode = "invoke"
    function: str = "_start"
    arguments: tuple[Bits, ...] = ()
    """The numbers of an `invoke`."""
    args: tuple[str, ...] = ()
    """The arguments of a `run`; the program's own name, "program", is put before them.
    The shape of a `batch`; its tables are `stdin`, stdout and stderr: `xsc.compute.wasm.rows`."""
    environment: tuple[tuple[str, str], ...] = ()
    stdin: bytes = b""
    files: tuple[tuple[str, bytes], ...] = ()
    """Read-only inputs: the program finds them at /in/NAME."""
    limits: Limits = field(default_factory=Limits)
    seed: bytes = b"\0" * 32
    """What the program's random bytes follow from."""
    clock_ms: int = CLOCK_START_MS
    """Where the program's virtual clock starts."""
    grants: tuple[jobs.Grant, ...] = ()
    """What it sees of this machine, instead of what follows from seed and clock."""
    customer: bytes = b""
    """Who asked: the queue is bounded for each customer as well."""
    service: bool = False
    """It answers a request of a service, which is run again also after one that lost its worker."""
    tier: Tier = "mutual"
    """How the customer is recognised: its weight among those that wait."""
    cleared: bool = False
    """It runs at a rate that was granted ahead of use, before those that do not."""
    wait_ms: int = COMPUTE_WAIT_MS
    """How long it may wait for a worker."""


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """What a run gave, or the limit that ended it."""

    results: tuple[Bits, ...]
    exit_code: int | None
    """The code of a `run` that came to its end."""
    trap: str | None
    """None, or an error's code, or a code and the reason: "module_trapped: unreachable"."""
    fuel_used: int
    memory_peak_bytes: int
    stdout: bytes
    stderr: bytes
    files: tuple[tuple[str, bytes], ...]
    """What the program left in /out, by path, sorted."""
    engine: str
    engine_config: bytes
    wall_ms: int
    """Time in the sandbox: not part of what a second run reproduces."""
    compiled: bool = field(default=False, compare=False)
    """Whether the module had to be compiled for this job; no part of what it gave either."""


class OutputWatch(Protocol):
    """Sees a job run."""

    def compiling(self) -> None:
        """The job's module is being compiled for it."""

    def began(self) -> None:
        """The job has a worker."""

    def wrote(self, stream: int, data: bytes) -> None:
        """The program wrote to standard output (1) or standard error (2)."""

    def finish(self, stdout: bytes, stderr: bytes) -> bool:
        """It is over and wrote this in all; False where that does not begin as was told."""


class Sandbox(Protocol):
    """Runs jobs."""

    async def start(self) -> None:
        """Get ready; a second call does nothing."""

    async def stop(self) -> None:
        """End every job and release everything."""

    async def prepare(self, job: Job) -> None:
        """Compile the module of a job that comes later, where it is not compiled yet.

        Raises:
            ModuleInvalid: it cannot run.
            CompileLimit: compiling takes more than is allowed.
            RateLimited: too many modules of this customer wait.
            SandboxFailed: the jail failed.
        """

    async def run(self, job: Job, watch: OutputWatch | None = None) -> SandboxResult:
        """Return what the job gave, and tell `watch` what it writes.

        Raises:
            ModuleInvalid, ExportUnknown, SignatureMismatch: it cannot run.
            RateLimited: too many jobs wait, or no worker was free in time.
            SandboxFailed: no worker could take it, or this customer's last run of the module
                ended its worker a short while ago.
        """

    def keep_workers(self, count: Callable[[int], int]) -> None:
        """Start no call for now on so many of its workers, of which `count` is told the number."""

    def describe(self) -> dict[str, encoding.Value]:
        """Return workers, running and queued jobs, engine and what confines the workers."""


def trap_error(trap: str) -> errors.XscError:
    """Return the error that a trap stands for, ready to be raised."""
    code, _, reason = trap.partition(": ")
    if code not in _TRAPS:
        return errors.from_code(code, reason or f"the run ended with {code}")
    kind, sentence, hint = _TRAPS[code]
    return kind(f"{sentence}: {reason}" if reason else sentence, hint=hint)


def is_trap(trap: str) -> bool:
    """Say whether that is a trap that a sandbox reports."""
    return trap.partition(": ")[0] in _TRAPS
