"""Decides which grants of other nodes a customer takes, so that no need is filled twice.

The state of a provider is enough: it is a value of its space, which it has signed. A line of it
counts if the provider publishes a slot that matches the need now, and if the line is of the tier
and at a price that both publish (docs/design/allocation.md, G8).

Acceptance is deferred. Each provider offers by itself. The need keeps the best offers up to its
quantity, and caps what it accepts of each other provider at what it kept; providers then offer what
was released to others. Caps only fall, so this ends, and with the divisions of
`xsc.allocation.clearing` it ends in the same allocation whoever acts first (G1 to G3).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from xsc.allocation import granting, published
from xsc.allocation.clearing import TIERS, Claim, divide
from xsc.allocation.matching import mismatch
from xsc.terms.clearing import TwoTierAllocationState
from xsc.terms.quote import Tier
from xsc.terms.slot import AvailabilitySlot, Entitlement, NeedSlot


def is_line_right(each: Entitlement, slot: AvailabilitySlot, tier: Tier) -> bool:
    """Return whether a line is of the tier of its customer, at what its slot asks of that.

    Under `proportional` the division can leave a need a rest that the auction sells it: the price
    is then the mean of both stages.
    """
    rung, is_mixed = slot.ladder.rung(each.tier), slot.rule == "proportional"
    if each.tier == "open" or is_mixed:
        return each.price >= rung and (each.tier == tier or (is_mixed and each.tier == "open"))
    return each.price == rung and each.tier == tier


def received(
    own: published.Published,
    needs: Mapping[bytes, NeedSlot],
    other: published.Published,
    state: TwoTierAllocationState,
    before: Iterable[Entitlement],
    *,
    now_ms: int,
) -> tuple[list[Entitlement], set[bytes]]:
    """Return what counts of a provider's state, and the clearings whose lines cannot be right.

    A line that has counted goes on: where recognition or a price changes, the provider clears
    again, and its state is a moment behind.

    Args:
        own: what the customer has published.
        needs: of the customer, by id.
        other: what the provider has published.
        state: what it says that it grants.
        before: what counted of the state before.
        now_ms: the present.
    """
    tier, _ = published.standing(other, own)
    mine = {(own.node, need_id): need for need_id, need in needs.items()}
    slots = {slot.slot_id: slot for slot in other.commitment.slots}
    known = {_said(each) for each in before}
    counts, doubted = list[Entitlement](), set[bytes]()
    for each in granting.entitlements(other.node, state, slots, mine, now_ms):
        need, slot = needs[each.need], slots[each.slot]
        if each.price > need.price_max or each.quantity > min(need.most(other.node), slot.quantity):
            continue
        if mismatch(slot, other, need, own, now_ms) is not None:
            continue
        if _said(each) in known or is_line_right(each, slot, tier):
            counts.append(each)
        else:
            doubted.add(each.clearing)
    return counts, doubted


def _said(each: Entitlement) -> tuple[object, ...]:
    return each.key, each.clearing, each.tier, each.quantity, each.price


def keep(
    quantity: int,
    offers: Sequence[Claim],
    caps: Mapping[bytes, int],
    parts: Mapping[bytes, int] | None = None,
) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """Return what a need keeps of each offer, and its caps from now on.

    It keeps those of mutual providers first, by recognition within a tier. What is of a provider
    alone is kept before the rest is divided. Caps fall only, so this ends
    also where recognition changes meanwhile; a cap that an earlier recognition lowered stays until
    the need has a new number.

    Args:
        quantity: of the need.
        offers: what each provider grants at present, at most one each, with the tier and weight
            that the customer gives it.
        caps: those before.
        parts: what is of one provider alone, no more than the quantity in all.
    """
    claims, sure = [], {}
    for offer in offers:
        bounded = min(offer.need, caps.get(offer.id, offer.need))
        sure[offer.id] = min(bounded, (parts or {}).get(offer.id, 0))
        claims.append(replace(offer, need=bounded - sure[offer.id]))
    kept = divide(quantity - sum(sure.values()), claims).allocations
    quantities = {provider: steps + kept[provider] for provider, steps in sure.items()}
    refused = {
        offer.id: quantities[offer.id] for offer in offers if quantities[offer.id] < offer.need
    }
    # A cap bounds what is kept, so none rises.
    return quantities, dict(caps) | refused


def width(offers: Collection[int], spread: int) -> int:
    """Return the most D with Σ min(offer, D) >= spread · D: what so many can have each.

    Args:
        offers: of each provider.
        spread: over how many providers an object goes.
    """
    return bisect_right(
        range(1, max(offers, default=0) + 1),
        0,
        key=lambda wide: spread * wide - sum(min(offer, wide) for offer in offers),
    )


def narrowed(offers: Mapping[bytes, int], spread: int) -> dict[bytes, int]:
    """Return what is kept of offers of which less than all is of use: none above their width.

    The greatest fall to the next lower ones, so that others that give back as well find a width
    meanwhile. At last what no object fits beside goes, the least offers first.
    """
    wide, top = width(offers.values(), spread), max(offers.values(), default=0)
    if not wide:
        return {}
    if top > wide:
        lower = max(wide, *(each for each in offers.values() if each < top), 0)
        return {provider: lower for provider, each in offers.items() if each == top}
    beyond, kept = sum(offers.values()) - spread * wide, dict[bytes, int]()
    if not beyond:
        return {}
    for provider, each in sorted(offers.items(), key=lambda item: (item[1], item[0])):
        cut = min(each, beyond)
        beyond -= cut
        kept[provider] = each - cut
    return kept


def passed_over(need: NeedSlot, offers: Sequence[Claim]) -> dict[bytes, int]:
    """Return caps for those whose share a default need does not use: their parts.

    Its open rest is whole columns. Where more providers than it is spread over offer a column, the
    best of them keep theirs: of an even division none would hold one.
    """
    if not need.standing or not need.open_steps:
        return {}
    whole = [
        offer for offer in offers if min(offer.need, need.cap(offer.id)) == need.most(offer.id)
    ]
    if len(whole) < need.spread:
        return {}
    whole.sort(key=lambda offer: (TIERS.index(offer.tier), -offer.weight, offer.id))
    best = {offer.id for offer in whole[: need.spread]}
    return {
        offer.id: min(need.cap(offer.id), need.part(offer.id))
        for offer in offers
        if offer.id not in best and offer.need > need.part(offer.id)
    }


def pending(
    own: published.Published,
    needs: Mapping[bytes, NeedSlot],
    others: Iterable[published.Published],
    received: Iterable[Entitlement],
    now_ms: int,
) -> set[bytes]:
    """Return the needs of which a provider that matches has offered nothing yet, and is not capped.

    Args:
        own: what the customer has published.
        needs: of it, by id.
        others: what providers that are up have published.
        received: what they grant to these needs.
        now_ms: the present.
    """
    heard = {(each.need, each.provider) for each in received}
    heard |= {(need_id, node) for need_id, need in needs.items() for node, _ in need.caps}
    found = set[bytes]()
    for other in others:
        for need_id, need in needs.items():
            reasons = (mismatch(slot, other, need, own, now_ms) for slot in other.commitment.slots)
            if (need_id, other.node) not in heard and None in reasons:
                found.add(need_id)
    return found


def answered(
    need: NeedSlot,
    received: Iterable[Entitlement],
    held: Mapping[bytes, int],
    ranks: Mapping[bytes, tuple[Tier, int]],
    *,
    is_due: bool,
    is_settled: bool,
) -> NeedSlot:
    """Return a need with the caps that follow from the offers.

    Caps fall only where a need is filled, or is spread and gets less than fits objects. If one that
    has caps would keep more without them, an offer that it kept is gone, and others may offer
    again: a new number begins.

    Args:
        need: as it is published.
        received: what providers that are up grant to needs of this node.
        held: by provider, what leases under the need have, also where the provider is not up.
        ranks: tier and weight that this node gives to all these providers, and to those with a cap
            that are up.
        is_due: whether a new number may begin already.
        is_settled: whether no offer is pending: all providers that match have offered or are
            capped.
    """
    granted = Counter[bytes]()
    for each in received:
        if each.need == need.slot_id:
            granted[each.provider] += each.quantity
    offers = [
        Claim(
            provider,
            *ranks[provider],
            min(need.most(provider), max(granted[provider], held.get(provider, 0))),
        )
        for provider in sorted((granted.keys() | held.keys()) & ranks.keys())
    ]
    caps, parts = dict(need.caps), dict(need.parts)
    caps |= passed_over(need, offers)
    kept, lowered = keep(need.quantity, offers, caps, parts)
    units = sum(kept.values())
    is_short, is_other = units < need.quantity, False
    if is_short and need.spread > 1 and is_settled and lowered == caps:
        spare = {each: steps - need.part(each) for each, steps in kept.items()}
        spare = {each: steps for each, steps in spare.items() if steps > 0}
        lower = {each: need.part(each) + at for each, at in narrowed(spare, need.spread).items()}
        level = max((cap - need.part(each) for each, cap in caps.items()), default=0)
        is_other = bool(caps) and not lower and level != width(spare.values(), need.spread)
        lowered = caps | lower if lower else dict(need.caps)
    elif is_short and caps and need.spread == 1:
        again = [offer for offer in offers if offer.id not in caps]
        again += [Claim(each, *ranks[each], need.most(each)) for each in caps if each in ranks]
        more, _ = keep(need.quantity, again, {}, parts)
        is_other = sum(more.values()) > units
    if is_other and is_due:
        return NeedSlot(**dict(need) | {"number": need.number + 1, "caps": ()})
    return need if is_other else NeedSlot(**dict(need) | {"caps": tuple(sorted(lowered.items()))})
