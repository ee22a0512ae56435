"""Work without a node: the same services and sandbox, for one job in this process.

`xsc compute invoke --local`, and the default where no node runs. The receipt is
signed by a key made for this one job: it proves the bits, and nobody's debt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn, Protocol, TypeVar

from xsc.base.encoding import Value
from xsc.base.errors import NoOffers
from xsc.base.limits import COMPILE_MS_MAX, FUEL_DEFAULT, MEMORY_BYTES_DEFAULT, TIMEOUT_MS_DEFAULT
from xsc.base.log import SilentLog
from xsc.base.merkle import Part
from xsc.compute.jobs.evidence import EvidenceBook
from xsc.compute.jobs.output_buffer import Tape
from xsc.compute.ports import ComputeLease, Reply
from xsc.compute.service import ComputeService, RunExecution
from xsc.compute.wasm.limits import Limits
from xsc.compute.worker.pool import PoolSandbox
from xsc.db.memory import MemoryKeyValue
from xsc.identity.keys import NETWORK_DEFAULT, KeyPair, network_id
from xsc.node.jobs.batch import read_lines
from xsc.node.jobs.results import batch_document, invoke_document, run_document
from xsc.node.system import SystemClock, SystemEntropy, ThreadExecutor
from xsc.terms.execution import Grant

T = TypeVar("T")


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
        self, *, fuel_steps: int, on: bytes | None, saved: Mapping[bytes, int] | None = None
    ) -> ComputeLease:
        """Refuse."""
        del fuel_steps, on, saved
        self._refuse()

    async def lease_providers(
        self, *, fuel_steps: int, count: int, exclude: frozenset[bytes]
    ) -> Sequence[ComputeLease]:
        """Refuse."""
        del fuel_steps, count, exclude
        self._refuse()

    def report(self, node: bytes, what: str) -> None:
        """Refuse."""
        del node, what
        self._refuse()

    async def spent(self, lease_id: bytes, fuel_steps: int, amount_micro: int) -> None:
        """Refuse."""
        del lease_id, fuel_steps, amount_micro
        self._refuse()

    def admit_compute(self, lease_id: bytes, customer: bytes, fuel_steps: int) -> int:
        """Refuse."""
        del lease_id, customer, fuel_steps
        self._refuse()

    def used_compute(self, lease_id: bytes, reserved_steps: int, used_steps: int) -> None:
        """Refuse."""
        del lease_id, reserved_steps, used_steps
        self._refuse()


class Asked(Protocol):
    """Limits that a user named, each None where it was not."""

    @property
    def fuel(self) -> int | None:
        """Units of fuel."""

    @property
    def memory_bytes(self) -> int | None:
        """Linear memory."""

    @property
    def timeout_ms(self) -> int | None:
        """Wall time."""


class Command(Protocol):
    """What a WASI program is given."""

    @property
    def arguments(self) -> Sequence[str]:
        """Its arguments."""

    @property
    def env(self) -> Mapping[str, str]:
        """Its variables."""

    @property
    def stdin(self) -> bytes:
        """Its standard input."""


def limits_from(asked: Asked) -> Limits:
    """Return limits, the defaults where none is asked for.

    Raises:
        ArgumentInvalid: one is out of its range.
    """
    return Limits(
        fuel=FUEL_DEFAULT if asked.fuel is None else asked.fuel,
        memory_bytes=MEMORY_BYTES_DEFAULT if asked.memory_bytes is None else asked.memory_bytes,
        timeout_ms=TIMEOUT_MS_DEFAULT if asked.timeout_ms is None else asked.timeout_ms,
    )


def _alone(work: Callable[[ComputeService], Awaitable[T]]) -> T:
    async def main() -> T:
        clock, entropy, log = SystemClock(), SystemEntropy(), SilentLog()
        executor = ThreadExecutor(1)
        nobody = _Nobody()
        service = ComputeService(
            key=KeyPair(entropy.token(32)),
            network=network_id(NETWORK_DEFAULT),
            clock=clock,
            entropy=entropy,
            executor=executor,
            caller=nobody,
            leases=nobody,
            book=nobody,
            sandbox=PoolSandbox(1, clock, log, compile_ms=COMPILE_MS_MAX),
            evidence=EvidenceBook(network_id(NETWORK_DEFAULT), MemoryKeyValue()),
            inputs=nobody,
            log=log,
        )
        try:
            await service.start()
            return await work(service)
        finally:
            await service.stop()
            executor.close()

    return asyncio.run(main())


def invoke_local(
    module: bytes,
    function: str,
    arguments: Sequence[str],
    limits: Asked,
    grants: Sequence[Grant] = (),
) -> dict[str, object]:
    """Call an exported function here; return the document of `POST /v1/jobs`.

    Raises:
        XscError: it cannot run; a limit that ended it is the document's `trap`.
    """
    asked = limits_from(limits)
    return invoke_document(
        _alone(
            lambda service: service.invoke(
                module, function, arguments, asked, local=True, grants=grants
            )
        )
    )


def run_local(
    module: bytes,
    command: Command,
    limits: Asked,
    *,
    grants: Sequence[Grant] = (),
    show: Callable[[int, bytes], None] | None = None,
) -> dict[str, object]:
    """Run a WASI command here; return the document of `POST /v1/jobs`.

    With `show`, that is given what the command writes, and to which stream; the document
    holds none of it then.

    Raises:
        XscError: as `invoke_local`.
    """
    asked = limits_from(limits)

    async def work(service: ComputeService) -> RunExecution:
        tape = None if show is None else Tape(SystemClock())
        running = asyncio.ensure_future(
            service.run(
                module,
                command.arguments,
                command.env,
                command.stdin,
                {},
                asked,
                local=True,
                grants=grants,
                tape=tape,
            )
        )
        if tape is not None and show is not None:
            running.add_done_callback(lambda _: tape.close())
            async for stream, piece in tape.pieces():
                show(stream, piece)
        return await running

    document = run_document(_alone(work))
    return document if show is None else {**document, "stdout": "", "stderr": ""}


def batch_local(
    module: bytes,
    function: str,
    lines: bytes,
    limits: Asked,
    *,
    item_fuel: int | None = None,
    grants: Sequence[Grant] = (),
) -> dict[str, object]:
    """Call a function for each line here; return the document of `POST /v1/jobs`.

    Raises:
        XscError: as `invoke_local`.
    """
    asked = limits_from(limits)
    calls = read_lines(lines)
    return batch_document(
        _alone(
            lambda service: service.invoke_batch(
                module, function, calls, asked, item_fuel=item_fuel, local=True, grants=grants
            )
        )
    )
