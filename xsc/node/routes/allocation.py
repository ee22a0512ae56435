"""The allocation: what was cleared and granted, why, and the clearing records themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from xsc.allocation.convergence import network_has_converged
from xsc.allocation.explaining import Explained, Explanation
from xsc.allocation.granting import until_ms
from xsc.allocation.queries import (
    Participant,
    denominator_of,
    groups,
)
from xsc.api import market as api
from xsc.api.endpoint import Id, Nothing
from xsc.base.errors import NotFound
from xsc.base.ids import to_text
from xsc.market.lease_entry import LeaseEntry
from xsc.node.api.serving import Answers
from xsc.node.build import Node
from xsc.node.routes.market import begins_with
from xsc.node.routes.objects import passed_over
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import (
    LineValue,
    SlotAllocationRecord,
    SlotDenominators,
    TwoTierAllocationState,
)
from xsc.terms.quote import Kind, Tier
from xsc.terms.slot import STEP, Entitlement, EntitlementKey


def _stage(kind: Kind, tier: Tier, steps: int, price: int) -> api.Stage:
    return api.Stage(tier=tier, quantity=steps * STEP[kind], price=price)


def _slots(
    node: Node,
    provider: bytes,
    state: TwoTierAllocationState,
    drawn: Mapping[EntitlementKey, int],
) -> list[api.Cleared]:
    """Return the windows of a provider's slots, with what is known here to be drawn of them."""

    def allocation(
        slot: SlotDenominators, line: SlotAllocationRecord, stages: Sequence[LineValue]
    ) -> api.Allocation:
        return api.Allocation(
            node=to_text(line.customer),
            name=node.name_of(line.customer),
            tier=line.tier,
            need=to_text(line.need),
            quantity=line.quantity * STEP[slot.kind],
            price=line.price,
            stages=[_stage(slot.kind, *each[1:]) for each in stages if each[0] == line.need],
            drawn=drawn.get(
                EntitlementKey(provider, slot.slot, slot.window[0], line.customer, line.need), 0
            )
            * STEP[slot.kind],
            granted_ms=line.granted_ms,
            until_ms=until_ms(line.granted_ms, slot.window),
        )

    rows = []
    for slot in state.slot_denominators:
        lines = [
            line
            for line in state.slot_allocations
            if (line.slot, line.window) == (slot.slot, slot.window)
        ]
        stages = node.allocator.stages(provider, slot.clearing)
        granted = {(line.customer, line.need) for line in lines}
        rows.append(
            api.Cleared(
                slot=to_text(slot.slot),
                node=to_text(provider),
                name=node.name_of(provider),
                kind=slot.kind,
                rule=slot.rule,
                window=slot.window,
                clearing=to_text(slot.clearing),
                capacity=slot.capacity * STEP[slot.kind],
                tiers=[
                    api.Tier(
                        tier=line.tier,
                        capacity=line.capacity * STEP[slot.kind],
                        given=line.given * STEP[slot.kind],
                        denominator=denominator_of(line.denominator),
                    )
                    for line in slot.tiers
                ],
                allocations=[
                    allocation(slot, line, stages.get(line.customer, ())) for line in lines
                ],
                pinned=[
                    api.Pinned(
                        node=to_text(each.customer),
                        name=node.name_of(each.customer),
                        need=to_text(each.need),
                        quantity=steps * STEP[slot.kind],
                    )
                    for each, steps in sorted(drawn.items())
                    if each[:3] == (provider, slot.slot, slot.window[0])
                    and steps
                    and (each.customer, each.need) not in granted
                ],
            )
        )
    return rows


def _entitlement(each: Entitlement, drawn: int, name: str) -> api.Entitled:
    return api.Entitled(
        node=to_text(each.provider),
        name=name,
        slot=to_text(each.slot),
        need=to_text(each.need),
        kind=each.kind,
        tier=each.tier,
        quantity=each.quantity * STEP[each.kind],
        drawn=drawn * STEP[each.kind],
        price=each.price,
        window=each.window,
        granted_ms=each.granted_ms,
        until_ms=each.until_ms,
        clearing=to_text(each.clearing),
    )


def _kept(entry: LeaseEntry, key: EntitlementKey, drawn: int, name: str) -> api.Entitled:
    """Return what a lease has drawn of what is granted no more, or by whom does not answer."""
    closes_ms = entry.terms.end_ms if entry.draw is None else entry.draw.end_ms
    return api.Entitled(
        node=to_text(entry.terms.provider),
        name=name,
        slot=to_text(key.slot),
        need=to_text(key.need),
        kind=entry.terms.kind,
        tier=None,
        quantity=0,
        drawn=drawn * STEP[entry.terms.kind],
        price=entry.terms.price,
        window=(key.opens_ms, closes_ms),
        granted_ms=None,
        until_ms=closes_ms,
        clearing=None,
    )


def _known(node: Node) -> dict[bytes, Participant]:
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


async def show(node: Node, _: Nothing) -> api.Shown:
    """Show what was cleared."""
    own, states = node.allocator.state, node.allocator.states()
    drawn = node.drawn_steps()
    rows = _slots(node, node.key.node_id, own, drawn)
    for provider, state in sorted(states.items()):
        rows += _slots(node, provider, state, drawn)
    known = _known(node)
    converged = {peer: each.has_converged for peer, each in known.items() if each.is_active}
    totals: defaultdict[str, dict[Kind, int]] = defaultdict(dict)
    for peer, kind, steps in own.recipient_totals:
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
        program_fault=node.allocator.program_fault,
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
        said = node.commitments.of(owner)
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


def _entitlements(node: Node, *, only_drawn: bool) -> api.Entitlements:
    drawn = node.drawn_steps()
    rows: list[api.Entitled] = []
    totals: dict[str, int] = {}
    for each in node.allocator.received():
        taken = drawn.get(each.key, 0)
        if taken or not only_drawn:
            rows.append(_entitlement(each, taken, node.name_of(each.provider)))
            need = to_text(each.need)
            steps = taken if only_drawn else each.quantity
            totals[need] = totals.get(need, 0) + steps * STEP[each.kind]
    if only_drawn:
        # What was drawn stays, whatever is granted now and whoever answers.
        seen = {each.key for each in node.allocator.received()}
        for entry in node.market.store.all("customer"):
            key = node.market.store.counts_for(entry)
            if key not in seen:
                seen.add(key)
                if taken := drawn.get(key, 0):
                    name, need = node.name_of(entry.terms.provider), to_text(key.need)
                    rows.append(_kept(entry, key, taken, name))
                    totals[need] = totals.get(need, 0) + taken * STEP[entry.terms.kind]
    return api.Entitlements(allocations=rows, totals=totals)


async def expected(node: Node, _: Nothing) -> api.Entitlements:
    """Show what own needs are granted."""
    return _entitlements(node, only_drawn=False)


async def received(node: Node, _: Nothing) -> api.Entitlements:
    """Show what was drawn of it."""
    return _entitlements(node, only_drawn=True)


def _explained(node: Node, each: Explained) -> api.Explained:
    pair, why = each.pair, each.why
    provider, customer = pair.provider.node, pair.customer.node
    return api.Explained(
        clearing=None if each.clearing is None else to_text(each.clearing),
        provider=to_text(provider),
        provider_name=node.name_of(provider),
        slot=to_text(pair.slot.slot_id),
        window=each.window,
        node=to_text(customer),
        name=node.name_of(customer),
        kind=pair.need.kind,
        need=to_text(pair.need.slot_id),
        tier=pair.customer.tier if why is None else why.tier,
        weight=None if why is None else why.weight,
        eligible=None if why is None else why.eligible * STEP[pair.need.kind],
        granted=None if why is None else why.quantity * STEP[pair.need.kind],
        stages=[]
        if why is None
        else [_stage(pair.need.kind, line.tier, line.quantity, line.price) for line in why.lines],
        price=None if why is None else max((x.price for x in why.lines), default=None),
        because=each.said.because,
        changes=list(each.said.changes),
    )


def _answer(node: Node, found: Explanation) -> api.Explanation:
    rows = [_explained(node, each) for each in found.rows]
    return api.Explanation(why=rows, more=found.is_cut, passed_over=[])


async def why_allocated(node: Node, asked: Id) -> api.Explanation:
    """Explain a slot, need or clearing, or else what a node has of this one, or gives it."""
    try:
        found = await node.explaining.by_id(asked.id)
    except NotFound:
        found = await node.explaining.by_node(node.find(asked.id))
    return _answer(node, found)


async def why(node: Node, asked: Id) -> api.Explanation:
    """Explain an outcome, or why a lease or provider was passed over of late."""
    known = {to_text(each.lease_id) for each in node.market.leases()}
    passed = {to_text(each.lease_id or each.node): each for each in node.market.chooser.passed()}
    try:
        return _answer(node, await node.explaining.by_id(asked.id))
    except NotFound:
        if not any(text.startswith(asked.id) for text in (*known, *passed)):
            raise
        rows = [passed_over(each) for text, each in passed.items() if text.startswith(asked.id)]
        return api.Explanation(why=[], more=False, passed_over=rows)


async def clearings(node: Node, _: Nothing) -> api.Clearings:
    """List the clearings of own slots."""
    return api.Clearings(
        clearings=[
            api.Clearing(
                id=to_text(row.id),
                slot=to_text(row.slot),
                kind=row.kind,
                at_ms=row.at_ms,
                rule=row.rule,
            )
            for row in node.allocator.records.clearings()
        ]
    )


async def clearing(node: Node, asked: Id) -> bytes:
    """Return a clearing record with what it names: of an own slot, or a false one of another."""
    allocator = node.allocator
    known = [*allocator.records.ids(), *allocator.proofs.false_clearings().values()]
    hint = "`xsc market clearings` lists them"
    return allocator.proof(begins_with(asked.id, known, "clearing", hint))


ANSWERS: Answers = {
    api.SHOW: show,
    api.GROUPS: all_groups,
    api.CONSISTENT: consistent,
    api.EXPECTED: expected,
    api.RECEIVED: received,
    api.WHY_ALLOCATED: why_allocated,
    api.WHY: why,
    api.CLEARINGS: clearings,
    api.CLEARING: clearing,
}
