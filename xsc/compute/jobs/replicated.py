"""Runs one order on several providers, and pays those that agree (`xsc.compute.jobs.quorum`).

The orders differ in provider and lease only. Nonce and time are equal, and so are the random
bytes and the clock that the program sees. A silent provider is replaced while there is no
agreement and another provider is left. Contradicting receipts are stored as evidence before
anything else is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from xsc.base.errors import (
    ClockSkewed,
    NoAgreement,
    NoOffers,
    PeerError,
    PeerSilent,
    ReplayRefused,
    XscError,
)
from xsc.base.ids import short, to_text
from xsc.base.jobs import Verification
from xsc.base.limits import PROVIDERS_TRIED_MAX
from xsc.compute.jobs.customer import JobCustomer
from xsc.compute.jobs.evidence import EvidenceStore
from xsc.compute.jobs.quorum import Quorum, Votes, decide
from xsc.compute.jobs.receipts import billed_steps
from xsc.compute.jobs.replies import Delivered
from xsc.compute.jobs.tasks import Task
from xsc.compute.ports import ComputeLeases
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, sign
from xsc.terms.execution import Dissent, Order
from xsc.terms.lease import LeaseHandle


class ReplicatedRun:
    """Runs tasks on several providers at once."""

    def __init__(
        self,
        context: Context,
        *,
        leases: ComputeLeases,
        evidence: EvidenceStore,
        customer: JobCustomer,
    ) -> None:
        self._context = context
        self._leases = leases
        self._evidence = evidence
        self._customer = customer

    async def run(self, task: Task, quorum: Quorum) -> tuple[Delivered, Verification]:
        """Return what the agreeing providers delivered, once they are paid.

        Raises:
            NoOffers: fewer providers than are asked for; nothing was run.
            NoAgreement: they contradict each other; nobody is paid.
            PeerSilent: too few gave a receipt that counts; nobody is paid.
        """
        purchase, steps = self._customer.purchase(task), task.steps(compiling=True)
        leases: dict[bytes, LeaseHandle] = {}
        asking = await self._lease(steps, quorum.of, leases)
        if len(asking) < quorum.of:
            raise NoOffers(
                f"{quorum.of} providers should run it, and only {len(asking)} can be had; "
                "nothing was run",
                hint="ask fewer with --verify, or add peers",
            )
        first = await self._customer.order(task, asking[0])
        answers: dict[bytes, Delivered] = {}
        faults: dict[bytes, XscError] = {}
        tally = Votes()
        for _ in range(PROVIDERS_TRIED_MAX):
            orders = [self._like(first.record, lease) for lease in asking]
            found = await asyncio.gather(
                *(
                    self._customer.bought(purchase, lease, order, steps)
                    for lease, order in zip(asking, orders, strict=True)
                ),
                return_exceptions=True,
            )
            for lease, answer in zip(asking, found, strict=True):
                if isinstance(answer, XscError):
                    faults[lease.node] = answer
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    answers[lease.node] = answer
            told = {node: done.receipt.record.outcome for node, done in answers.items()}
            tally = decide(told, quorum.need)
            missing = quorum.of - len(answers)
            if tally.agreeing or not missing:
                break
            try:
                asking = await self._lease(steps, missing, leases)
            except NoOffers:
                break
        kept = self._keep(tally, answers)
        self._report(tally, faults)
        for node, done in answers.items():
            record = done.receipt.record
            used = billed_steps(first.record, record.outcome, record.observed)  # alike in limits
            await self._leases.spent(leases[node].lease_id, used if node in tally.agreeing else 0)
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
            self._leases.report(node, "compute", "dissent")
        for node, fault in faults.items():
            self._context.log.warning("compute.no_receipt", provider=node.hex(), reason=fault.code)
            # A clock that differs may be this node's own.
            if isinstance(fault, PeerError) and not isinstance(fault, ClockSkewed | ReplayRefused):
                self._leases.report(node, "compute", fault.code)

    async def _lease(
        self, steps: int, count: int, known: dict[bytes, LeaseHandle]
    ) -> Sequence[LeaseHandle]:
        """Return leases at so many providers that are not known yet, and note them."""
        found = await self._leases.lease_providers(
            fuel_steps=steps, count=count, exclude=frozenset(known)
        )
        known.update((lease.node, lease) for lease in found)
        return found

    def _like(self, order: Order, lease: LeaseHandle) -> Signed[Order]:
        """Return the same order for the provider of another lease."""
        made = order.model_copy(update={"provider": lease.node, "lease_id": lease.lease_id})
        return sign(made, self._context.key, self._context.network)


def _texts(ids: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(map(to_text, ids))


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
