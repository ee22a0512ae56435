"""Runs one order on several providers, and pays those that agree (`xsc.compute.jobs.quorum`).

The orders differ in provider and lease only. Nonce and time are equal, and so are the random
bytes and the clock that the program sees. A silent provider is replaced while there is no
agreement and another provider is left. Contradicting receipts are stored as evidence before
anything else is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from xsc.base.errors import NoAgreement, NoOffers, PeerError, PeerSilent, XscError
from xsc.base.ids import short, to_text
from xsc.base.jobs import Verification
from xsc.base.limits import PROVIDERS_TRIED_MAX
from xsc.compute.jobs.evidence import EvidenceStore
from xsc.compute.jobs.quorum import Quorum, Votes, decide
from xsc.compute.jobs.receipts import billed_steps
from xsc.compute.jobs.replies import Delivered
from xsc.compute.ports import ComputeLease, ComputeLeases
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, sign
from xsc.terms.execution import Dissent, Order


@dataclass(frozen=True, slots=True)
class ReplicatedTask:
    """How to order and fetch one replica of a task."""

    steps: int
    """Most fuel steps of one run."""
    order: Callable[[ComputeLease, Order | None], Awaitable[Signed[Order]]]
    """Returns the order for a lease: a copy of another order where one is given."""
    ask: Callable[[ComputeLease, Signed[Order]], Awaitable[Delivered]]
    """Returns what a provider delivers, checked; pays nothing."""


class ReplicatedRun:
    """Runs tasks on several providers at once."""

    def __init__(self, context: Context, *, leases: ComputeLeases, evidence: EvidenceStore) -> None:
        self._context = context
        self._leases = leases
        self._evidence = evidence

    async def run(self, task: ReplicatedTask, quorum: Quorum) -> tuple[Delivered, Verification]:
        """Return what the agreeing providers delivered, once they are paid.

        Raises:
            NoOffers: fewer providers than are asked for; nothing was run.
            NoAgreement: they contradict each other; nobody is paid.
            PeerSilent: too few gave a receipt that counts; nobody is paid.
        """
        asking = list(
            await self._leases.lease_providers(
                fuel_steps=task.steps, count=quorum.of, exclude=frozenset()
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
        tally = Votes()
        for _ in range(PROVIDERS_TRIED_MAX):
            orders = []
            for lease in asking:
                leases[lease.node] = lease
                orders.append(await task.order(lease, first))
                first = first or orders[0].record
            found = await asyncio.gather(*map(_answer(task), asking, orders))
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
                        fuel_steps=task.steps, count=missing, exclude=frozenset(leases)
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

    def _keep(self, tally: Votes, answers: dict[bytes, Delivered]) -> tuple[bytes, ...]:
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

    def _report(self, tally: Votes, faults: dict[bytes, XscError]) -> None:
        for node in tally.dissenting:
            self._leases.report(node, "dissent")
        for node, fault in faults.items():
            self._context.log.warning("compute.no_receipt", provider=node.hex(), reason=fault.code)
            if isinstance(fault, PeerError):
                self._leases.report(node, fault.code)

    async def _settle(
        self, lease: ComputeLease, done: Delivered, order: Order, *, paid: bool
    ) -> None:
        """Count the steps used under the lease, and the amount owed where it is paid."""
        record = done.receipt.record
        steps = billed_steps(order, record.outcome, record.observed)
        await self._leases.spent(lease.lease_id, steps if paid else 0)


def _texts(ids: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(map(to_text, ids))


def _answer(
    task: ReplicatedTask,
) -> Callable[[ComputeLease, Signed[Order]], Awaitable[Delivered | XscError]]:
    async def ask(lease: ComputeLease, order: Signed[Order]) -> Delivered | XscError:
        try:
            return await task.ask(lease, order)
        except XscError as fault:
            return fault

    return ask


def _why(quorum: Quorum, tally: Votes, answered: list[bytes], faults: list[XscError]) -> XscError:
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
