"""Deferred acceptance: how a need takes offers of several providers, so that none is filled twice.

Each provider offers by itself. The need keeps the best offers up to its quantity, and caps what it
accepts of each other provider at what it kept; providers then offer what was released to others.
Caps only fall, so this ends, and with the divisions of `xsc.allocation.tiers` it ends in the same
allocation whoever acts first (docs/design/allocation.md, G1 to G3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import accumulate

from xsc.allocation.tiers import Claim, weighted_uniform
from xsc.terms.quote import Tier
from xsc.terms.slot import Entitlement, NeedSlot, Window


@dataclass(frozen=True, slots=True)
class Kept:
    """What a need keeps of each offer, and what it accepts of each provider from now on."""

    quantities: dict[bytes, int]
    caps: dict[bytes, int]
    """Of providers that were ever refused anything; never above the caps before."""


def keep(
    quantity: int,
    offers: Sequence[Claim],
    caps: Mapping[bytes, int],
    parts: Mapping[bytes, int] | None = None,
) -> Kept:
    """Return what a need keeps: of mutual providers first, by recognition within a tier.

    What is of a provider alone is kept before the rest is divided. Caps fall only, so this ends
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
    kept = weighted_uniform(quantity - sum(sure.values()), claims).allocations
    quantities = {provider: steps + kept[provider] for provider, steps in sure.items()}
    refused = {
        offer.id: quantities[offer.id] for offer in offers if quantities[offer.id] < offer.need
    }
    merged = {
        provider: min(caps.get(provider, cap), cap)
        for provider, cap in (dict(caps) | refused).items()
    }
    return Kept(quantities, merged)


class Given:
    """What a provider has granted a need in windows that began before, of all of its slots."""

    def __init__(self) -> None:
        self._units = 0
        self._open: list[tuple[int, int]] = []
        """End of the window and units; those that end first stand first."""

    def add(self, window: Window, units: int) -> None:
        """Count units; none of the windows that are asked for later may begin before this one."""
        heappush(self._open, (window[1], units))
        self._units += units

    def beside(self, window: Window) -> int:
        """Return what is granted when a window begins; later ones begin no earlier."""
        while self._open and self._open[0][0] <= window[0]:
            self._units -= heappop(self._open)[1]
        return self._units


def still_wanted(need: NeedSlot, provider: bytes, window: Window, given: Given) -> int:
    """Return what a need still accepts of a provider in a window, after its other slots."""
    return max(0, need.cap(provider) - given.beside(window))


def at_once(lines: Iterable[tuple[Window, int]]) -> int:
    """Return the most that the lines of one provider come to at any moment."""
    changes = [
        change for (start, end), units in lines for change in ((start, units), (end, -units))
    ]
    return max(accumulate(units for _, units in sorted(changes)), default=0)


def to_lease(
    received: Iterable[Entitlement],
    needs: Mapping[bytes, NeedSlot],
    matching: Mapping[bytes, Collection[bytes]],
    settled: Collection[bytes],
) -> list[Entitlement]:
    """Return the offers on which leases are taken: other providers take nothing of them any more.

    That is so once every provider that matches the need has offered something or is capped.

    Args:
        received: what providers that are up grant to needs of this node.
        needs: of this node, by id, as they are published.
        matching: by need, the providers that are up with a slot that matches it.
        settled: needs that wait for no further offer.
    """
    by_need: defaultdict[bytes, list[Entitlement]] = defaultdict(list)
    for each in received:
        by_need[each.need].append(each)
    found = []
    for need_id, offers in by_need.items():
        need = needs.get(need_id)
        if need is None:
            continue
        heard = {each.provider for each in offers} | {node for node, _ in need.caps}
        if need_id in settled or heard.issuperset(matching.get(need_id, ())):
            found += [each for each in offers if each.quantity <= need.cap(each.provider)]
    return found


def answered(
    need: NeedSlot,
    received: Iterable[Entitlement],
    held: Mapping[bytes, int],
    ranks: Mapping[bytes, tuple[Tier, int]],
    *,
    is_due: bool,
) -> NeedSlot:
    """Return a need with the caps that follow from the offers.

    Caps fall only where a need is filled. If one that has caps would
    keep more without them, an offer that it kept is gone, and others may offer again: a new number
    begins.

    Args:
        need: as it is published.
        received: what providers that are up grant to needs of this node.
        held: by provider, what leases under the need have, also where the provider is not up.
        ranks: tier and weight that this node gives to all these providers, and to those with a cap
            that are up.
        is_due: whether a new number may begin already.
    """
    lines: defaultdict[bytes, list[tuple[Window, int]]] = defaultdict(list)
    for each in received:
        if each.need == need.slot_id and each.provider in ranks:
            lines[each.provider].append((each.window, each.quantity))
    offers = [
        Claim(
            provider,
            *ranks[provider],
            min(need.most(provider), max(at_once(lines[provider]), held.get(provider, 0))),
        )
        for provider in sorted(lines.keys() | (held.keys() & ranks.keys()))
    ]
    caps, parts = dict(need.caps), dict(need.parts)
    kept = keep(need.quantity, offers, caps, parts)
    units = sum(kept.quantities.values())
    if caps and units < need.quantity:
        again = [offer for offer in offers if offer.id not in caps]
        again += [Claim(each, *ranks[each], need.most(each)) for each in caps if each in ranks]
        more = keep(need.quantity, again, {}, parts)
        if sum(more.quantities.values()) > units:
            begun = NeedSlot(**dict(need) | {"number": need.number + 1, "caps": ()})
            return begun if is_due else need
    return NeedSlot(**dict(need) | {"caps": tuple(sorted(kept.caps.items()))})
