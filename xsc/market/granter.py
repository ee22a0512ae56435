"""Quotes to customers, and grants their requests for leases.

Requests of one window are gathered and cleared together. A lease is on the disk before
it is answered. The rules are in `quote`, `lease`, `clearing` and `room`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from xsc.base.encoding import Value
from xsc.base.errors import (
    CreditExceeded,
    NoOffers,
    RateLimited,
    RecordInvalid,
    XscError,
)
from xsc.base.fields import take_bytes, take_str
from xsc.base.gather import Gather
from xsc.base.ids import short
from xsc.base.limits import (
    CLEARING_WINDOW_MS,
    LEASE_REQUESTS_WAITING_A_CUSTOMER_MAX,
    LEASE_REQUESTS_WAITING_MAX,
    LEASES_A_CUSTOMER_MAX,
    LEASES_DONE_A_CUSTOMER_MAX,
    NONCE_BYTES,
)
from xsc.base.merkle import Part
from xsc.base.units import format_credits
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.market import lease as rules
from xsc.market import room
from xsc.market.buyer import KINDS
from xsc.market.clearing import Ask, by_lot
from xsc.market.credit_limits import CreditLimits
from xsc.market.headroom import Headroom
from xsc.market.lease_entry import is_done
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import EXHAUSTED, MarketPorts, MarketSettings
from xsc.market.quote import make_quote, open_quote
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.quote import Kind


@dataclass(frozen=True, slots=True)
class _PendingRequest:
    """A lease request in the present window."""

    request: Signed[LeaseRequest]
    raw: bytes


class LeaseGranter:
    """The provider's side of quotes and leases."""

    def __init__(
        self,
        context: Context,
        ports: MarketPorts,
        settings: MarketSettings,
        store: LeaseStore,
        *,
        limits: CreditLimits,
        headroom: Headroom,
    ) -> None:
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._entropy = context.entropy
        self._log = context.log
        self._store = store
        self._credit = ports.credit
        self._standing = ports.standing
        self._limits = limits
        self._headroom = headroom
        self._divide = ports.divide
        self._labels = settings.labels
        self._waiting: dict[bytes, tuple[_PendingRequest, asyncio.Future[bytes]]] = {}
        """The requests of the present windows and their leases, by lease."""
        self._windows: Gather[Kind, _PendingRequest, bytes] = Gather(
            self._clear_window,
            pause=lambda: self._clock.sleep_ms(CLEARING_WINDOW_MS),
            spawn=self._open_window,
            stopped=lambda: NoOffers("the provider stopped before it granted a lease"),
        )
        self._window_tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End the windows that are open."""
        for task in self._window_tasks:
            task.cancel()
        await asyncio.gather(*self._window_tasks, return_exceptions=True)

    async def on_quote(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Quote the caller's price and what it may still reserve."""
        kind = _kind(header)
        site, owner = self._labels
        quote = make_quote(
            provider=self._key.node_id,
            customer=caller,
            kind=kind,
            tier=self._standing.tier(caller),
            ladder=self._headroom.pricing().ladder(kind),
            available=self._headroom.offered(kind, caller),
            now_ms=self._clock.now_ms(),
            nonce=self._entropy.token(NONCE_BYTES),
            site=site,
            owner=owner,
        )
        return {"quote": sign(quote, self._key, self._network).raw}, ()

    async def on_lease(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Grant a request at the end of its window; the same request gets the same lease."""
        raw = take_bytes(header, "request")
        request = open_signed(raw, LeaseRequest, network=self._network, author=caller)
        kind, lease_id = request.record.kind, request.record.lease_id
        known = self._store.get("provider", lease_id)
        if known is not None:
            if known.request_id != request.id:
                raise RecordInvalid("another lease has the same id")
            return {"lease": known.raw}, ()
        if lease_id in self._waiting:
            waiting, granted = self._waiting[lease_id]
            if waiting.request.id != request.id:
                raise RecordInvalid("another request has the same lease id")
        else:
            self._check_request(request.record)
            waiting = _PendingRequest(request, raw)
            granted = self._windows.submit(kind, waiting)
            granted.add_done_callback(lambda _: self._waiting.pop(lease_id))
            self._waiting[lease_id] = waiting, granted
        # Shielded: a caller that hangs up must not cancel what another waits for.
        return {"lease": await asyncio.shield(granted)}, ()

    def _check_request(self, request: LeaseRequest) -> None:
        now_ms = self._clock.now_ms()
        quote = open_quote(
            request.quote,
            network=self._network,
            provider=self._key.node_id,
            customer=request.customer,
            kind=request.kind,
            now_ms=now_ms,
        )
        if (refusal := rules.check_request(request, quote.record, now_ms)) is not None:
            raise RecordInvalid(refusal)
        used = self._store.get("customer", request.lease_id) is not None
        if used or self._credit.settled(request.lease_id) > 0:
            # What was settled under it before would pay for the new lease as well.
            raise RecordInvalid("the lease id was used before")
        waiting = [item.request.record for item, _ in self._waiting.values()]
        of_customer = sum(each.customer == request.customer for each in waiting)
        if (
            sum(each.kind == request.kind for each in waiting) >= LEASE_REQUESTS_WAITING_MAX
            or of_customer >= LEASE_REQUESTS_WAITING_A_CUSTOMER_MAX
        ):
            raise RateLimited("too many leases are asked for at this moment")
        of_customer += sum(
            not is_done(entry, now_ms) for entry in self._store.of("provider", request.customer)
        )
        if of_customer >= LEASES_A_CUSTOMER_MAX:
            raise RateLimited(
                f"one customer may have {LEASES_A_CUSTOMER_MAX} leases that are not settled",
                hint="settle what is owed under those that are over: `xsc market leases`",
            )

    def _open_window(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._window_tasks.add(task)
        task.add_done_callback(self._window_ended)
        return task

    def _window_ended(self, task: asyncio.Task[None]) -> None:
        self._window_tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._log.error("market.clearing_failed", fault=repr(fault))

    async def _clear_window(
        self, kind: Kind, waiting: Sequence[_PendingRequest]
    ) -> Sequence[bytes | XscError]:
        try:
            outcome = self._clear(kind, waiting)
        except XscError as fault:
            self._log.error("market.clearing_failed", fault=repr(fault))
            raise NoOffers("the provider could not grant leases") from fault
        return [outcome[item.request.record.lease_id] for item in waiting]

    def _clear(
        self, kind: Kind, waiting: Sequence[_PendingRequest]
    ) -> dict[bytes, bytes | XscError]:
        """Return the signed lease, or why there is none, by lease id."""
        now_ms = self._clock.now_ms()
        salt = self._entropy.token(NONCE_BYTES)
        asks = by_lot([self._ask_of(item.request.record) for item in waiting], salt)
        customers = {ask.customer for ask in asks}
        credit = {
            # Customers that share their credit and ask at the same time divide it.
            customer: self._limits.left(customer)
            // len(customers.intersection(self._credit.shares_with(customer)))
            for customer in customers
        }
        plan = room.plan_window(asks, credit, self._headroom.room(kind), self._divide, salt)
        outcome: dict[bytes, bytes | XscError] = {
            ask.lease_id: _refusal(kind, plan.refused[ask.lease_id], credit[ask.customer])
            for ask in asks
            if ask.lease_id in plan.refused
        }
        made = []
        for item in waiting:
            quantity = plan.grants.get(item.request.record.lease_id)
            if quantity is None:
                continue
            granted = sign(
                Lease(request=item.raw, quantity=quantity, granted_ms=now_ms),
                self._key,
                self._network,
            )
            made.append(self._store.entry_of("provider", granted.raw, now_ms))
            outcome[item.request.record.lease_id] = granted.raw
        if made:
            self._store.add(made)
        for customer in customers:
            self._forget_done(customer, now_ms)
        for entry in made:
            self._log.info(
                "market.lease_granted",
                kind=kind,
                customer=short(entry.terms.customer),
                quantity=entry.terms.quantity,
                price=entry.terms.price,
            )
        return outcome

    def _ask_of(self, request: LeaseRequest) -> Ask:
        tier = self._standing.tier(request.customer)
        weight = 1
        if tier == "mutual":
            weight = self._standing.mutual_ppm(request.customer)
        elif tier == "one_way":
            weight = self._standing.weight_ppm(request.customer)
        return Ask(
            request.lease_id,
            request.customer,
            tier,
            weight,
            request.quantity,
            request.quantity_min,
            request.price,
        )

    def _forget_done(self, customer: bytes, now_ms: int) -> None:
        """Forget a customer's oldest leases that are done, beyond LEASES_DONE_A_CUSTOMER_MAX."""
        done = [e for e in self._store.of("provider", customer) if is_done(e, now_ms)]
        for entry in done[: max(0, len(done) - LEASES_DONE_A_CUSTOMER_MAX)]:
            self._store.forget(entry)


def _kind(header: dict[str, Value]) -> Kind:
    text = take_str(header, "kind")
    for kind in KINDS:
        if text == kind:
            return kind
    raise RecordInvalid("the field 'kind' must be 'storage' or 'compute'")


def _refusal(kind: Kind, reason: room.Reason, credit_left_micro: int) -> XscError:
    """Return why a request was not granted, as its customer is told."""
    if reason == "credit":
        return CreditExceeded(
            f"the lease could come to cost more than {format_credits(max(0, credit_left_micro))}, "
            "which is what this node may still owe there, its leases counted",
            hint="settle what is owed, or ask the provider for a higher limit",
        )
    if reason == "share":
        return EXHAUSTED[kind](
            f"the lease would pass the share of free {kind} that this node may reserve there",
            hint="use what is reserved, ask for less at a time, or ask the provider's operator "
            "to recognise this node: `xsc peer recognise`",
        )
    return EXHAUSTED[kind](f"too little {kind} is left for this lease")
