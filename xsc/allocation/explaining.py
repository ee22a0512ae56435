"""Explains to people what needs were granted of slots, here and at other providers.

Why a need came out at a slot as it did is said in sentences, from a clearing record that was
recomputed first. What would have changed it is found by clearing again with that one thing changed,
so it is what would have happened and not a guess. Where no slot matches a need, the matching rule
says why (docs/design/allocation.md, W1 to W4).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Final, Literal, TypeAlias

from xsc.allocation import commitments, matching, published
from xsc.allocation.clearing import Bid, Granted, clear
from xsc.allocation.clearing_record import Clearing
from xsc.allocation.granting import ALLOCATIONS_A_CUSTOMER_MAX, ALLOCATIONS_A_STRANGER_MAX
from xsc.allocation.records import Records
from xsc.base import ids, limits, peering, units
from xsc.base.errors import LimitError, NotFound, PeerError, ProofInvalid, UnavailableError
from xsc.identity.context import Context
from xsc.terms.clearing import SlotDenominators, TwoTierAllocationState
from xsc.terms.quote import Kind
from xsc.terms.slot import STEP, AvailabilitySlot, EntitlementKey, NeedSlot, Window

WHYS_MAX = 64
"""Rows of one explanation: each is cleared again some dozens of times."""
WHY_RECORDS_MAX = 16
"""Clearing records that one explanation fetches from others, of CLEARING_BYTES_MAX each."""

_PAIRS_AT_ONCE: Final = 512
"""Pairs of slots and needs that are matched before others have their turn: there may be many."""
_SHARE_STEP_PPM: Final = 1000
"""Shares are shown with one decimal; a bound is rounded up, so that it suffices."""
What: TypeAlias = Literal["mutual", "one_way", "price"]
_SAID: Final[Mapping[What, str]] = {
    "mutual": "mutual recognition",
    "one_way": "recognition by the provider",
    "price": "a greatest price",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that, alone, would have given the need more."""

    what: What
    bound: int
    """The least recognition in ppm, or the least greatest price."""
    quantity: int
    """What the need would have been granted."""

    def said(self, kind: Kind) -> str:
        """Return it as a sentence."""
        share = min(limits.PPM, units.ceil_div(self.bound, _SHARE_STEP_PPM) * _SHARE_STEP_PPM)
        bound = (
            units.format_credits(self.bound) if self.what == "price" else units.format_share(share)
        )
        given = _shown(kind, self.quantity)
        return f"{_SAID[self.what]} of {bound} would have given it {given}"


@dataclass(frozen=True, slots=True)
class Explained:
    """A slot and a need of two nodes, and how they came out."""

    provider: published.Published
    slot: AvailabilitySlot
    customer: published.Published
    need: NeedSlot
    because: str = ""
    clearing: bytes | None = None
    window: Window | None = None
    bid: Bid | None = None
    """Of the need, its cap and what credit and shares left of it the least; None: no part."""
    granted: Granted | None = None
    """What it gave it, also of a quantity of 0; None: no part."""
    changes: tuple[Change, ...] = ()


Explanation: TypeAlias = tuple[list[Explained], bool]
"""An answer, where any slot matches any need only of those, and whether there is more than it may
say."""


def pairs_of(
    provider: published.Published, customer: published.Published, one: bytes | None = None
) -> Iterator[Explained]:
    """Return the pairs of what two nodes have published; those of one slot or need where given."""
    for slot, need in product(provider.commitment.slots, customer.commitment.needs):
        if one in (None, slot.slot_id, need.slot_id):
            yield Explained(provider, slot, customer, need)


def _shown(kind: Kind, steps: int) -> str:
    return units.format_level(kind, steps * STEP[kind])


def changes_of(
    slot: AvailabilitySlot, capacity: int, bids: Sequence[Bid], salt: bytes, bid: Bid
) -> list[Change]:
    """Return each change that, alone, would have given one of the bids more.

    Found by halving, and so the least one where more recognition or a higher price never serves
    less.
    """

    def given(what: What, bound: int) -> int:
        told = []
        for each in bids:
            if what == "price":
                made = replace(each, price_max=bound) if each == bid else each
            else:  # the whole customer is served in the tier: its needs stand there together
                stands = each.customer == bid.customer
                made = replace(each, tier=what, weight=bound) if stands else each
            told.append(made)
        lines = clear(slot, capacity, told, salt).lines
        return lines[bid.pin].quantity if bid.pin in lines else 0

    now = given("price", bid.price_max)
    if now >= bid.quantity:
        return []
    top = max(slot.reserve, *(each.price_max for each in bids)) + 1
    tier, weight = bid.tier, bid.weight
    tries: dict[What, int] = {} if tier == "mutual" else {"one_way": 1}
    tries |= {"mutual": limits.MUTUAL_RECOGNITION_THRESHOLD_PPM, "price": bid.price_max + 1}
    if tier != "open":
        tries[tier] = weight + 1
    changes = []
    for what, least in tries.items():
        bounds = range(least, (top if what == "price" else limits.PPM) + 1)
        if bounds and given(what, bounds[-1]) > now:
            bound = bounds[bisect_left(bounds, now + 1, key=partial(given, what))]
            changes.append(Change(what, bound, given(what, bound)))
    return changes


def _bound(row: Explained, state: TwoTierAllocationState, eligible: int, now_ms: int) -> str:
    """Return why no more of a need was eligible for a slot, as `granting` decides it.

    Args:
        row: the slot and the need.
        state: what the provider says of all its slots.
        eligible: steps of the need that were.
        now_ms: the present.
    """
    slot, need, customer, provider = row.slot, row.need, row.customer.node, row.provider.node
    for slot_id, node, _, end_ms in state.pauses:
        if (slot_id, node) == (slot.slot_id, customer) and now_ms < end_ms:
            until = units.format_time(end_ms)
            return f"its customer took no lease on what it was offered, and waits until {until}"
    lines = [(each.slot, line) for each in state.slot_denominators for line in each.allocations]
    beside = sum(
        line.quantity
        for at, line in lines
        if at != slot.slot_id and line.pin == (customer, need.slot_id)
    )
    most, cap = need.most(provider), need.cap(provider)
    if eligible + beside >= cap:
        given = [f"other providers give it {_shown(need.kind, most - cap)}"] if cap < most else []
        if beside:
            given.append(f"other slots of this provider give it {_shown(need.kind, beside)}")
        return " and ".join(given) or "it was changed since"
    is_open = published.standing(row.provider, row.customer)[0] == "open"
    most_lines = ALLOCATIONS_A_STRANGER_MAX if is_open else ALLOCATIONS_A_CUSTOMER_MAX
    if sum(line.customer == customer for _, line in lines) >= most_lines:
        return f"its provider grants {most_lines} needs of one customer, and no more"
    if not slot.reserve:
        return "its provider has no room free for the margin that it asks for"
    credit = "the credit of its customer at this provider is used up"
    return f"{credit}, or no room is free for the margin" if need.part(provider) else credit


def explain(
    row: Explained, clearing: Clearing, state: TwoTierAllocationState, drawn: int, now_ms: int
) -> Explained:
    """Return why a need was granted what a clearing record says, or why it took no part.

    Args:
        row: the slot and the need, as they are now.
        clearing: of the slot.
        state: what the provider says of all its slots.
        drawn: steps that the need has drawn of the slot.
        now_ms: the present.
    """
    slot, capacity, bids, salt = clearing.game
    need, pin = row.need, (row.customer.node, row.need.slot_id)
    bid = next((each for each in bids if each.pin == pin), None)
    if bid is None:
        return replace(row, because=_absence(row, clearing, state, drawn, now_ms))
    cleared, tier = clearing.clear(), bid.tier
    granted, rung = cleared.lines.get(pin, Granted(tier, 0, 0)), slot.ladder.rung(tier)
    is_all = granted.quantity == bid.quantity
    if is_all and bid.quantity == need.most(row.provider.node):
        of = "" if bid.quantity == need.quantity else " of this provider"
        because = f"all that it asked for{of} was there"
    elif is_all:
        asks = f"it asks for {_shown(need.kind, need.quantity)}"
        because = f"{asks}, and {_bound(row, state, bid.quantity, now_ms)}"
    elif bid.price_max < rung:
        because = (
            f"it pays at most {units.format_credits(bid.price_max)}, and the slot asks "
            f"{units.format_credits(rung)} of the tier {tier}"
        )
    elif granted.quantity == sum(line.given for line in cleared.tiers):
        because = "the slot has no more"
    elif tier == "open":
        because = "others are recognised, or bid more"
    else:
        share = units.format_share(bid.weight)
        because = f"the rest went to others: it stands in the tier {tier} with {share}"
    return replace(
        row,
        because=because,
        bid=bid,
        granted=granted,
        changes=tuple(changes_of(slot, capacity, bids, salt, bid)),
    )


def _absence(
    row: Explained, clearing: Clearing, state: TwoTierAllocationState, drawn: int, now_ms: int
) -> str:
    """Return why a need that matches a slot took no part in a clearing: what fails first, now."""
    seen = clearing.customers.get(row.customer.node)
    if drawn:
        has = _shown(row.need.kind, drawn)
        return f"it has drawn {has} and keeps that; only the rest was cleared"
    if row.need.cap(row.provider.node) == 0:
        return "others fill it, so it takes nothing more of this provider"
    if row.customer.node in clearing.record.left_out:
        return "its provider had no room for all customers, and left this one out"
    if seen is None or row.need.slot_id not in {need.slot_id for need in seen.commitment.needs}:
        return "its provider has not seen the need, or divides the slot with it as without it"
    return f"it was granted nothing: {_bound(row, state, 0, now_ms)}"


class Explaining:
    """Explains the clearings of this node, and of others what they gave to this node's needs.

    Args:
        context: of the node.
        records: has the clearings.
        heard: what nodes offer, need and recognise.
        peers: who is known.
        is_up: says of a peer whether it answers.
        drawn: returns what leases have drawn of entitlements, of both roles, in steps.
    """

    def __init__(
        self,
        context: Context,
        *,
        records: Records,
        heard: commitments.Heard,
        peers: peering.Peers,
        is_up: Callable[[bytes], bool],
        drawn: Callable[[], Mapping[EntitlementKey, int]],
    ) -> None:
        self._node = context.key.node_id
        self._clock = context.clock
        self._executor = context.executor
        self._records = records
        self._heard = heard
        self._peers = peers
        self._is_up = is_up
        self._drawn = drawn
        self._turn = asyncio.Lock()
        """All explanations together take one thread: a peer's record can take long."""

    async def by_id(self, text: str) -> Explanation:
        """Explain an own need, a slot or a clearing by how its id begins; own ones come first.

        Raises:
            NotFound: there is none, or more than one.
        """
        peers, own = self._peers.peers(), self._heard.of(self._node).commitment
        found = {each.slot_id for each in own.both if ids.to_text(each.slot_id).startswith(text)}
        if not found:
            kept = [each for each in self._records.ids() if ids.to_text(each).startswith(text)]
            found = {self._records.opened(each).record.slot.slot_id for each in kept}
            for peer in peers:
                slots = self._heard.of(peer).commitment.slots
                known = [(slot.slot_id, slot.slot_id) for slot in slots]
                known += [(each.clearing, each.slot) for each in self._divided(peer)]
                found |= {slot for each, slot in known if ids.to_text(each).startswith(text)}
        if len(found) != 1:
            raise NotFound(
                f"{'more than one' if found else 'no'} need, slot or clearing that is known here"
                f" has an id that begins with '{text}'",
                hint="`xsc market slots` and `xsc market clearings` list them",
            )
        return await self._answer(self._pairs(peers, found.pop()))

    async def by_node(self, node: bytes) -> Explanation:
        """Explain what a node has of this one and this one of it; of this node, all its needs."""
        if node != self._node:
            return await self._answer(self._pairs([node]))
        own, others = self._heard.of(node), map(self._heard.of, self._peers.peers())
        return await self._answer(pair for other in others for pair in pairs_of(other, own))

    def _pairs(self, peers: Iterable[bytes], one: bytes | None = None) -> Iterator[Explained]:
        """Return the pairs of this node and peers; those of one slot or need where it is given."""
        own = self._heard.of(self._node)
        for peer in peers:
            other = self._heard.of(peer)
            yield from pairs_of(own, other, one)
            yield from pairs_of(other, own, one)

    async def _answer(self, pairs: Iterable[Explained]) -> Explanation:
        """Explain pairs by what was cleared last."""
        now_ms = self._clock.now_ms()
        match, others = list[Explained](), list[Explained]()
        for number, pair in enumerate(pairs):
            if number % _PAIRS_AT_ONCE == 0:
                await asyncio.sleep(0)
            reason = matching.mismatch(pair.slot, pair.provider, pair.need, pair.customer, now_ms)
            if reason is None:
                match.append(self._cleared(pair))
            elif len(others) <= WHYS_MAX:
                others.append(replace(pair, because=reason))
            if len(match) > WHYS_MAX:
                break
        rows, found = list[Explained](), match or others
        opened = dict[bytes, Clearing | str]()
        for row in found[:WHYS_MAX]:
            if row.clearing is None:
                rows.append(self._as_heard(row) if match else row)
                continue
            if row.clearing not in opened:
                if row.provider.node != self._node and len(opened) >= WHY_RECORDS_MAX:
                    return rows, True
                opened[row.clearing] = await self._open(row.provider.node, row.clearing)
            rows.append(self._as_heard(await self._explained(row, opened[row.clearing])))
        return rows, len(found) > WHYS_MAX

    def _as_heard(self, row: Explained) -> Explained:
        """Return an explanation; of a provider that does not answer now it says so first."""
        provider = row.provider.node
        if provider == self._node or self._is_up(provider):
            return row
        return replace(row, because=f"its provider does not answer; {row.because}")

    def _divided(self, node: bytes) -> Sequence[SlotDenominators]:
        """Return the slots that a node says that it has cleared."""
        state = self._heard.state_of(node)
        return () if state is None else state.slot_denominators

    def _cleared(self, pair: Explained) -> Explained:
        """Return a pair with the clearing that its provider names, not explained yet."""
        for each in self._divided(pair.provider.node):
            if each.slot == pair.slot.slot_id:
                return replace(pair, clearing=each.clearing, window=each.window)
        return replace(pair, because="they match, and no clearing of the slot is known here yet")

    async def _open(self, provider: bytes, record_id: bytes) -> Clearing | str:
        """Return a record that may be explained, or why it may not."""
        try:
            return await self._records.checked(provider, record_id)
        except ProofInvalid as fault:
            return f"its clearing record does not recompute, and does not count: {fault.message}"
        except (NotFound, UnavailableError, LimitError, PeerError) as fault:
            if not self._is_up(provider):
                return "its clearing record is not here"
            return f"its clearing record is not here, and its provider gives none: {fault.message}"

    async def _explained(self, row: Explained, checked: Clearing | str) -> Explained:
        if isinstance(checked, str):
            return replace(row, because=checked)
        provider, customer = row.provider.node, row.customer.node
        key = EntitlementKey(provider, row.slot.slot_id, customer, row.need.slot_id)
        drawn = self._drawn().get(key, 0)
        state = self._heard.state_of(provider)
        if state is None:
            return replace(row, because="what its provider says of its slots is not here any more")
        async with self._turn:
            return await self._executor.run(
                explain, row, checked, state, drawn, self._clock.now_ms()
            )
