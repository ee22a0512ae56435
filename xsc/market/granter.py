"""Quotes to customers, and grants their requests for leases.

A request is granted when it comes: of the entitlement that its quote names, or of what is left for
all. A lease is on the disk before it is answered. The rules are in `quote`, `lease` and `room`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from xsc.base.encoding import Value
from xsc.base.errors import (
    CreditExceeded,
    LeaseExhausted,
    NoOffers,
    NotAllowed,
    RateLimited,
    RecordInvalid,
    XscError,
)
from xsc.base.fields import take_bytes, take_int, take_str
from xsc.base.ids import short
from xsc.base.limits import (
    LEASE_REQUESTS_A_CUSTOMER_MAX,
    LEASE_REQUESTS_MS,
    LEASES_A_CUSTOMER_MAX,
    LEASES_DONE_A_CUSTOMER_MAX,
    NONCE_BYTES,
    QUOTE_TTL_MS,
    REQUEST_WINDOW_MS,
)
from xsc.base.merkle import Part
from xsc.base.tally import Tally
from xsc.base.turns import Turns
from xsc.base.units import format_credits
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.market import lease as rules
from xsc.market import room
from xsc.market.buyer import KINDS
from xsc.market.headroom import Headroom
from xsc.market.lease_entry import LeaseEntry, ahead_micro, is_done
from xsc.market.market_node import MarketNode
from xsc.market.ports import EXHAUSTED
from xsc.market.quote import open_quote
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.quote import Kind, Quote
from xsc.terms.slot import Entitlement

LOWER: Final = "market.lower"


class LeaseGranter:
    """The provider's side of quotes and leases."""

    def __init__(self, node: MarketNode, headroom: Headroom) -> None:
        self._node = node
        self._clock = node.clock
        self._store = node.store
        self._ports = node.ports
        self._headroom = headroom
        self._asked = Tally(LEASE_REQUESTS_A_CUSTOMER_MAX, LEASE_REQUESTS_MS)
        self._lowered = Tally(LEASE_REQUESTS_A_CUSTOMER_MAX, LEASE_REQUESTS_MS)
        self._lowering = Turns[bytes]()
        """By lease: who fails to write puts back the level that it found, and no later one."""

    async def on_quote(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Quote the caller's price and what it may still reserve."""
        kind = _kind(header)
        ladder, tier = self._headroom.asked(kind), self._ports.standing.tier(caller)
        now_ms, (site, owner) = self._clock.now_ms(), self._node.settings.labels
        quote = Quote(
            provider=self._node.id,
            customer=caller,
            kind=kind,
            tier=tier,
            price_mutual=ladder.mutual,
            price_one_way=ladder.one_way,
            reserve=ladder.reserve,
            price=ladder.rung(tier),
            available=self._headroom.offered(kind, caller),
            valid_from_ms=now_ms,
            valid_until_ms=now_ms + QUOTE_TTL_MS,
            nonce=self._node.entropy.token(NONCE_BYTES),
            site=site,
            owner=owner,
        )
        return {"quote": sign(quote, self._node.key, self._node.network).raw}, ()

    async def on_lease(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Grant a request; the same request gets the same lease."""
        raw = take_bytes(header, "request")
        request = open_signed(raw, LeaseRequest, network=self._node.network, author=caller)
        known = self._store.get("provider", request.record.lease_id)
        if known is not None:
            if known.request_id != request.id:
                raise RecordInvalid("another lease has the same id")
            return {"lease": known.raw}, ()
        self._asked.count(caller, self._clock.monotonic_ms(), "leases")
        return {"lease": self._grant(request, self._granting(request.record, caller), raw)}, ()

    async def on_lower(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Give up room of a cleared lease that its customer does not use; it is no more billed.

        The answer says what is left, 0 where the lease is over.
        """
        entry = self._store.get("provider", take_bytes(header, "lease_id"))
        if entry is None or entry.terms.customer != caller or not entry.terms.cleared:
            raise NotAllowed("this customer has no such lease here")
        level, at_ms = take_int(header, "level"), take_int(header, "at_ms")
        if abs(at_ms - self._clock.now_ms()) > REQUEST_WINDOW_MS:
            raise RecordInvalid("the level is not given up now")
        self._lowered.count(caller, self._clock.monotonic_ms(), "lowered leases")
        async with self._lowering.of(entry.terms.lease_id):
            before = entry.use
            least = rules.least_level(entry.terms, before, self._clock.now_ms()) + entry.reserved
            use = rules.lowered(entry.terms, before, max(level, least), at_ms)
            if use.level == before.level:
                return {"level": use.level}, ()
            entry.use = use
            try:
                await self._store.sync(entry)
            except XscError:
                entry.use = replace(entry.use, level=before.level, given_back=before.given_back)
                raise
            return {"level": entry.use.level}, ()

    def _granting(self, request: LeaseRequest, caller: bytes) -> Entitlement | None:
        """Return what a request draws on, once it was checked; None for now.

        Raises:
            XscError: the first thing that is wrong with it.
        """
        own, now_ms, granting = self._node.id, self._clock.now_ms(), None
        if (request.provider, request.customer) != (own, caller):
            raise RecordInvalid("the request is between other nodes")
        if request.draw is not None:
            granting = self._headroom.entitled(request.kind, caller, request.draw)
            price = granting.price
            if request.kind == "compute" and request.end_ms > granting.window[1]:
                raise RecordInvalid("the lease ends after what was granted")
        else:
            price = open_quote(
                request.quote or b"",
                network=self._node.network,
                provider=own,
                customer=caller,
                kind=request.kind,
                now_ms=now_ms,
            ).record.price
        refusal = rules.check_request(request, price, now_ms, self._node.settings.storage_lease_ms)
        if refusal is not None:
            raise RecordInvalid(refusal)
        if self._store.get("customer", request.lease_id) is not None:
            raise RecordInvalid("the lease id was used before")
        self._check_renewal(request, now_ms)
        in_use = sum(
            not is_done(entry, now_ms) for entry in self._store.of("provider", request.customer)
        )
        # Each lease can be renewed, however many there are.
        if in_use >= LEASES_A_CUSTOMER_MAX * (1 if request.renews is None else 2):
            raise RateLimited(
                f"one customer may have {LEASES_A_CUSTOMER_MAX} leases that are in use",
                hint="give back what is not needed: `xsc market leases`",
            )
        return granting

    def _check_renewal(self, request: LeaseRequest, now_ms: int) -> None:
        if request.renews is None:
            return
        old = self._store.get("provider", request.renews)
        if old is None:
            raise LeaseExhausted("this customer has no such lease here")
        if self._node.id in self._ports.leaving():
            raise LeaseExhausted("this node is leaving the network and renews no lease")
        refusal = rules.check_renewal(request, old.terms, old.use, now_ms)
        if refusal is not None:
            raise RecordInvalid(refusal)

    def _grant(
        self, signed: Signed[LeaseRequest], granting: Entitlement | None, raw: bytes
    ) -> bytes:
        """Return the signed lease on a request that was checked, on the disk.

        Raises:
            CreditExceeded, SpaceExhausted, ComputeExhausted: nothing useful can be granted.
            NoOffers: it cannot be kept.
        """
        request, now_ms = signed.record, self._clock.now_ms()
        customer = request.customer
        credit = self._headroom.credit_left(customer)
        old = None if request.renews is None else self._store.get("provider", request.renews)
        if old is not None:
            # What may still come to be owed under it goes over with the bytes.
            credit += ahead_micro(old, now_ms)
        quantity = self._granted(request, granting, credit, old)
        if isinstance(quantity, str):
            if old is not None and quantity != "credit":
                raise LeaseExhausted("a clearing granted its room to others: its data has to move")
            raise _refusal(request.kind, quantity, credit)
        clearing = None if granting is None else granting.clearing
        lease = Lease(request=raw, quantity=quantity, granted_ms=now_ms, clearing=clearing)
        entry = self._store.entry_of(
            "provider", sign(lease, self._node.key, self._node.network).raw, now_ms
        )
        try:
            self._store.add([entry])
        except XscError as fault:
            self._node.log.error("market.lease_not_kept", fault=repr(fault))
            raise NoOffers("the provider could not grant the lease") from fault
        self._forget_done(customer, now_ms)
        self._node.log.info(
            "market.lease_granted",
            kind=request.kind,
            customer=short(customer),
            quantity=quantity,
            price=request.price,
        )
        return entry.raw

    def _granted(
        self,
        request: LeaseRequest,
        granting: Entitlement | None,
        credit: int,
        renewed: LeaseEntry | None,
    ) -> int | room.Reason:
        """Return the quantity that a request is granted, or why it is refused."""
        kind, customer = request.kind, request.customer
        if granting is not None:
            left = self._headroom.left_of(granting, renewed)
            return room.grant(request, credit, free=left, left=left)
        if kind == "compute":
            if (
                request.price
                and self._headroom.credit_left(customer) + self._headroom.calls_micro(customer) <= 0
            ):
                return "credit"
            return request.quantity if self._headroom.free("compute") else "capacity"
        if renewed is not None:
            left = self._headroom.renewable(renewed)
            return room.grant(request, credit, free=left, left=left)
        free_room = self._headroom.room()
        left = room.left(free_room, customer, self._ports.standing.tier(customer))
        return room.grant(request, credit, free=free_room.free, left=left)

    def _forget_done(self, customer: bytes, now_ms: int) -> None:
        """Forget a customer's oldest leases that are done, beyond LEASES_DONE_A_CUSTOMER_MAX."""
        done = [e for e in self._store.of("provider", customer) if is_done(e, now_ms)]
        for entry in done[: max(0, len(done) - LEASES_DONE_A_CUSTOMER_MAX)]:
            entry.use = rules.advance(entry.terms, entry.use, now_ms)
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
