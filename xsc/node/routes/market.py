"""The market: slots and needs, quotes of the peers, and the leases of both roles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from xsc.allocation.declaring import Statement
from xsc.api import market as api
from xsc.api.endpoint import Id, Nothing
from xsc.base.errors import ArgumentInvalid, NoOffers, NotFound
from xsc.base.ids import to_text
from xsc.base.limits import EPOCH_MS
from xsc.base.units import ceil_div
from xsc.market.hold import allowed, new_allowance
from xsc.market.pricing import quoted
from xsc.node.api.serving import Answers
from xsc.node.build import DAY_MS, Node, market_settings
from xsc.node.routes.objects import code_of
from xsc.terms.quote import UNITS, Kind
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot


def _both(commitment: Commitment) -> tuple[AvailabilitySlot | NeedSlot, ...]:
    return (*commitment.slots, *commitment.needs)


def _statement(body: api.Statement, find: Callable[[str], bytes]) -> Statement:
    """Return what a body states; `find` returns the node that a name or id means."""
    filters = None if body.filters is None else dict(body.filters)
    if filters is not None and "node" in filters:
        filters["node"] = to_text(find(filters["node"]))
    return Statement(
        quantity=body.quantity,
        quantity_min=body.quantity_min,
        from_ms=body.from_ms,
        to_ms=body.to_ms,
        every=body.every,
        price=body.price_micro,
        filters=None if filters is None else tuple(filters.items()),
        location=body.location,
        rule=body.rule,
    )


async def quotes(node: Node, _: Nothing) -> api.Quotes:
    """Ask all peers for their prices."""
    return api.Quotes(
        quotes=[
            api.Quote(
                node=to_text(quote.provider),
                name=node.name_of(quote.provider),
                kind=kind,
                tier=quote.tier,
                price_micro=quote.price,
                price_mutual_micro=quote.price_mutual,
                price_one_way_micro=quote.price_one_way,
                reserve_micro=quote.reserve,
                available=quote.available,
                unit=unit,
                valid_until_ms=quote.valid_until_ms,
            )
            for kind, unit in UNITS.items()
            for quote in await node.market.quotes.offers(kind)
        ]
    )


def begins_with(text: str, ids: Iterable[bytes], what: str, hint: str) -> bytes:
    """Return the one id that begins so.

    Raises:
        NotFound: there is none, or more than one; names `what` they are of.
    """
    found = [each for each in ids if to_text(each).startswith(text)]
    if len(found) != 1:
        count = "more than one" if found else "no"
        raise NotFound(f"{count} {what} has an id that begins with '{text}'", hint=hint)
    return found[0]


def _slot_of(node: Node, text: str) -> bytes:
    ids = (slot.slot_id for slot in _both(node.commitments.own))
    return begins_with(text, ids, "own offer or need", "`xsc market slots` lists them")


async def slots(node: Node, _: Nothing) -> api.Slots:
    """List offers and needs."""
    return api.Slots(
        slots=[
            api.Slot(
                id=to_text(slot.slot_id),
                role="offer" if isinstance(slot, AvailabilitySlot) else "need",
                node=to_text(owner),
                name=node.name_of(owner),
                kind=slot.kind,
                quantity=slot.quantity,
                price=slot.reserve if isinstance(slot, AvailabilitySlot) else slot.price_max,
                windows=list(slot.windows),
            )
            for owner in (node.key.node_id, *sorted(node.peers.roster.peers()))
            for slot in _both(node.commitments.of(owner))
        ]
    )


async def _prices(node: Node, kind: Kind) -> list[int]:
    """Return what peers ask that this node would pay.

    Raises:
        NoOffers: none does.
    """
    most = market_settings(node.config).price_max(kind)
    prices = [quote.price for quote in await node.market.quotes.offers(kind)]
    found = [price for price in prices if price <= most]
    if not found:
        raise NoOffers(
            f"no peer offers {kind} at a price that this node pays",
            hint="raise storage_price_max_gib_hour or compute_price_max_gfuel, or add peers",
        )
    return found


async def estimate(node: Node, asked: api.Estimate) -> api.Cost:
    """Say what storage or fuel would cost at the prices quoted now."""
    if not asked.size_bytes and not asked.fuel:
        raise ArgumentInvalid("nothing is to be priced", hint="say a size, or how much fuel")
    k, m = code_of(asked.code)
    pricing = quoted(
        await _prices(node, "storage") if asked.size_bytes else (),
        await _prices(node, "compute") if asked.fuel else (),
        k + m,
    )
    coded_bytes = ceil_div(asked.size_bytes * (k + m), k)
    hours = ceil_div(asked.duration_ms, EPOCH_MS)
    storage_micro = pricing.storage_price(coded_bytes, hours)
    compute_micro = pricing.compute_price(asked.fuel, asked.memory_bytes)
    return api.Cost(
        coded_bytes=coded_bytes,
        code=f"{k},{m}",
        hours=hours,
        storage_price_micro=pricing.unit_price("storage"),
        storage_micro=storage_micro,
        compute_price_micro=pricing.unit_price("compute"),
        compute_micro=compute_micro,
        total_micro=pricing.total_price(storage_micro, compute_micro),
    )


def _allows(node: Node, slot_id: bytes) -> tuple[int, int] | None:
    """Return the micro-credits that an own need allows within a day and a month from now."""
    now_ms = node.clock.now_ms()
    for need in node.commitments.own.needs:
        if need.slot_id == slot_id:
            new = new_allowance(need, now_ms)
            day, month = (
                allowed(new, need, now_ms + length).allowed_micro
                for length in (DAY_MS, api.MONTH_MS)
            )
            return day, month
    return None


async def declare(node: Node, asked: api.Declare) -> api.Declared:
    """Make an offer or a need."""
    said = _statement(asked, node.find)
    if asked.role == "offer":
        slot_id = await node.commitments.offer(asked.kind, said)
    elif asked.price_micro is None:
        most = node.config.storage_price_max_micro
        if asked.kind == "compute":
            most = node.config.compute_price_max_micro
        elif asked.kind == "egress":
            raise ArgumentInvalid(
                "egress has no price of its own", hint="say what it may cost: --price"
            )
        slot_id = await node.commitments.need(asked.kind, replace(said, price=most))
    else:
        slot_id = await node.commitments.need(asked.kind, said)
    day, month = _allows(node, slot_id) or (None, None)
    return api.Declared(id=to_text(slot_id), day_micro=day, month_micro=month)


async def edit(node: Node, asked: api.Edit) -> Id:
    """Change an own offer or need."""
    slot_id = _slot_of(node, asked.id)
    await node.commitments.edit(slot_id, _statement(asked, node.find))
    return Id(id=to_text(slot_id))


async def withdraw(node: Node, asked: Id) -> Id:
    """Withdraw an own offer or need."""
    slot_id = _slot_of(node, asked.id)
    await node.commitments.withdraw(slot_id)
    return Id(id=to_text(slot_id))


async def leases(node: Node, _: Nothing) -> api.Leases:
    """List leases in both roles."""
    return api.Leases(
        leases=[
            api.Lease(
                lease_id=to_text(lease.lease_id),
                role=lease.role,
                peer=to_text(lease.peer),
                name=node.name_of(lease.peer),
                kind=lease.kind,
                state=lease.status,
                quantity=lease.quantity,
                held_bytes=lease.held_bytes,
                used=lease.used,
                price_micro=lease.price,
                due_micro=lease.due_micro,
                settled_micro=lease.settled_micro,
                start_ms=lease.start_ms,
                end_ms=lease.end_ms,
                renewals=lease.renewals,
            )
            for lease in node.market.leases()
        ]
    )


async def lease(node: Node, asked: api.LeaseId) -> bytes:
    """Return a signed lease, its newest renewal or its denial."""
    known = {row.lease_id for row in node.market.leases()}
    lease_id = begins_with(asked.id, known, "lease", "`xsc market leases` lists them")
    if asked.denial:
        return node.market.denial_record(lease_id)
    return (node.market.renewal_record if asked.renewal else node.market.lease_record)(lease_id)


ANSWERS: Answers = {
    api.SLOTS: slots,
    api.DECLARE: declare,
    api.EDIT: edit,
    api.WITHDRAW: withdraw,
    api.QUOTES: quotes,
    api.ESTIMATE: estimate,
    api.LEASES: leases,
    api.LEASE: lease,
}
