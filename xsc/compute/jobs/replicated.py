"""Has several providers run one order, and pays those that agree (`xsc.compute.jobs.quorum`).

All are asked at once, by orders that differ in provider and lease alone: nonce
and time are equal, and with them random bytes and clock. Who is silent is
replaced while there is no agreement and somebody is left. What contradicts is
kept as evidence before anything else follows from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from xsc.base.errors import NoAgreement, NoOffers, PeerError, PeerSilent, XscError
from xsc.base.ids import short, to_text
from xsc.base.jobs import Verification
from xsc.base.limits import PROVIDERS_TRIED_MAX
from xsc.compute.jobs.evidence import EvidenceBook
from xsc.compute.jobs.quorum import Quorum, Tally, decide
from xsc.compute.jobs.receipts import billed_steps
from xsc.compute.jobs.replies import Delivered
from xsc.compute.ports import ComputeLease, ComputeLeases
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, sign
from xsc.terms.dissent import Dissent
from xsc.terms.execution import Order


@dataclass(frozen=True, slots=True)
class Errand:
    """What is to be run, and how one provider is asked."""

    steps: int
    """Most fuel steps of one run."""
    order: Callable[[ComputeLease, Order | None], Awaitable[Signed[Order]]]
    """Makes the order for a lease, like another one where that is given."""
    ask: Callable[[ComputeLease, Signed[Order]], Awaitable[Delivered]]
    """Asks a provider, and checks what it delivers; pays nothing."""


class Panel:
    """See the module."""

    def __init__(self, context: Context, *, leases: ComputeLeases, evidence: EvidenceBook) -> None:
        self._context = context
        self._leases = leases
        self._evidence = evidence

    async def run(self, errand: Errand, quorum: Quorum) -> tuple[Delivered, Verification]:
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
        answers: dict[bytes, Delivered] = {}
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
        return answers[tally.agreeing[0]], Verification(
            need=quorum.need,
            of=quorum.of,
            agreeing=_texts(tally.agreeing),
            dissenting=_texts(tally.dissenting),
            uncounted=_texts(tally.uncounted),
            silent=_texts(faults),
            receipts=tuple(answers[node].receipt.raw for node in tally.agreeing),
            evidence=_texts(kept),
        )

    def _keep(self, tally: Tally, answers: dict[bytes, Delivered]) -> tuple[bytes, ...]:
        ids = []
        for first, second in tally.contradictions:
            record = Dissent(
                customer=self._context.key.node_id,
                first=answers[first].receipt.raw,
                second=answers[second].receipt.raw,
                found_ms=self._context.clock.now_ms(),
            )
            signed = sign(record, self._context.key, self._context.network)
            self._evidence.keep(signed)
            ids.append(signed.id)
        return tuple(ids)

    def _report(self, tally: Tally, faults: dict[bytes, XscError]) -> None:
        for node in tally.dissenting:
            self._leases.report(node, "dissent")
        for node, fault in faults.items():
            self._context.log.warning("compute.no_receipt", provider=node.hex(), reason=fault.code)
            if isinstance(fault, PeerError):
                self._leases.report(node, fault.code)

    async def _settle(
        self, lease: ComputeLease, done: Delivered, order: Order, *, paid: bool
    ) -> None:
        """Count what was used of the lease, and owe for it where it is paid."""
        record = done.receipt.record
        steps = billed_steps(order, record.outcome, record.observed)
        await self._leases.spent(lease.lease_id, steps, record.amount_micro if paid else 0)


def _texts(ids: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(map(to_text, ids))


def _answer(
    errand: Errand,
) -> Callable[[ComputeLease, Signed[Order]], Awaitable[Delivered | XscError]]:
    async def ask(lease: ComputeLease, order: Signed[Order]) -> Delivered | XscError:
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
