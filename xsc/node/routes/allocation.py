"""The allocation: what was cleared and granted, why, and the clearing records themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from xsc.allocation import queries
from xsc.allocation.explaining import Explained
from xsc.allocation.granting import until_ms
from xsc.allocation.published import standing
from xsc.api import market as api
from xsc.api.endpoint import Id, Nothing
from xsc.base.errors import NotFound, PeerUnknown
from xsc.base.ids import to_text
from xsc.base.limits import PPM
from xsc.node.api.serving import filled
from xsc.node.build import Node
from xsc.node.routes.market import begins_with
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import SlotDenominators
from xsc.terms.quote import Kind
from xsc.terms.slot import STEP, Entitlement, EntitlementKey


def _cleared(
    provider: bytes, slot: SlotDenominators, drawn: Mapping[EntitlementKey, int]
) -> api.Cleared:
    """Return a window of a slot, what it gives, and what is known here to be drawn of it."""
    step = STEP[slot.kind]
    keys = {
        EntitlementKey(provider, slot.slot, line.customer, line.need): line
        for line in slot.allocations
    }
    return filled(
        api.Cleared,
        slot,
        node=provider,
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
            filled(
                api.Allocation,
                line,
                node=line.customer,
                quantity=line.quantity * step,
                drawn=drawn.get(key, 0) * step,
                until_ms=until_ms(line.granted_ms, slot.window),
            )
            for key, line in keys.items()
        ],
        pinned=[
            api.Pinned(node=key.customer, need=key.need, quantity=steps * step)
            for key, steps in sorted(drawn.items())
            if steps and key not in keys
        ],
    )


def _entitled(
    key: EntitlementKey,
    kind: Kind,
    drawn: int,
    *values: object,
    **given: Any,  # noqa: ANN401
) -> api.Entitled:
    level = drawn * STEP[kind]
    return filled(api.Entitled, *values, key, node=key.provider, kind=kind, drawn=level, **given)


def _granted(each: Entitlement, drawn: int) -> api.Entitled:
    return _entitled(each.key, each.kind, drawn, each, quantity=each.quantity * STEP[each.kind])


def _known(node: Node) -> dict[bytes, queries.Participant]:
    return {
        peer: queries.Participant(
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
        drawn[key.provider, key.slot][key] = steps
    states = [(peer, each.state) for peer, each in sorted(known.items()) if each.state is not None]
    converged = {peer: each.has_converged for peer, each in known.items() if each.is_active}
    totals: defaultdict[bytes, dict[Kind, int]] = defaultdict(dict)
    for (peer, kind), steps in sorted(own.recipient_totals.items()):
        totals[peer][kind] = steps * STEP[kind]
    return api.Shown(
        slots=[
            _cleared(provider, slot, drawn[provider, slot.slot])
            for provider, state in ((node.key.node_id, own), *states)
            for slot in state.slot_denominators
        ],
        converged=node.allocator.has_converged,
        network_converged=queries.network_has_converged(
            {node.key.node_id: node.allocator.has_converged} | converged
        ),
        damping_factor_ppm=own.damping_factor,
        damping_history=[(item[0], item[1]) for item in own.damping_history],
        mr_values=dict(own.mr_values),
        recipient_totals=totals,
        program_fault=node.allocator.program.fault,
    )


async def groups(node: Node, _: Nothing) -> api.Groups:
    """List the groups of nodes."""
    found = queries.groups(_known(node))
    if node.allocator.has_converged:
        found["has_system_converged"].append(node.key.node_id)
    named = {each for nodes in found.values() for each in nodes}
    return api.Groups(groups=found, names={each: node.name_of(each) for each in sorted(named)})


async def consistent(node: Node, _: Nothing) -> list[api.Stamped]:
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
                node=owner,
                sequence=record.sequence,
                written_ms=record.written_ms,
                offers=len(said.slots),
                needs=len(said.needs),
                consistent=not unheard,
                unheard=[*unheard],
            )
        )
    return rows


async def expected(node: Node, _: Nothing) -> api.Entitlements:
    """Show what own needs are granted."""
    drawn = node.drawn_steps()
    rows = [_granted(each, drawn.get(each.key, 0)) for each in node.allocator.received()]
    return _in_all(rows, [row.quantity for row in rows])


async def received(node: Node, _: Nothing) -> api.Entitlements:
    """Show what was drawn of it: that stays, whatever is granted now and whoever answers."""
    drawn = node.drawn_steps()
    rows = {
        each.key: _granted(each, drawn[each.key])
        for each in node.allocator.received()
        if drawn.get(each.key, 0)
    }
    for entry in node.market.store.all("customer"):
        key, terms = node.market.store.key(entry), entry.terms
        if drawn.get(key, 0) and key not in rows:
            rows[key] = _entitled(
                key,
                terms.kind,
                drawn[key],
                price=terms.price,
                window=terms.window,
                until_ms=terms.window[1],
            )
    return _in_all(rows.values(), [row.drawn for row in rows.values()])


def _in_all(rows: Collection[api.Entitled], counts: Iterable[int]) -> api.Entitlements:
    totals = Counter[bytes]()
    for row, count in zip(rows, counts, strict=True):
        totals[row.need] += count
    return api.Entitlements(allocations=[*rows], totals=totals)


def _explained(each: Explained) -> api.Explained:
    step = STEP[each.need.kind]
    given = each.granted if each.granted is not None and each.granted.quantity else None
    return filled(
        api.Explained,
        each,
        provider=each.provider.node,
        slot=each.slot.slot_id,
        node=each.customer.node,
        kind=each.need.kind,
        need=each.need.slot_id,
        tier=standing(each.provider, each.customer)[0],
        weight=None if each.bid is None else each.bid.weight,
        eligible=None if each.bid is None else each.bid.quantity * step,
        granted=None if each.granted is None else each.granted.quantity * step,
        stages=[]
        if given is None
        else [api.Stage(tier=given.tier, quantity=given.quantity * step, price=given.price)],
        price=None if given is None else given.price,
        changes=[change.said(each.need.kind) for change in each.changes],
    )


async def why(node: Node, asked: Id) -> api.Explanation:
    """Explain a slot, need or clearing, or else what a node has of this one, or gives it.

    Of a lease, and of a node, also why it was passed over of late.
    """
    said = asked.id
    rows: list[Explained] = []
    more = False
    try:
        rows, more = await node.explaining.by_id(said)
        passed = []
    except NotFound as fault:
        try:
            peer = node.find(said)
        except PeerUnknown:
            passed = _passed_over(node, said)
            leases = (to_text(view.entry.id) for view in node.market.leases())
            if not passed and not any(text.startswith(said) for text in leases):
                raise fault from None
        else:
            rows, more = await node.explaining.by_node(peer)
            passed = _passed_over(node, to_text(peer))
    return api.Explanation(why=list(map(_explained, rows)), more=more, passed_over=passed)


def _passed_over(node: Node, text: str) -> list[api.PassedOver]:
    """Return why leases and providers of such an id were passed over of late."""
    passed = {to_text(each.lease_id or each.node): each for each in node.market.buyer.passed_over()}
    return [each for found, each in passed.items() if found.startswith(text)]


async def clearings(node: Node, _: Nothing) -> list[api.Clearing]:
    """List the clearings of own slots."""
    return [
        filled(api.Clearing, row.record.slot, row.record, id=row.id, slot=row.record.slot.slot_id)
        for row in node.allocator.records.clearings()
    ]


async def clearing(node: Node, asked: Id) -> bytes:
    """Return a clearing record with what it names: of an own slot, or a false one of another."""
    allocator = node.allocator
    known = [*allocator.records.ids(), *allocator.records.false_clearings().values()]
    hint = "`xsc market clearings` lists them"
    return allocator.records.proof(begins_with(asked.id, known, "clearing", hint))
