"""The market: slots and needs, quotes, leases, and the allocation with its clearing records."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from typing import Final, NamedTuple

from xsc.allocation import commitments, declaring, explaining, published, queries, windows
from xsc.allocation.granting import until_ms
from xsc.api import market as api
from xsc.api.endpoint import Id, Nothing, filled
from xsc.base.errors import ArgumentInvalid, NoOffers, NotFound, PeerUnknown
from xsc.base.ids import to_text
from xsc.base.limits import EPOCH_MS, MFUEL, PPM
from xsc.base.turns import one_of_each
from xsc.base.units import ceil_div, format_level
from xsc.market.account import LeaseView
from xsc.market.lease import ran
from xsc.market.pricing import MarketPricing, PriceList, domain
from xsc.node.build import DAY_MS, Node, market_settings
from xsc.node.routes.objects import code_of
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import SlotDenominators
from xsc.terms.pricing import slot_amount
from xsc.terms.quote import KINDS, Kind
from xsc.terms.slot import STEP, STEPS_MAX, AvailabilitySlot, Entitlement, EntitlementKey, NeedSlot

_UNIT: Final[dict[Kind, api.Unit]] = {"storage": "bytes", "compute": "fuel_per_s"}


def _steps(node: Node, asked: api.Statement, role: api.Role, kind: Kind) -> int | None:
    """Return the level that is stated, in steps: an offer rounds down, a need up.

    Raises:
        ArgumentInvalid: it is of the other kind, stated twice, less than a step or too much.
    """
    level, hint = asked.quantity, "100GiB of storage, or 2workers or 500Mfuel/s of compute"
    if asked.unit not in (None, _UNIT[kind]) or (asked.workers is not None and kind == "storage"):
        raise ArgumentInvalid(f"what is stated is no {kind}", hint=f"write for example {hint}")
    if asked.workers is not None:
        if level is not None:
            raise ArgumentInvalid("workers are in place of a quantity", hint="state one of them")
        level = asked.workers * node.config.worker_speed_mfuel * MFUEL
    if level is None:
        return None
    steps = level // STEP[kind] if role == "offer" else ceil_div(level, STEP[kind])
    if steps <= 0:
        raise ArgumentInvalid(
            f"{format_level(kind, level)} is less than a step of {format_level(kind, STEP[kind])}",
            hint=f"state {format_level(kind, STEP[kind])} or more",
        )
    if steps > STEPS_MAX:
        raise ArgumentInvalid(
            f"{format_level(kind, level)} is more than any slot or need states",
            hint=f"state {format_level(kind, STEPS_MAX * STEP[kind])} or less",
        )
    return steps


def _statement(node: Node, body: api.Statement, role: api.Role, kind: Kind) -> declaring.Statement:
    filters = None if body.filters is None else dict(body.filters)
    if filters is not None and "node" in filters:
        filters["node"] = to_text(node.find(filters["node"]))
    return filled(
        declaring.Statement,
        body,
        quantity=_steps(node, body, role, kind),
        price=body.price_micro,
        filters=None if filters is None else tuple(filters.items()),
    )


async def quotes(node: Node, _: Nothing) -> list[api.Quote]:
    """List what the slots of all peers that are up ask of this node now."""
    rows, peers = [], node.market.providers.up()
    await node.market.providers.learn_labels(peers)
    for kind in KINDS:
        found = [node.commitments.quote(kind, peer, node.key.node_id) for peer in peers]
        for quote in sorted((q for q in found if q), key=lambda q: (q.price, q.provider)):
            slot = declaring.find(node.commitments.heard.of(quote.provider).commitment, quote.slot)
            granted = _granted_by(node, quote.provider) or Counter[bytes]()
            row = filled(
                api.Quote,
                quote,
                node=quote.provider,
                price_micro=quote.price,
                price_mutual_micro=quote.ladder.price_mutual,
                price_one_way_micro=quote.ladder.price_one_way,
                reserve_micro=quote.ladder.reserve,
                available=max(0, slot.quantity - granted[quote.slot]) * STEP[kind],
                unit=_UNIT[kind],
            )
            rows.append(row)
    return rows


def _begins_with(text: str, ids: Iterable[bytes], what: str, hint: str) -> bytes:
    """Return the one id that begins so.

    Raises:
        NotFound: there is none, or more than one; names `what` they are of.
    """
    found = [each for each in ids if to_text(each).startswith(text)]
    if len(found) != 1:
        count = "more than one" if found else "no"
        raise NotFound(f"{count} {what} has an id that begins with '{text}'", hint=hint)
    return found[0]


def _own(node: Node, text: str) -> declaring.Either:
    """Return the own offer or need whose id begins so."""
    own = {slot.slot_id: slot for slot in node.commitments.own.both}
    return own[_begins_with(text, own, "own offer or need", "`xsc market slots` lists them")]


class OwnSteps(NamedTuple):
    """Steps of own slots and of own needs, by id."""

    granted: Counter[bytes]
    """What is granted now; what leases have stays granted, whatever was cleared since."""
    used: Counter[bytes]
    """By leases."""


def own_steps(node: Node) -> OwnSteps:
    """Return the steps of own slots and needs."""
    drawn, now_ms = node.drawn_steps(), node.clock.now_ms()
    levels = dict(drawn)
    for each in (*node.allocator.granted, *node.allocator.received()):
        if now_ms < each.until_ms:
            levels[each.key] = max(drawn.get(each.key, 0), each.quantity)
    return OwnSteps(_by_own_id(node, levels), _by_own_id(node, drawn))


def _by_own_id(node: Node, levels: Mapping[EntitlementKey, int]) -> Counter[bytes]:
    """Return the steps of own slots and of own needs, by id."""
    found = Counter[bytes]()
    for key, steps in levels.items():
        found[key.slot if key.provider == node.key.node_id else key.need] += steps
    return found


def _granted_by(node: Node, owner: bytes) -> Counter[bytes] | None:
    """Return the steps that a peer's slots grant now, by id; None where that is not known here."""
    state, now_ms = node.commitments.heard.state_of(owner), node.clock.now_ms()
    if state is None:
        return None
    found = Counter[bytes]()
    for each in state.slot_denominators:
        if now_ms < each.window[1]:
            found[each.slot] = sum(line.quantity for line in each.allocations)
    return found


def _row(
    owner: bytes,
    slot: declaring.Either,
    granted: Counter[bytes] | None = None,
    used: Counter[bytes] | None = None,
) -> api.Slot:
    is_offer, step = isinstance(slot, AvailabilitySlot), STEP[slot.kind]
    parts = slot.parts if isinstance(slot, NeedSlot) else ()
    return filled(
        api.Slot,
        slot,
        id=slot.slot_id,
        role="offer" if is_offer else "need",
        origin="default" if slot.standing else "stated",
        node=owner,
        quantity=slot.quantity * step,
        unit=_UNIT[slot.kind],
        granted=None if granted is None else granted[slot.slot_id] * step,
        used=None if used is None else used[slot.slot_id] * step,
        price_micro=slot.reserve if isinstance(slot, AvailabilitySlot) else slot.price_max,
        price_unit="GiB_hour" if slot.kind == "storage" else "Gfuel",
        parts={peer: steps * step for peer, steps in parts},
    )


def own_slots(node: Node, steps: OwnSteps) -> list[api.Slot]:
    """Return the own offers and needs."""
    return [_row(node.key.node_id, slot, *steps) for slot in node.commitments.own.both]


async def slots(node: Node, _: Nothing) -> list[api.Slot]:
    """List offers and needs."""
    rows = own_slots(node, own_steps(node))
    for peer in sorted(node.peers.roster.peers()):
        theirs, granted = node.commitments.heard.of(peer).commitment, _granted_by(node, peer)
        rows += [_row(peer, slot, granted) for slot in theirs.slots]
        rows += [_row(peer, need) for need in theirs.needs]
    return rows


async def _price(node: Node, kind: Kind, count: int) -> int:
    """Return what this node would pay the dearest of so many providers now.

    Raises:
        NoOffers: none asks what this node pays.
    """
    found = await node.market.buyer.price(kind, count)
    if found is None:
        raise NoOffers(
            f"no peer offers {kind} at a price that this node pays",
            hint="raise storage_price_max_gib_hour or compute_price_max_gfuel, or add peers",
        )
    return found


async def estimate(node: Node, asked: api.Estimate) -> api.Cost:
    """Say what storage or fuel would cost at the prices quoted now: what an auction would pay."""
    if not asked.size_bytes and not asked.fuel:
        raise ArgumentInvalid("nothing is to be priced", hint="say a size, or how much fuel")
    k, m = code_of(asked.code)
    prices = PriceList(
        await _price(node, "storage", k + m) if asked.size_bytes else 0,
        await _price(node, "compute", 1) if asked.fuel else 0,
    )
    pricing = MarketPricing(prices)
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


def _cost_micro(slot: declaring.Either, now_ms: int, for_ms: int) -> int:
    """Return what all of a slot or need comes to within a time from now."""
    price = slot.price_max if isinstance(slot, NeedSlot) else slot.reserve
    until_ms = min(now_ms + for_ms, slot.valid_until_ms)
    ((begin, end),) = slot.windows or ((now_ms, until_ms),)
    begin, end = max(begin, now_ms), min(end, until_ms)
    times = [(begin, end)]
    if slot.recurrence:
        times = [*windows.occurrences(slot.recurrence, commitments.zone_of, begin, until_ms)]
    open_ms = sum(max(0, end - begin) for begin, end in times)
    return slot_amount(slot.kind, price, slot.quantity * open_ms) // EPOCH_MS


def _declared(node: Node, slot_id: bytes) -> api.Declared:
    """Return an own slot or need, what all of it comes to, and what may keep it from being met."""
    slot = declaring.find(node.commitments.own, slot_id)
    now_ms = node.clock.now_ms()
    warnings = []
    if isinstance(slot, NeedSlot) and slot.price_max == 0:
        warnings.append("it pays nothing, so it matches only offers for nothing")
    level, most = slot.quantity * STEP[slot.kind], node.capacity.level(slot.kind)
    if isinstance(slot, AvailabilitySlot) and level > most:
        warnings.append(f"this node has {format_level(slot.kind, most)} in all, and grants no more")
    spread = slot.spread if isinstance(slot, NeedSlot) and slot.kind == "storage" else None
    k, m = code_of(None)
    if spread is not None:
        domains = len(
            {
                domain(offer.location, offer.owner, peer)
                for peer in node.peers.peers()
                for offer in node.commitments.heard.of(peer).commitment.slots
                if offer.kind == "storage"
            }
        )
        if domains < spread:
            warnings.append(
                f"failure domains that offer storage, as far as known here: {domains}; more"
                f" friends, or `--spread {max(1, domains)}`, would fill it"
            )
    return api.Declared(
        id=to_text(slot_id),
        day_micro=_cost_micro(slot, now_ms, DAY_MS),
        month_micro=_cost_micro(slot, now_ms, api.MONTH_MS),
        object_bytes=None if spread is None else slot.quantity * STEP["storage"] * k // (k + m),
        spread=spread,
        warnings=warnings,
    )


async def declare(node: Node, asked: api.Declare) -> api.Declared:
    """Make an offer or a need."""
    if asked.standing:
        if asked != api.Declare(role="offer", kind=asked.kind, standing=True):
            raise ArgumentInvalid(
                "an offer of everything follows what the node has and asks: state nothing else",
                hint="`xsc market edit` gives it filters or a rule",
            )
        return _declared(node, await node.commitments.offer_all(asked.kind))
    said = _statement(node, asked, asked.role, asked.kind)
    if said.quantity is None:
        hint = f"`xsc market {asked.role} --help` shows it"
        raise ArgumentInvalid("a quantity is missing", hint=hint)
    if asked.role == "need":
        if asked.price_micro is None:
            said = replace(said, price=market_settings(node.config).price_max[asked.kind])
        if asked.kind == "storage" and asked.spread is None:
            said = replace(said, spread=sum(code_of(None)))
    role = AvailabilitySlot if asked.role == "offer" else NeedSlot
    return _declared(node, await node.commitments.declare(role, asked.kind, said))


async def edit(node: Node, asked: api.Edit) -> api.Declared:
    """Change an own offer or need."""
    slot = _own(node, asked.id)
    role: api.Role = "offer" if isinstance(slot, AvailabilitySlot) else "need"
    await node.commitments.edit(slot.slot_id, _statement(node, asked, role, slot.kind))
    return _declared(node, slot.slot_id)


async def withdraw(node: Node, asked: Id) -> Id:
    """Withdraw an own offer or need."""
    slot_id = _own(node, asked.id).slot_id
    await node.commitments.withdraw(slot_id)
    return Id(id=to_text(slot_id))


async def leases(node: Node, _: Nothing) -> list[api.Lease]:
    """List leases in both roles."""
    return [_lease(node, view) for view in node.market.leases()]


def _lease(node: Node, view: LeaseView) -> api.Lease:
    terms, use = view.entry.terms, view.use
    return filled(
        api.Lease,
        terms,
        view.entry,
        view,
        origin="cleared" if terms.cleared else "now",
        state=view.status,
        quantity=use.level,
        held=use.held_bytes,
        used=ran(terms, use, node.clock.now_ms()),
        price_micro=terms.price,
        billed_micro=view.due_micro,
    )


def known_lease(node: Node, text: str) -> bytes:
    """Return the id of the one lease that begins so.

    Raises:
        NotFound: there is none, or more than one.
    """
    known = {view.entry.id for view in node.market.leases()}
    return _begins_with(text, known, "lease", "`xsc market leases` lists them")


async def lease(node: Node, asked: api.LeaseId) -> bytes:
    """Return a signed lease or its denial."""
    return node.market.lease_record(known_lease(node, asked.id), denial=asked.denial)


async def account(node: Node, asked: api.AccountId) -> bytes:
    """Return the newest voucher for a provider, or the count that it pays."""
    return node.market.account_record(node.peers.roster.find(asked.id), count=asked.count)


def _cleared(
    provider: bytes,
    slot: SlotDenominators,
    drawn: Mapping[EntitlementKey, int],
    most: int | None = None,
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
            for key, line in islice(keys.items(), most)
        ],
        more=0 if most is None else max(0, len(keys) - most),
        pinned=[
            api.Pinned(node=key.customer, need=key.need, quantity=steps * step)
            for key, steps in sorted(drawn.items())
            if steps and key not in keys
        ],
    )


def _granted(each: Entitlement, drawn: int) -> api.Entitled:
    step, key = STEP[each.kind], each.key
    level = each.quantity * step
    return filled(api.Entitled, each, key, node=key.provider, quantity=level, drawn=drawn * step)


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


async def show(node: Node, asked: api.Show) -> api.Shown:
    """Show what was cleared."""
    own, known = node.allocator.state, _known(node)
    drawn: defaultdict[tuple[bytes, bytes], dict[EntitlementKey, int]] = defaultdict(dict)
    for key, steps in node.drawn_steps().items():
        drawn[key.provider, key.slot][key] = steps
    theirs = [
        [(peer, slot) for slot in each.state.slot_denominators]
        for peer, each in sorted(known.items())
        if each.state is not None
    ]
    count = sum(map(len, theirs))
    listed = one_of_each(theirs, count if asked.slots is None else asked.slots)
    ours = [(node.key.node_id, slot) for slot in own.slot_denominators]
    converged = {peer: each.has_converged for peer, each in known.items() if each.is_active}
    totals: defaultdict[bytes, dict[Kind, int]] = defaultdict(dict)
    for (peer, kind), steps in sorted(own.recipient_totals.items()):
        totals[peer][kind] = steps * STEP[kind]
    return api.Shown(
        slots=[
            *(_cleared(*each, drawn[each[0], each[1].slot]) for each in ours),
            *(
                _cleared(peer, slot, drawn[peer, slot.slot], asked.lines)
                for peer, slot in sorted(listed, key=itemgetter(0))
            ),
        ],
        more=count - len(listed),
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
        unheard = node.space.causality.unheard(record.causality, owners)
        rows.append(
            filled(
                api.Stamped,
                record,
                node=owner,
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
            rows[key] = api.Entitled(
                node=key.provider,
                slot=key.slot,
                need=key.need,
                kind=terms.kind,
                drawn=drawn[key] * STEP[terms.kind],
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


def _explained(each: explaining.Explained) -> api.Explained:
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
        tier=published.standing(each.provider, each.customer)[0],
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
    rows: list[explaining.Explained] = []
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
    return allocator.records.proof(_begins_with(asked.id, known, "clearing", hint))
