"""The rules by which leases are chosen, taken and lowered, and the words for what is passed over.

Providers are chosen as if this node had no leases: by price for quality, one a failure domain; at
one price those where room is paid in any case, then those that hold least. So what is stored
spreads, and a lease that has become dear takes nothing new. At a provider that is chosen a lease at
hand is used, if it costs about as much as a new one; else a new one is taken.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from xsc.base import ids, limits, units
from xsc.market import lease as rules
from xsc.market.auction import Bid
from xsc.market.headroom import is_present, undrawn
from xsc.market.lease import LeaseEntry
from xsc.terms.quote import Kind
from xsc.terms.slot import STEP, Entitlement, EntitlementKey, NeedSlot

DEAR_PPM = 1_125_000
"""A lease at hand takes nothing new that costs more than so much of a new one."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be leased at each of some nodes."""

    kind: Kind
    quantity: int
    """Bytes, or fuel steps."""
    nodes: Sequence[bytes]
    """Those that may be asked."""
    saved: Mapping[bytes, int] = field(default_factory=dict)
    """By node, the bytes that need not be sent to it."""
    new: bool = False
    """Whether only a new lease does, which no other wish uses."""


def is_dear(lease: LeaseEntry, price: int) -> bool:
    """Return whether a lease is not used where a new one costs that."""
    return not lease.terms.cleared and lease.terms.price * limits.PPM > price * DEAR_PPM


def at_hand(entries: Iterable[LeaseEntry], wish: Wish, now_ms: int) -> dict[bytes, LeaseEntry]:
    """Return by node a customer's lease to use there.

    It is a cleared one, else the cheapest, and of those the first. Where none has the room, but
    cleared leases of storage have it together, it is the one of those that has most: who uses it
    goes on under the next one there.
    """
    fit: defaultdict[bytes, list[tuple[int, LeaseEntry]]] = defaultdict(list)
    for entry in entries:
        if why_unfit(entry, 1, now_ms) is None:
            fit[entry.peer].append((_left(entry, now_ms), entry))
    found = {}
    for node, leases in fit.items():
        whole = [entry for left, entry in leases if left >= wish.quantity]
        cleared = [item for item in leases if item[1].terms.cleared]
        if whole:
            found[node] = min(whole, key=lambda each: (not each.terms.cleared, each.terms.price))
        elif wish.kind == "storage" and sum(left for left, _ in cleared) >= wish.quantity:
            found[node] = max(cleared, key=lambda item: item[0])[1]
    return found


def _left(entry: LeaseEntry, now_ms: int) -> int:
    """Return what is left of a lease beside what was handed out: bytes, or fuel steps."""
    return max(0, rules.room(entry.terms, entry.use, now_ms) - entry.promised_at(now_ms))


def why_unfit(entry: LeaseEntry, quantity: int, now_ms: int) -> str | None:
    """Return why a lease taken is not used for so much; None where it could be, or empty if over.

    Args:
        entry: of a customer.
        quantity: bytes, or fuel steps.
        now_ms: the present.
    """
    if entry.is_over(now_ms) or entry.is_apart:
        return ""
    if entry.avoided_until_ms > now_ms:
        return "its provider refused work under it a moment ago"
    if not rules.is_useful(entry.terms, entry.use, now_ms):
        return "it is in the second half of its term"
    left = _left(entry, now_ms)
    if left < quantity:
        when = " in this minute" if entry.terms.cleared and entry.terms.kind == "compute" else ""
        return f"{left} of the {quantity} that are needed are left in it{when}"
    return None


def why_lost(bid: Bid, chosen: Mapping[bytes, bytes], price_max: int) -> str:
    """Return why a bidder was not chosen.

    Args:
        bid: of the bidder.
        chosen: the nodes that were, by domain.
        price_max: the most that this node pays.
    """
    if bid.price > price_max:
        return f"{ids.short(bid.node)} asks {bid.price}, which is too much"
    if bid.domain in chosen:
        return f"{ids.short(chosen[bid.domain])} is in its failure domain, and was chosen"
    return "others ask less for their quality, or hold less"


def why_unused(
    entry: LeaseEntry, wish: Wish, chosen: Mapping[bytes, LeaseEntry], now_ms: int
) -> str | None:
    """Return why a lease taken is not used for a wish; nothing to say where it is, or is over.

    Args:
        entry: of a customer.
        wish: what is needed.
        chosen: the leases that are used, by node.
        now_ms: the present.
    """
    used = chosen.get(entry.peer)
    if entry is used:
        return None
    is_cleared = wish.kind == "storage" and entry.terms.cleared
    if used is not None and is_cleared and used.terms.cleared:
        return None  # They are used together.
    reason = why_unfit(entry, wish.quantity, now_ms)
    if reason is None and used is not None:
        reason = f"it costs {entry.terms.price}, and the one that is used {used.terms.price}"
    return reason


# What clearings offer


def to_take(
    offers: Iterable[Entitlement],
    needs: Mapping[bytes, NeedSlot],
    taken: Mapping[EntitlementKey, int],
    now_ms: int,
) -> Iterator[tuple[Entitlement, int]]:
    """Yield what is taken of offers: the cheapest first, and no more than each need has left.

    It is whole steps of slots, and what a provider has of a need counts as such: so it was stated.

    Args:
        offers: to needs of this node.
        needs: of this node, by id.
        taken: bytes, or fuel steps a second, under leases that are not over.
        now_ms: the present.
    """
    left = {need_id: need.quantity * STEP[need.kind] for need_id, need in needs.items()}
    had_of = Counter[tuple[bytes, bytes]]()
    for key, level in taken.items():
        had_of[key.need, key.provider] += level
    for (need_id, _), had in had_of.items():
        if need_id in needs:
            unit = STEP[needs[need_id].kind]
            left[need_id] -= units.ceil_div(had, unit) * unit
    for each in sorted(offers, key=lambda each: (each.price, each.provider, each.key)):
        need = needs.get(each.need)
        if need is None:
            continue
        most = need.most(each.provider) * STEP[need.kind]
        had = had_of[each.need, each.provider]
        level = min(undrawn(each, taken), left.get(each.need, 0), most - had)
        level -= level % STEP[each.kind]
        # A lease is not shorter than a minute.
        is_long = now_ms + limits.COMPUTE_LEASE_MS <= each.window[1]
        if level > 0 and is_long and is_present(each, now_ms) and each.price <= need.price_max:
            left[each.need] -= level
            had_of[each.need, each.provider] += level
            yield each, level


def to_lower(
    entries: Iterable[LeaseEntry],
    needs: Mapping[bytes, NeedSlot],
    key_of: Callable[[LeaseEntry], EntitlementKey],
    now_ms: int,
) -> Iterator[tuple[LeaseEntry, int]]:
    """Yield the cleared leases that need less, the newest first, and what each is lowered to.

    What is used of a lease stays.

    Args:
        entries: leases of this node.
        needs: of this node, by id.
        key_of: returns what a lease counts for.
        now_ms: the present.
    """
    by_need: defaultdict[bytes, list[LeaseEntry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: -entry.terms.start_ms):
        if entry.use.denial is None:
            by_need[key_of(entry).need].append(entry)
    for need_id, leases in by_need.items():
        need = needs.get(need_id)
        levels = {entry.id: rules.drawn(entry, now_ms) for entry in leases}
        for provider in sorted({entry.peer for entry in leases}):
            most = 0 if need is None else need.most(provider) * STEP[need.kind]
            _lower([entry for entry in leases if entry.peer == provider], levels, most, now_ms)
        most = 0 if need is None else need.quantity * STEP[need.kind]
        _lower(leases, levels, most, now_ms)
        for entry in leases:
            if levels[entry.id] < rules.drawn(entry, now_ms):
                yield entry, levels[entry.id]


def _lower(leases: Sequence[LeaseEntry], levels: dict[bytes, int], most: int, now_ms: int) -> None:
    """Lower the levels of leases, in their order, until together they are no more than that.

    Only cleared leases that are not over have a level; what is held under others stays.
    """
    beyond = sum(levels[entry.id] for entry in leases) - most
    for entry in leases:
        if not entry.terms.cleared or entry.is_over(now_ms):
            continue
        promised, level = entry.promised_at(now_ms), levels[entry.id]
        least = rules.least_level(entry.terms, entry.use, promised, now_ms)
        less = levels[entry.id] = min(level, max(least, level - max(0, beyond)))
        beyond -= level - less
