"""Allocation endpoints: what was cleared and granted, why, and the clearing records themselves."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from xsc.allocation.convergence import network_has_converged
from xsc.allocation.queries import (
    Participant,
    changes_of,
    denominator_of,
    groups,
    reason_of,
)
from xsc.allocation.why import explain
from xsc.base.errors import NotFound
from xsc.base.ids import to_text
from xsc.base.limits import ENTITLEMENT_LAPSE_MS
from xsc.node.api.app import reply
from xsc.node.build import Node
from xsc.terms.clearing import TwoTierAllocationState
from xsc.terms.slot import Entitlement

WHYS_MAX = 64
"""Needs that one answer explains: each is cleared again some dozens of times."""


def _slots(
    provider: bytes, state: TwoTierAllocationState, name_of: Callable[[bytes], str]
) -> list[dict[str, object]]:
    return [
        {
            "slot": to_text(slot.slot),
            "node": to_text(provider),
            "name": name_of(provider),
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
                {
                    "node": to_text(line.customer),
                    "name": name_of(line.customer),
                    "tier": line.tier,
                    "need": to_text(line.need),
                    "quantity": line.quantity,
                    "price": line.price,
                    "granted_ms": line.granted_ms,
                    "until_ms": min(
                        slot.window[1],
                        max(line.granted_ms, slot.window[0]) + ENTITLEMENT_LAPSE_MS,
                    ),
                }
                for line in state.slot_allocations
                if (line.slot, line.window) == (slot.slot, slot.window)
            ],
        }
        for slot in state.slot_denominators
    ]


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
        ids = [row.id for row in node.allocator.clearings() if to_text(row.id).startswith(text)]
        if len(ids) != 1:
            raise NotFound(
                f"{'no' if not ids else 'more than one'} clearing has an id that begins with "
                f"'{text}'",
                hint="`xsc market clearings` lists them",
            )
        return ids[0]

    async def show(_: web.Request) -> web.Response:
        own, states = node.allocator.state, node.allocator.states()
        rows = _slots(node.key.node_id, own, node.name_of)
        for provider, state in sorted(states.items()):
            rows += _slots(provider, state, node.name_of)
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
        drawn = node.market.store.drawn_quanta("customer", node.clock.now_ms())
        rows: list[dict[str, object]] = []
        totals: dict[str, int] = {}
        for each in node.allocator.received():
            taken = drawn.get(each.key, 0)
            if taken or not only_drawn:
                rows.append(_entitlement(each, taken, node.name_of(each.provider)))
                need = to_text(each.need)
                totals[need] = totals.get(need, 0) + (taken if only_drawn else each.quantity)
        return reply({"allocations": rows, "totals": totals})

    async def expected(_: web.Request) -> web.Response:
        return entitlements(only_drawn=False)

    async def received(_: web.Request) -> web.Response:
        return entitlements(only_drawn=True)

    async def why(request: web.Request) -> web.Response:
        """Explain what a node was granted in present clearings, or everybody of a slot."""
        text = request.match_info["id"]
        pairs = [
            (cleared, each.customer, need)
            for cleared in node.allocator.present()
            for each in cleared.record.participants
            for need, _ in each.eligible
        ]
        chosen = [pair for pair in pairs if to_text(pair[0].record.slot.slot_id).startswith(text)]
        if not chosen:
            who = node.find(text)
            chosen = [pair for pair in pairs if pair[1] == who]
        if not chosen:
            raise NotFound(
                f"nothing that was cleared here names '{text}'",
                hint="`xsc allocation show` lists what was cleared",
            )
        rows = []
        for cleared, customer, need in chosen[:WHYS_MAX]:
            signed = node.allocator.opened(cleared.id)
            found = explain(signed, customer, need)
            rows.append(
                {
                    "clearing": to_text(cleared.id),
                    "slot": to_text(cleared.record.slot.slot_id),
                    "window": list(cleared.record.window),
                    "node": to_text(customer),
                    "name": node.name_of(customer),
                    "kind": cleared.record.slot.kind,
                    "need": to_text(need),
                    "tier": found.tier,
                    "weight": found.weight,
                    "eligible": found.eligible,
                    "granted": found.quantity,
                    "price": max((line.price for line in found.lines), default=None),
                    "because": reason_of(found),
                    "changes": changes_of(found),
                }
            )
        return reply({"why": rows, "more": len(chosen) > WHYS_MAX})

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
        web.get("/v1/allocation/why/{id}", why),
        web.get("/v1/market/clearings", clearings),
        web.get("/v1/market/clearings/{id}", clearing),
    ]
