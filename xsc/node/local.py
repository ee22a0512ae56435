"""Work without a node: the same sandbox, for one job in this process.

`xsc compute invoke --local`, and the default where no node runs. The receipt is
signed by a key made for this one job: it proves the bits, and nobody's debt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from xsc.base.jobs import JobResult, JobSpec
from xsc.base.limits import COMPILE_MS_MAX
from xsc.base.log import SilentLog
from xsc.compute.jobs.output_buffer import OutputBuffer
from xsc.compute.jobs.runner import JobRunner
from xsc.compute.worker.pool import PoolSandbox
from xsc.identity.keys import NETWORK_DEFAULT, KeyPair, network_id
from xsc.node.system import SystemClock, SystemEntropy, ThreadExecutor


async def _run(spec: JobSpec, output: OutputBuffer | None) -> JobResult:
    clock, entropy, executor = SystemClock(), SystemEntropy(), ThreadExecutor(1)
    sandbox = PoolSandbox(1, clock, SilentLog(), compile_ms=COMPILE_MS_MAX)
    runner = JobRunner(
        key=KeyPair(entropy.token(32)),
        network=network_id(NETWORK_DEFAULT),
        clock=clock,
        entropy=entropy,
        executor=executor,
        sandbox=sandbox,
    )
    try:
        await sandbox.start()
        task = await runner.read(spec, ())
        return await runner.result(task, await runner.run_here(task, output))
    finally:
        await sandbox.stop()
        executor.close()


async def _show(spec: JobSpec, show: Callable[[int, bytes], None]) -> JobResult:
    output = OutputBuffer(SystemClock())
    running = asyncio.ensure_future(_run(spec, output))
    running.add_done_callback(lambda _: output.close())
    async for stream, piece in output.pieces():
        show(stream, piece)
    return replace(await running, stdout=b"", stderr=b"")


def run_here(spec: JobSpec, show: Callable[[int, bytes], None] | None = None) -> JobResult:
    """Run a job in this process; return its result.

    With `show`, that is given what the program writes, and to which stream; the result holds
    none of it then.

    Raises:
        XscError: it cannot run; a limit that ended it is the result's `trap`.
    """
    return asyncio.run(_run(spec, None) if show is None else _show(spec, show))
