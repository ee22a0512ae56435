"""Allocation endpoints: what was cleared and granted, why, and the clearing records themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiohttp import web

from xsc.allocation.convergence import network_has_converged
from xsc.allocation.explaining import Explained, Explanation
from xsc.allocation.queries import (
    Participant,
    denominator_of,
    groups,
)
from xsc.base.errors import NotFound
from xsc.base.ids import to_text
from xsc.base.limits import ENTITLEMENT_LAPSE_MS
from xsc.market.lease_entry import LeaseEntry
from xsc.node.api.app import reply
from xsc.node.build import Node
from xsc.terms.clearing import (
    LineValue,
    SlotAllocationRecord,
    SlotDenominators,
    TwoTierAllocationState,
)
from xsc.terms.quote import Draw, Tier
from xsc.terms.slot import Entitlement, EntitlementKey


def _stage(tier: Tier, quantity: int, price: int) -> dict[str, object]:
    return {"tier": tier, "quantity": quantity, "price": price}


def _slots(
    node: Node,
    provider: bytes,
    state: TwoTierAllocationState,
    drawn: Mapping[EntitlementKey, int],
) -> list[dict[str, object]]:
    """Return the windows of a provider's slots, with what is known here to be drawn of them."""

    def allocation(
        slot: SlotDenominators, line: SlotAllocationRecord, stages: Sequence[LineValue]
    ) -> dict[str, object]:
        lapses_ms = max(line.granted_ms, slot.window[0]) + ENTITLEMENT_LAPSE_MS
        return {
            "node": to_text(line.customer),
            "name": node.name_of(line.customer),
            "tier": line.tier,
            "need": to_text(line.need),
            "quantity": line.quantity,
            "price": line.price,
            "stages": [_stage(*each[1:]) for each in stages if each[0] == line.need],
            "drawn": drawn.get(
                EntitlementKey(provider, slot.slot, slot.window[0], line.customer, line.need), 0
            ),
            "granted_ms": line.granted_ms,
            "until_ms": min(slot.window[1], lapses_ms),
        }

    rows: list[dict[str, object]] = []
    for slot in state.slot_denominators:
        lines = [
            line
            for line in state.slot_allocations
            if (line.slot, line.window) == (slot.slot, slot.window)
        ]
        stages = node.allocator.stages(provider, slot.clearing)
        granted = {(line.customer, line.need) for line in lines}
        rows.append(
            {
                "slot": to_text(slot.slot),
                "node": to_text(provider),
                "name": node.name_of(provider),
                "kind": slot.kind,
                "rule": slot.rule,
                "window": list(slot.window),
                "clearing": to_text(slot.clearing),
                "capacity": slot.capacity,
                "tiers": [
                    {
                        "tier": line.tier,
                        "capacity": line.capacity,
                        "given": line.given,
                        "denominator": denominator_of(line.denominator),
                    }
                    for line in slot.tiers
                ],
                "allocations": [
                    allocation(slot, line, stages.get(line.customer, ())) for line in lines
                ],
                "pinned": [
                    {
                        "node": to_text(each.customer),
                        "name": node.name_of(each.customer),
                        "need": to_text(each.need),
                        "quantity": quantity,
                    }
                    for each, quantity in sorted(drawn.items())
                    if each[:3] == (provider, slot.slot, slot.window[0])
                    and quantity
                    and (each.customer, each.need) not in granted
                ],
            }
        )
    return rows


def _entitlement(each: Entitlement, drawn: int, name: str) -> dict[str, object]:
    return {
        "node": to_text(each.provider),
        "name": name,
        "slot": to_text(each.slot),
        "need": to_text(each.need),
        "kind": each.kind,
        "tier": each.tier,
        "quantity": each.quantity,
        "drawn": drawn,
        "price": each.price,
        "window": list(each.window),
        "granted_ms": each.granted_ms,
        "until_ms": each.until_ms,
        "clearing": to_text(each.clearing),
    }


def _kept(entry: LeaseEntry, draw: Draw, drawn: int, name: str) -> dict[str, object]:
    """Return what a lease has drawn of what is granted no more, or by whom does not answer."""
    return {
        "node": to_text(entry.terms.provider),
        "name": name,
        "slot": to_text(draw.slot),
        "need": to_text(draw.need),
        "kind": entry.terms.kind,
        "tier": None,
        "quantity": 0,
        "drawn": drawn,
        "price": entry.terms.price,
        "window": [draw.start_ms, draw.end_ms],
        "granted_ms": None,
        "until_ms": draw.end_ms,
        "clearing": None,
    }


def routes(node: Node) -> list[web.RouteDef]:
    """Return the allocation endpoints of a node."""

    def known() -> dict[bytes, Participant]:
        states = node.allocator.states()
        return {
            peer: Participant(
                node.commitments.of(peer),
                node.allocation.weight_ppm(peer),
                node.allocation.their_weight_ppm(peer),
                node.health.is_up(peer),
                states.get(peer),
            )
            for peer in node.peers.roster.peers()
        }

    def clearing_of(text: str) -> bytes:
        """Return the id of the kept clearing that begins so.

        Raises:
            NotFound: there is none, or more than one.
        """
        ids = [
            each
            for each, provider in node.allocator.named().items()
            if provider == node.key.node_id and to_text(each).startswith(text)
        ]
        if len(ids) != 1:
            raise NotFound(
                f"{'no' if not ids else 'more than one'} clearing has an id that begins with "
                f"'{text}'",
                hint="`xsc market clearings` lists them",
            )
        return ids[0]

    async def show(_: web.Request) -> web.Response:
        own, states = node.allocator.state, node.allocator.states()
        drawn = node.drawn_quanta()
        rows = _slots(node, node.key.node_id, own, drawn)
        for provider, state in sorted(states.items()):
            rows += _slots(node, provider, state, drawn)
        return reply(
            {
                "slots": rows,
                "converged": own.converged,
                "network_converged": network_has_converged(
                    {node.key.node_id: own.converged}
                    | {
                        peer: each.state.converged
                        for peer, each in known().items()
                        if each.state is not None and each.is_fresh
                    }
                ),
                "damping_factor_ppm": own.damping_factor,
                "damping_history": [list(item) for item in own.damping_history],
                "mr_values": {to_text(peer): ppm for peer, ppm in own.mr_values},
                "recipient_totals": {to_text(peer): sum_ for peer, sum_ in own.recipient_totals},
                "program_fault": node.allocator.program_fault,
            }
        )

    async def all_groups(_: web.Request) -> web.Response:
        found = groups(known())
        if node.allocator.state.converged:
            found["has_system_converged"].append(node.key.node_id)
        named = {each for nodes in found.values() for each in nodes}
        return reply(
            {
                "groups": {
                    name: [to_text(each) for each in nodes] for name, nodes in found.items()
                },
                "names": {to_text(each): node.name_of(each) for each in sorted(named)},
            }
        )

    def entitlements(*, only_drawn: bool) -> web.Response:
        drawn = node.drawn_quanta()
        rows: list[dict[str, object]] = []
        totals: dict[str, int] = {}
        for each in node.allocator.received():
            taken = drawn.get(each.key, 0)
            if taken or not only_drawn:
                rows.append(_entitlement(each, taken, node.name_of(each.provider)))
                need = to_text(each.need)
                totals[need] = totals.get(need, 0) + (taken if only_drawn else each.quantity)
        if only_drawn:
            # What was drawn stays, whatever is granted now and whoever answers.
            seen = {each.key for each in node.allocator.received()}
            for entry in node.market.store.all("customer"):
                key = entry.drawn_key
                if entry.draw is not None and key is not None and key not in seen:
                    seen.add(key)
                    if taken := drawn.get(key, 0):
                        name, need = node.name_of(entry.terms.provider), to_text(entry.draw.need)
                        rows.append(_kept(entry, entry.draw, taken, name))
                        totals[need] = totals.get(need, 0) + taken
        return reply({"allocations": rows, "totals": totals})

    async def expected(_: web.Request) -> web.Response:
        return entitlements(only_drawn=False)

    async def received(_: web.Request) -> web.Response:
        return entitlements(only_drawn=True)

    def explained(each: Explained) -> dict[str, object]:
        pair, why = each.pair, each.why
        provider, customer = pair.provider.node, pair.customer.node
        return {
            "clearing": None if each.clearing is None else to_text(each.clearing),
            "provider": to_text(provider),
            "provider_name": node.name_of(provider),
            "slot": to_text(pair.slot.slot_id),
            "window": None if each.window is None else list(each.window),
            "node": to_text(customer),
            "name": node.name_of(customer),
            "kind": pair.need.kind,
            "need": to_text(pair.need.slot_id),
            "tier": pair.customer.tier if why is None else why.tier,
            "weight": None if why is None else why.weight,
            "eligible": None if why is None else why.eligible,
            "granted": None if why is None else why.quantity,
            "stages": []
            if why is None
            else [_stage(line.tier, line.quantity, line.price) for line in why.lines],
            "price": None if why is None else max((x.price for x in why.lines), default=None),
            "because": each.said.because,
            "changes": list(each.said.changes),
        }

    def answer(found: Explanation) -> web.Response:
        return reply({"why": [explained(each) for each in found.rows], "more": found.is_cut})

    async def why_allocated(request: web.Request) -> web.Response:
        """Explain a slot, need or clearing, or else what a node has of this one, or gives it."""
        text = request.match_info["id"]
        try:
            found = await node.explaining.by_id(text)
        except NotFound:
            found = await node.explaining.by_node(node.find(text))
        return answer(found)

    async def why(request: web.Request) -> web.Response:
        return answer(await node.explaining.by_id(request.match_info["id"]))

    async def clearings(_: web.Request) -> web.Response:
        return reply(
            {
                "clearings": [
                    {
                        "id": to_text(row.id),
                        "slot": to_text(row.slot),
                        "kind": row.kind,
                        "at_ms": row.at_ms,
                        "rule": row.rule,
                    }
                    for row in node.allocator.clearings()
                ]
            }
        )

    async def clearing(request: web.Request) -> web.Response:
        raw = node.allocator.clearing(clearing_of(request.match_info["id"]))
        return web.Response(body=raw, content_type="application/cbor")

    return [
        web.get("/v1/allocation", show),
        web.get("/v1/allocation/groups", all_groups),
        web.get("/v1/allocation/expected", expected),
        web.get("/v1/allocation/received", received),
        web.get("/v1/allocation/why/{id}", why_allocated),
        web.get("/v1/market/why/{id}", why),
        web.get("/v1/market/clearings", clearings),
        web.get("/v1/market/clearings/{id}", clearing),
    ]
