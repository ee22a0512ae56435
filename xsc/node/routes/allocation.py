"""The allocation: what was cleared and granted, why, and the clearing records themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from xsc.allocation.explaining import Explained, Explanation
from xsc.allocation.granting import until_ms
from xsc.allocation.published import standing
from xsc.allocation.queries import (
    Participant,
    groups,
    network_has_converged,
)
from xsc.api import market as api
from xsc.api.endpoint import Id, Nothing
from xsc.base.errors import NotFound, PeerUnknown
from xsc.base.ids import to_text
from xsc.base.limits import PPM
from xsc.node.api.serving import Answers
from xsc.node.build import Node
from xsc.node.routes.market import begins_with
from xsc.node.routes.objects import passed_over
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import SlotDenominators, TwoTierAllocationState
from xsc.terms.quote import Kind
from xsc.terms.slot import STEP, Entitlement, EntitlementKey


def _cleared(
    node: Node,
    provider: bytes,
    slot: SlotDenominators,
    drawn: Mapping[EntitlementKey, int],
) -> api.Cleared:
    """Return a window of a slot, what it gives, and what is known here to be drawn of it."""
    step = STEP[slot.kind]
    keys = {
        EntitlementKey(provider, slot.slot, line.customer, line.need): line
        for line in slot.allocations
    }
    return api.Cleared(
        slot=to_text(slot.slot),
        node=to_text(provider),
        name=node.name_of(provider),
        kind=slot.kind,
        rule=slot.rule,
        window=slot.window,
        clearing=to_text(slot.clearing),
        capacity=slot.tiers[0].capacity * step,
        tiers=[
            api.Tier(
                tier=each.tier,
                capacity=each.capacity * step,
                given=each.given * step,
                denominator=each.denominator / PPM
                if slot.rule == "proportional"
                else each.denominator,
            )
            for each in slot.tiers
        ],
        allocations=[
            api.Allocation(
                node=to_text(line.customer),
                name=node.name_of(line.customer),
                tier=line.tier,
                need=to_text(line.need),
                quantity=line.quantity * step,
                price=line.price,
                drawn=drawn.get(key, 0) * step,
                granted_ms=line.granted_ms,
                until_ms=until_ms(line.granted_ms, slot.window),
            )
            for key, line in keys.items()
        ],
        pinned=[
            api.Pinned(
                node=to_text(key.customer),
                name=node.name_of(key.customer),
                need=to_text(key.need),
                quantity=steps * step,
            )
            for key, steps in sorted(drawn.items())
            if steps and key not in keys
        ],
    )


def _slots(
    node: Node,
    provider: bytes,
    state: TwoTierAllocationState,
    drawn: Mapping[tuple[bytes, bytes], Mapping[EntitlementKey, int]],
) -> list[api.Cleared]:
    """Return the windows of a provider's slots; `drawn` is by provider and slot."""
    return [
        _cleared(node, provider, slot, drawn.get((provider, slot.slot), {}))
        for slot in state.slot_denominators
    ]


def _entitled(
    node: Node,
    key: EntitlementKey,
    kind: Kind,
    drawn: int,
    **told: Any,  # noqa: ANN401
) -> api.Entitled:
    return api.Entitled(
        node=to_text(key.provider),
        name=node.name_of(key.provider),
        slot=to_text(key.slot),
        need=to_text(key.need),
        kind=kind,
        drawn=drawn * STEP[kind],
        **told,
    )


def _granted(node: Node, each: Entitlement, drawn: int) -> api.Entitled:
    return _entitled(
        node,
        each.key,
        each.kind,
        drawn,
        tier=each.tier,
        quantity=each.quantity * STEP[each.kind],
        price=each.price,
        window=each.window,
        granted_ms=each.granted_ms,
        until_ms=each.until_ms,
        clearing=to_text(each.clearing),
    )


def _known(node: Node) -> dict[bytes, Participant]:
    return {
        peer: Participant(
            node.commitments.heard.of(peer).commitment,
            node.commitments.weight_ppm(peer),
            node.commitments.their_weight_ppm(peer),
            node.health.is_up(peer),
            node.commitments.heard.state_of(peer),
        )
        for peer in node.peers.roster.peers()
    }


async def show(node: Node, _: Nothing) -> api.Shown:
    """Show what was cleared."""
    own, known = node.allocator.state, _known(node)
    drawn: defaultdict[tuple[bytes, bytes], dict[EntitlementKey, int]] = defaultdict(dict)
    for key, steps in node.drawn_steps().items():
        drawn[key[:2]][key] = steps
    states = [(peer, each.state) for peer, each in sorted(known.items()) if each.state is not None]
    rows = [
        row
        for provider, state in ((node.key.node_id, own), *states)
        for row in _slots(node, provider, state, drawn)
    ]
    converged = {peer: each.has_converged for peer, each in known.items() if each.is_active}
    totals: defaultdict[str, dict[Kind, int]] = defaultdict(dict)
    for (peer, kind), steps in sorted(own.recipient_totals.items()):
        totals[to_text(peer)][kind] = steps * STEP[kind]
    return api.Shown(
        slots=rows,
        converged=node.allocator.has_converged,
        network_converged=network_has_converged(
            {node.key.node_id: node.allocator.has_converged} | converged
        ),
        damping_factor_ppm=own.damping_factor,
        damping_history=[(item[0], item[1]) for item in own.damping_history],
        mr_values={to_text(peer): ppm for peer, ppm in own.mr_values},
        recipient_totals=totals,
        program_fault=node.allocator.program.fault,
    )


async def all_groups(node: Node, _: Nothing) -> api.Groups:
    """List the groups of nodes."""
    found = groups(_known(node))
    if node.allocator.has_converged:
        found["has_system_converged"].append(node.key.node_id)
    named = {each for nodes in found.values() for each in nodes}
    return api.Groups(
        groups={name: [to_text(each) for each in nodes] for name, nodes in found.items()},
        names={to_text(each): node.name_of(each) for each in sorted(named)},
    )


async def consistent(node: Node, _: Nothing) -> api.Consistent:
    """Say which commitments are of one cut: nobody's author knew what is not known here."""
    owners, rows = sorted({node.key.node_id, *node.peers.roster.peers()}), []
    for owner in owners:
        try:
            record = node.space.get(UserSpacePaths.COMMITMENT, owner).signed.record
        except NotFound:
            continue
        said = node.commitments.heard.of(owner).commitment
        unheard = node.space_store.unheard(record.causality, owners)
        rows.append(
            api.Stamped(
                node=to_text(owner),
                name=node.name_of(owner),
                sequence=record.sequence,
                written_ms=record.written_ms,
                offers=len(said.slots),
                needs=len(said.needs),
                consistent=not unheard,
                unheard=[to_text(each) for each in unheard],
            )
        )
    return api.Consistent(commitments=rows)


async def expected(node: Node, _: Nothing) -> api.Entitlements:
    """Show what own needs are granted."""
    drawn = node.drawn_steps()
    rows = [_granted(node, each, drawn.get(each.key, 0)) for each in node.allocator.received()]
    totals = Counter[str]()
    for row in rows:
        totals[row.need] += row.quantity
    return api.Entitlements(allocations=rows, totals=dict(totals))


async def received(node: Node, _: Nothing) -> api.Entitlements:
    """Show what was drawn of it: that stays, whatever is granted now and whoever answers."""
    drawn = node.drawn_steps()
    rows = {
        each.key: _granted(node, each, drawn[each.key])
        for each in node.allocator.received()
        if drawn.get(each.key, 0)
    }
    for entry in node.market.store.all("customer"):
        key, terms = node.market.store.key(entry), entry.terms
        if drawn.get(key, 0) and key not in rows:
            rows[key] = _entitled(
                node,
                key,
                terms.kind,
                drawn[key],
                price=terms.price,
                window=terms.window,
                until_ms=terms.window[1],
            )
    totals = Counter[str]()
    for row in rows.values():
        totals[row.need] += row.drawn
    return api.Entitlements(allocations=list(rows.values()), totals=dict(totals))


def _explained(node: Node, each: Explained) -> api.Explained:
    provider, customer, step = each.provider.node, each.customer.node, STEP[each.need.kind]
    granted = each.granted if each.granted is not None and each.granted.quantity else None
    return api.Explained(
        clearing=None if each.clearing is None else to_text(each.clearing),
        provider=to_text(provider),
        provider_name=node.name_of(provider),
        slot=to_text(each.slot.slot_id),
        window=each.window,
        node=to_text(customer),
        name=node.name_of(customer),
        kind=each.need.kind,
        need=to_text(each.need.slot_id),
        tier=standing(each.provider, each.customer)[0],
        weight=None if each.bid is None else each.bid.weight,
        eligible=None if each.bid is None else each.bid.quantity * step,
        granted=None if each.granted is None else each.granted.quantity * step,
        stages=[]
        if granted is None
        else [api.Stage(tier=granted.tier, quantity=granted.quantity * step, price=granted.price)],
        price=None if granted is None else granted.price,
        because=each.because,
        changes=[change.said(each.need.kind) for change in each.changes],
    )


def _passed_over(node: Node, text: str) -> list[api.PassedOver]:
    """Return why leases and providers of such an id were passed over of late."""
    passed = {to_text(each.lease_id or each.node): each for each in node.market.buyer.passed_over()}
    return [passed_over(each) for found, each in passed.items() if found.startswith(text)]


async def why(node: Node, asked: Id) -> api.Explanation:
    """Explain a slot, need or clearing, or else what a node has of this one, or gives it.

    Of a lease, and of a node, also why it was passed over of late.
    """
    try:
        found = await node.explaining.by_id(asked.id)
    except NotFound as fault:
        try:
            peer = node.find(asked.id)
        except PeerUnknown:
            leases = (to_text(view.entry.id) for view in node.market.leases())
            passed = _passed_over(node, asked.id)
            if not passed and not any(text.startswith(asked.id) for text in leases):
                raise fault from None
            return api.Explanation(why=[], more=False, passed_over=passed)
        found = await node.explaining.by_node(peer)
        return _answer(node, found, _passed_over(node, to_text(peer)))
    return _answer(node, found, [])


def _answer(node: Node, found: Explanation, passed: Sequence[api.PassedOver]) -> api.Explanation:
    rows, is_cut = found
    why = [_explained(node, each) for each in rows]
    return api.Explanation(why=why, more=is_cut, passed_over=[*passed])


async def clearings(node: Node, _: Nothing) -> api.Clearings:
    """List the clearings of own slots."""
    return api.Clearings(
        clearings=[
            api.Clearing(
                id=to_text(row.id),
                slot=to_text(row.record.slot.slot_id),
                kind=row.record.slot.kind,
                at_ms=row.record.at_ms,
                rule=row.record.slot.rule,
            )
            for row in node.allocator.records.clearings()
        ]
    )


async def clearing(node: Node, asked: Id) -> bytes:
    """Return a clearing record with what it names: of an own slot, or a false one of another."""
    allocator = node.allocator
    known = [*allocator.records.ids(), *allocator.records.false_clearings().values()]
    hint = "`xsc market clearings` lists them"
    return allocator.records.proof(begins_with(asked.id, known, "clearing", hint))


ANSWERS: Answers = {
    api.SHOW: show,
    api.GROUPS: all_groups,
    api.CONSISTENT: consistent,
    api.EXPECTED: expected,
    api.RECEIVED: received,
    api.WHY: why,
    api.CLEARINGS: clearings,
    api.CLEARING: clearing,
}
