"""Has modules compiled in jails, and keeps their code.

A customer has one module compiled at a time, so that one with many bombs holds
one processor and not all, and that for a share of the time. A module that went
over a bound of compiling is refused by name for a while.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence

from xsc.base import bounded, encoding, fields, limits, room, tally, turns, work
from xsc.base.clock import Clock
from xsc.base.errors import CompileLimit, RateLimited, RecordInvalid, SandboxFailed
from xsc.base.log import Log
from xsc.compute.wasm import code_format as codes
from xsc.compute.wasm.code_format import MachineCode
from xsc.compute.wasm.sandbox import Job, OutputWatch
from xsc.compute.worker import code_cache, frames, process

COMPILE_MS_A_PEER_MAX = 300_000
"""What one customer may have compiled within COMPILE_SHARE_MS, whoever pays: what takes long to
compile may be small, and a bill goes by size."""
COMPILE_SHARE_MS = 3_600_000
COMPILES_QUEUED_MAX = 64
"""Modules that wait to be compiled, or are."""
COMPILES_QUEUED_A_PEER_MAX = 8
CODE_KEPT_BYTES_MAX = 64 * limits.MIB
"""Code that is kept in memory where there is no directory for it."""

COMMAND = (sys.executable, "-I", "-m", "xsc.compute.worker.jail")
_BOMB_MS = 600_000
_BOMBS_MAX = 256
_BOUND_MET = (*process.ABORTS, -signal.SIGXCPU, -signal.SIGKILL)


class CompileBoundMet(Exception):
    """Compiling this module went over its bound of time or memory just now."""

    took_ms = 0
    """How long it was compiled by then."""


class Compiler:
    """Gives the code of modules: from memory or disk, or from a jail."""

    def __init__(
        self,
        jails: int,
        clock: Clock,
        log: Log,
        cache: code_cache.CodeCache | None,
        *,
        limit_ms: int,
        own: bytes = b"",
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._clock = clock
        self._log = log
        self._cache = cache
        self._limit_ms = limit_ms
        self._command = (*command, str(limit_ms))
        self._jails = asyncio.Semaphore(jails)
        self._turns: turns.Turns[bytes] = turns.Turns()
        """By customer: one module of each is compiled at a time."""
        self._own = own
        each = COMPILES_QUEUED_A_PEER_MAX
        self._queued = room.Room(COMPILES_QUEUED_MAX, each, small=each)
        """Of all places others leave a share free, so that this node has its own."""
        self._under_way: dict[tuple[bytes, bytes], asyncio.Task[MachineCode]] = {}
        self._bombs: bounded.Bounded[bytes, int] = bounded.Bounded(_BOMBS_MAX)
        """When each module that went over the bounds may be tried again."""
        self._kept: bounded.Bounded[tuple[bytes, bytes], MachineCode] = bounded.Bounded(
            size_max=CODE_KEPT_BYTES_MAX, size_of=lambda code: len(code.machine)
        )
        self._idle: list[process.SandboxProcess] = []
        self._compiled = 0
        self._taken = tally.Rate(COMPILE_MS_A_PEER_MAX, COMPILE_SHARE_MS, own)

    async def start(self) -> None:
        """Have a jail ready: starting one takes longer than most modules."""
        if not self._idle:
            self._idle.append(await process.spawn(self._command, "jail"))

    async def stop(self) -> None:
        """Kill every jail."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(jail.kill() for jail in self._idle))
        self._idle.clear()
        self._kept.clear()

    def describe(self) -> dict[str, encoding.Value]:
        """Return how many modules were compiled, and how many are under way."""
        return {"compiled": self._compiled, "compiling": len(self._under_way)}

    async def code(
        self, job: Job, config: bytes, watch: OutputWatch | None = None
    ) -> tuple[MachineCode, bool]:
        """Return the code of a job's module for the engine of that configuration.

        And whether it was compiled for this job: not where it was there, or under way.
        `watch` is told where it is.

        Raises:
            CompileBoundMet: compiling went over its bound.
            CompileLimit: it did so a short while ago.
            ModuleInvalid: it cannot run.
            RateLimited: too many modules of this customer wait to be compiled, or compiling
                has taken its share.
            SandboxFailed: the jail failed.
        """
        slot = (job.module_hash, config)
        found = await self.kept(*slot)
        if found is not None:
            return found, False
        self._refuse_bomb(job.module_hash)
        task = self._under_way.get(slot)
        first = task is None
        if task is None:
            self._check_share(job.customer)
            if not self._queued.take(job.customer, 1, large=job.customer != self._own):
                raise RateLimited("too many modules wait to be compiled, of this customer or all")
            if watch is not None:
                watch.compiling()
            task = asyncio.create_task(self._compile(job, slot))
            self._under_way[slot] = task
            task.add_done_callback(lambda done: self._done(done, slot, job.customer))
        return await asyncio.shield(task), first

    def _check_share(self, customer: bytes) -> None:
        wait_ms = self._taken.wait_ms(customer, 1, self._clock.monotonic_ms())
        if wait_ms:
            raise RateLimited(
                f"{COMPILE_MS_A_PEER_MAX // 1000} s within {COMPILE_SHARE_MS // 60_000} minutes "
                "were taken to compile modules of this customer",
                hint="modules that are compiled already can be run",
                retry_after_s=min(-(-wait_ms // 1000), limits.RETRY_AFTER_S_MAX),
            )

    def _done(
        self, task: asyncio.Task[MachineCode], slot: tuple[bytes, bytes], customer: bytes
    ) -> None:
        if not task.cancelled():
            task.exception()  # who asked hears it; where nobody waits any more, nobody does
        del self._under_way[slot]
        self._queued.give(customer, 1)

    async def kept(self, module_hash: bytes, config: bytes) -> MachineCode | None:
        """Return the code of a module for the engine of that configuration, where it is there."""
        if self._cache is not None:
            return await asyncio.to_thread(self._cache.get, module_hash, config)
        return self._kept.get((module_hash, config))

    async def _keep(self, slot: tuple[bytes, bytes], code: MachineCode) -> None:
        if self._cache is not None:
            await asyncio.to_thread(self._cache.put, *slot, code)
            return
        self._kept.put(slot, code)

    def _refuse_bomb(self, module_hash: bytes) -> None:
        until_ms = self._bombs.get(module_hash)
        if until_ms is None:
            return
        if until_ms <= self._clock.monotonic_ms():
            self._bombs.pop(module_hash)
            return
        raise CompileLimit(
            "the module went over the bounds of compiling a short while ago",
            hint="make it smaller, or raise `compile_limit`; it is tried again after ten minutes",
        )

    async def _compile(self, job: Job, slot: tuple[bytes, bytes]) -> MachineCode:
        async with self._turns.of(job.customer), self._jails:
            raw: bytes | None = None
            while raw is None:
                raw = await self._in_some_jail(job)
        self._compiled += 1
        code = _code_of(raw)
        await self._keep(slot, code)
        return code

    async def _in_some_jail(self, job: Job) -> bytes | None:
        """Return what the process said that compiled the module.

        Or None where the jail that was ready for it is gone, by no fault of this module: there
        is one less then, and a new one is the last that is tried.
        """
        ready = bool(self._idle)
        jail = self._idle.pop() if ready else await process.spawn(self._command, "jail")
        began_ms = self._clock.monotonic_ms()
        try:
            raw = await self._in_jail(jail, job)
        except process.ProcessLost as fault:
            await jail.kill()
            self._log.warning("compute.jail_lost", reason=str(fault))
            if ready:
                return None
            raise _failed("it is gone") from None
        except CompileBoundMet as met:
            await jail.kill()
            met.took_ms = self._clock.monotonic_ms() - began_ms
            raise
        except BaseException:
            await jail.kill()
            raise
        finally:
            ended_ms = self._clock.monotonic_ms()
            self._taken.note(job.customer, ended_ms - began_ms, ended_ms)
            work.worked(1000 * (ended_ms - began_ms))
        self._idle.append(jail)
        return raw

    async def _in_jail(self, jail: process.SandboxProcess, job: Job) -> bytes:
        """Return what the process said that compiled the module in this jail."""
        try:
            async with asyncio.timeout((self._limit_ms + limits.KILL_GRACE_MS) / 1000):
                await jail.send({"hash": job.module_hash, "module": job.module})
                message = await jail.receive()
                size = fields.take_int(message, "size", most=2 * limits.WORKER_FRAME_BYTES_MAX)
                raw = await jail.receive_bytes(size)
        except TimeoutError:
            raise self._bomb(job) from None
        except RecordInvalid as fault:
            raise process.ProcessLost(fault.message) from None
        status = message.get("status")
        if status in _BOUND_MET or size > limits.WORKER_FRAME_BYTES_MAX:
            raise self._bomb(job)
        if status != 0:
            raise _failed(f"status {status!r}")
        return raw

    def _bomb(self, job: Job) -> CompileBoundMet:
        self._bombs.put(job.module_hash, self._clock.monotonic_ms() + _BOMB_MS)
        return CompileBoundMet()


def _failed(why: str) -> SandboxFailed:
    return SandboxFailed(
        f"the process that compiled the module ended ({why})",
        hint="the job may be given again; nothing was billed",
    )


def _code_of(raw: bytes) -> MachineCode:
    """Return the code in what a compiling process said, read as strictly as a peer's words."""
    try:
        at = frames.PREFIX_BYTES + frames.length_of(raw[: frames.PREFIX_BYTES])
        message = frames.from_frame(raw[frames.PREFIX_BYTES : at])
        if message.get("kind") == "error":
            raise frames.error_of(message)
        about, size = codes.announced(message)
        if len(raw) != at + size:
            raise RecordInvalid("code is not as long as announced")
        return MachineCode(about, raw[at:])
    except RecordInvalid as fault:
        raise _failed(f"it broke the protocol: {fault.message}") from None
