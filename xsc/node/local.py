"""Work without a node: the same services and sandbox, for one job in this process.

`xsc compute invoke --local`, and the default where no node runs. The receipt is
signed by a key made for this one job: it proves the bits, and nobody's debt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from xsc.base.encoding import Value
from xsc.base.errors import NoOffers
from xsc.base.jobs import JobResult, JobSpec
from xsc.base.limits import COMPILE_MS_MAX
from xsc.base.log import SilentLog
from xsc.base.merkle import Part
from xsc.compute.jobs.evidence import EvidenceStore
from xsc.compute.jobs.output_buffer import OutputBuffer
from xsc.compute.ports import ComputeLease, Reply
from xsc.compute.service import ComputeService
from xsc.compute.worker.pool import PoolSandbox
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.keys import NETWORK_DEFAULT, KeyPair, network_id
from xsc.node.system import SystemClock, SystemEntropy, ThreadExecutor
from xsc.terms.lease import RunTerms


class _Nobody:
    """No peers and no market: a job that would need one is refused."""

    @staticmethod
    def _refuse() -> NoReturn:
        raise NoOffers("no node runs here to ask others", hint="start one: xsc node start")

    async def call(
        self,
        peer: bytes,
        method: str,
        header: dict[str, Value],
        parts: Sequence[Part] = (),
        *,
        timeout_ms: int | None = None,
    ) -> Reply:
        """Refuse."""
        del peer, method, header, parts, timeout_ms
        self._refuse()

    async def read_reference(self, raw: bytes, size_max: int) -> tuple[bytes, int]:
        """Refuse."""
        del raw, size_max
        self._refuse()

    async def lease_compute(
        self,
        *,
        fuel_steps: int,
        on: bytes | None,
        saved: Mapping[bytes, int] | None = None,
        wait_ms: int = 0,
    ) -> ComputeLease:
        """Refuse."""
        del fuel_steps, on, saved, wait_ms
        self._refuse()

    async def lease_providers(
        self, *, fuel_steps: int, count: int, exclude: frozenset[bytes]
    ) -> Sequence[ComputeLease]:
        """Refuse."""
        del fuel_steps, count, exclude
        self._refuse()

    async def refused(self, lease_id: bytes) -> None:
        """Refuse."""
        del lease_id
        self._refuse()

    def report(self, node: bytes, what: str) -> None:
        """Refuse."""
        del node, what
        self._refuse()

    async def spent(self, lease_id: bytes, fuel_steps: int) -> None:
        """Refuse."""
        del lease_id, fuel_steps
        self._refuse()

    def unused(self, lease_id: bytes, fuel_steps: int) -> None:
        """Refuse."""
        del lease_id, fuel_steps
        self._refuse()

    def compute_terms(self, lease_id: bytes, customer: bytes, fuel_steps: int) -> RunTerms:
        """Refuse."""
        del lease_id, customer, fuel_steps
        self._refuse()

    async def admit_compute(
        self, lease_id: bytes, customer: bytes, fuel_steps: int, wait_ms: int
    ) -> None:
        """Refuse."""
        del lease_id, customer, fuel_steps, wait_ms
        self._refuse()

    def used_compute(self, lease_id: bytes, reserved_steps: int, used_steps: int) -> None:
        """Refuse."""
        del lease_id, reserved_steps, used_steps
        self._refuse()


def _alone(work: Callable[[ComputeService], Awaitable[JobResult]]) -> JobResult:
    async def main() -> JobResult:
        clock, entropy, log = SystemClock(), SystemEntropy(), SilentLog()
        network = network_id(NETWORK_DEFAULT)
        executor = ThreadExecutor(1)
        nobody = _Nobody()
        service = ComputeService(
            Context(KeyPair(entropy.token(32)), network, clock, entropy, executor, nobody, log),
            leases=nobody,
            book=nobody,
            sandbox=PoolSandbox(1, clock, log, compile_ms=COMPILE_MS_MAX),
            evidence=EvidenceStore(network, MemoryKeyValue()),
            inputs=nobody,
        )
        try:
            await service.start()
            return await work(service)
        finally:
            await service.stop()
            executor.close()

    return asyncio.run(main())


def run_here(spec: JobSpec, show: Callable[[int, bytes], None] | None = None) -> JobResult:
    """Run a job in this process; return its result.

    With `show`, that is given what the program writes, and to which stream; the result holds
    none of it then.

    Raises:
        XscError: it cannot run; a limit that ended it is the result's `trap`.
    """
    here = replace(spec, local=True)
    if show is None:
        return _alone(lambda service: service.run(here))

    async def work(service: ComputeService) -> JobResult:
        output = OutputBuffer(SystemClock())
        running = asyncio.ensure_future(service.run(here, output=output))
        running.add_done_callback(lambda _: output.close())
        async for stream, piece in output.pieces():
            show(stream, piece)
        return replace(await running, stdout=b"", stderr=b"")

    return _alone(work)
