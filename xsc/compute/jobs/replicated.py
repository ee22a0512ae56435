"""Has several providers run one order, and pays those that agree (`xsc.compute.jobs.quorum`).

All are asked at once, by orders that differ in provider and lease alone: nonce
and time are equal, and with them random bytes and clock. Who is silent is
replaced while there is no agreement and somebody is left. What contradicts is
kept as evidence before anything else follows from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from xsc.base.clock import Clock
from xsc.base.errors import NoAgreement, NoOffers, PeerError, PeerSilent, XscError
from xsc.base.ids import short
from xsc.base.limits import PROVIDERS_TRIED_MAX
from xsc.base.log import Log
from xsc.compute.jobs.evidence import EvidenceBook
from xsc.compute.jobs.quorum import Quorum, Tally, decide
from xsc.compute.jobs.receipts import billed_steps
from xsc.compute.ports import ComputeLease, ComputeLeases
from xsc.identity.envelope import Signed, sign
from xsc.identity.keys import KeyPair
from xsc.terms.dissent import Dissent
from xsc.terms.execution import ExecutionReceipt, Order


class Delivered(Protocol):
    """A verified receipt, and what came with it."""

    @property
    def receipt(self) -> Signed[ExecutionReceipt]:
        """The receipt."""


D = TypeVar("D", bound=Delivered)


@dataclass(frozen=True, slots=True)
class Verified:
    """Who ran an order beside whom."""

    quorum: Quorum
    agreeing: tuple[bytes, ...]
    dissenting: tuple[bytes, ...]
    uncounted: tuple[bytes, ...]
    """Those whose receipt nothing confirms or contradicts: by another engine, or out of time."""
    silent: tuple[bytes, ...]
    """Those that gave no receipt, or none that holds."""
    receipts: tuple[bytes, ...]
    """Of the agreeing ones, in their order."""
    evidence: tuple[bytes, ...]
    """Ids of what is kept against the dissenting ones."""


@dataclass(frozen=True, slots=True)
class Errand(Generic[D]):
    """What is to be run, and how one provider is asked."""

    steps: int
    """Most fuel steps of one run."""
    order: Callable[[ComputeLease, Order | None], Awaitable[Signed[Order]]]
    """Makes the order for a lease, like another one where that is given."""
    ask: Callable[[ComputeLease, Signed[Order]], Awaitable[D]]
    """Asks a provider, and checks what it delivers; pays nothing."""


class Panel:
    """See the module."""

    def __init__(
        self,
        *,
        key: KeyPair,
        network: bytes,
        clock: Clock,
        leases: ComputeLeases,
        evidence: EvidenceBook,
        log: Log,
    ) -> None:
        self._key = key
        self._network = network
        self._clock = clock
        self._leases = leases
        self._evidence = evidence
        self._log = log

    async def run(self, errand: Errand[D], quorum: Quorum) -> tuple[D, Verified]:
        """Return what the agreeing providers delivered, once they are paid.

        Raises:
            NoOffers: fewer providers than are asked for; nothing was run.
            NoAgreement: they contradict each other; nobody is paid.
            PeerSilent: too few gave a receipt that counts; nobody is paid.
        """
        asking = list(
            await self._leases.lease_providers(
                fuel_steps=errand.steps, count=quorum.of, exclude=frozenset()
            )
        )
        if len(asking) < quorum.of:
            raise NoOffers(
                f"{quorum.of} providers should run it, and only {len(asking)} can be had; "
                "nothing was run",
                hint="ask fewer with --verify, or add peers",
            )
        first: Order | None = None
        leases: dict[bytes, ComputeLease] = {}
        answers: dict[bytes, D] = {}
        faults: dict[bytes, XscError] = {}
        tally = Tally()
        for _ in range(PROVIDERS_TRIED_MAX):
            orders = []
            for lease in asking:
                leases[lease.node] = lease
                orders.append(await errand.order(lease, first))
                first = first or orders[0].record
            found = await asyncio.gather(*map(_answer(errand), asking, orders))
            for lease, answer in zip(asking, found, strict=True):
                if isinstance(answer, XscError):
                    faults[lease.node] = answer
                else:
                    answers[lease.node] = answer
            told = {node: done.receipt.record.outcome for node, done in answers.items()}
            tally = decide(told, quorum.need)
            missing = quorum.of - len(answers)
            if tally.agreeing or not missing:
                break
            try:
                asking = list(
                    await self._leases.lease_providers(
                        fuel_steps=errand.steps, count=missing, exclude=frozenset(leases)
                    )
                )
            except NoOffers:
                break
        kept = self._keep(tally, answers)
        self._report(tally, faults)
        assert first is not None
        for node, done in answers.items():
            # All orders have the same limits.
            await self._settle(leases[node], done, first, paid=node in tally.agreeing)
        if not tally.agreeing:
            raise _why(quorum, tally, list(answers), list(faults.values()))
        verified = Verified(
            quorum,
            tally.agreeing,
            tally.dissenting,
            tally.uncounted,
            tuple(faults),
            tuple(answers[node].receipt.raw for node in tally.agreeing),
            kept,
        )
        return answers[tally.agreeing[0]], verified

    def _keep(self, tally: Tally, answers: dict[bytes, D]) -> tuple[bytes, ...]:
        ids = []
        for first, second in tally.contradictions:
            record = Dissent(
                customer=self._key.node_id,
                first=answers[first].receipt.raw,
                second=answers[second].receipt.raw,
                found_ms=self._clock.now_ms(),
            )
            signed = sign(record, self._key, self._network)
            self._evidence.keep(signed)
            ids.append(signed.id)
        return tuple(ids)

    def _report(self, tally: Tally, faults: dict[bytes, XscError]) -> None:
        for node in tally.dissenting:
            self._leases.report(node, "dissent")
        for node, fault in faults.items():
            self._log.warning("provider gave no receipt", provider=node.hex(), reason=fault.code)
            if isinstance(fault, PeerError):
                self._leases.report(node, fault.code)

    async def _settle(self, lease: ComputeLease, done: D, order: Order, *, paid: bool) -> None:
        """Count what was used of the lease, and owe for it where it is paid."""
        record = done.receipt.record
        steps = billed_steps(order, record.outcome, record.observed)
        await self._leases.spent(lease.lease_id, steps, record.amount_micro if paid else 0)


def _answer(
    errand: Errand[D],
) -> Callable[[ComputeLease, Signed[Order]], Awaitable[D | XscError]]:
    async def ask(lease: ComputeLease, order: Signed[Order]) -> D | XscError:
        try:
            return await errand.ask(lease, order)
        except XscError as fault:
            return fault

    return ask


def _why(quorum: Quorum, tally: Tally, answered: list[bytes], faults: list[XscError]) -> XscError:
    if tally.contradictions:
        nodes = sorted({short(node) for pair in tally.contradictions for node in pair})
        return NoAgreement(
            f"{', '.join(nodes)} signed different outcomes, and no {quorum.need} agree; "
            "none is paid",
            hint="`xsc compute evidence` shows what they signed",
        )
    if not answered and not isinstance(faults[-1], PeerError):
        return faults[-1]
    return PeerSilent(
        f"{len(answered)} of {quorum.of} providers gave a receipt, and no {quorum.need} agree; "
        "none is paid",
        hint="try again later, or ask for fewer with --verify",
    )
