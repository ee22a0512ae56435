"""The offers of clearings and what leases under a need come to: what is taken and what is given up.

An offer (`xsc.terms.slot.Entitlement`) is capacity of one window of a slot that a clearing granted
to a need ahead of use. A lease draws on one, for all of it or a part, and several leases can draw
on the same. What is drawn stays with the lease, whatever is cleared later.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from xsc.base.limits import COMPUTE_LEASE_MS
from xsc.base.units import ceil_div
from xsc.market.lease import LEVEL_UNIT, least_level
from xsc.market.lease_entry import LeaseEntry
from xsc.market.room import LEASE_UNIT, is_present, undrawn
from xsc.terms.slot import Entitlement, EntitlementKey, NeedSlot


def to_take(
    offers: Iterable[Entitlement],
    needs: Mapping[bytes, NeedSlot],
    taken: Mapping[EntitlementKey, int],
    now_ms: int,
) -> Iterator[tuple[Entitlement, int]]:
    """Yield what is taken of offers: the cheapest first, and no more than each need has left.

    It is whole steps of slots.

    Args:
        offers: to needs of this node.
        needs: of this node, by id.
        taken: bytes, or fuel steps a minute, under leases that are not over.
        now_ms: the present.
    """
    left = {need_id: need.quantity * LEASE_UNIT[need.kind] for need_id, need in needs.items()}
    had_of = Counter[tuple[bytes, bytes]]()
    for key, level in taken.items():
        left[key.need] = left.get(key.need, 0) - level
        had_of[key.need, key.provider] += level
    for each in sorted(offers, key=lambda each: (each.price, each.provider, each.key)):
        need = needs.get(each.need)
        if need is None:
            continue
        most = need.most(each.provider) * LEASE_UNIT[need.kind]
        had = had_of[each.need, each.provider]
        level = min(undrawn(each, taken), left.get(each.need, 0), most - had)
        level -= level % LEASE_UNIT[each.kind]
        # A lease is not shorter than a minute.
        is_long = now_ms + COMPUTE_LEASE_MS <= each.window[1]
        if level > 0 and is_long and is_present(each, now_ms) and each.price <= need.price_max:
            left[each.need] -= level
            had_of[each.need, each.provider] += level
            yield each, level


def to_lower(
    entries: Iterable[LeaseEntry],
    needs: Mapping[bytes, NeedSlot],
    counts_for: Callable[[LeaseEntry], EntitlementKey],
    now_ms: int,
) -> Iterator[tuple[LeaseEntry, int]]:
    """Yield the cleared leases that need less, the newest first, and what each is lowered to.

    What is used of a lease stays.

    Args:
        entries: leases of this node.
        needs: of this node, by id.
        counts_for: returns what a lease counts for.
        now_ms: the present.
    """
    by_need: defaultdict[bytes, list[LeaseEntry]] = defaultdict(list)
    beside = Counter[tuple[bytes, bytes]]()
    for entry in entries:
        if entry.denial is None:
            need_id = counts_for(entry).need
            if entry.terms.cleared and not entry.is_over(now_ms):
                by_need[need_id].append(entry)
            else:
                beside[need_id, entry.peer] += entry.use.held_bytes
    for need_id, leases in by_need.items():
        need = needs.get(need_id)
        leases.sort(key=lambda entry: -entry.terms.start_ms)
        levels = {entry.terms.lease_id: entry.use.level for entry in leases}
        for provider in sorted({entry.peer for entry in leases}):
            most = 0 if need is None else need.most(provider) * LEASE_UNIT[need.kind]
            here = [entry for entry in leases if entry.peer == provider]
            _lower(here, levels, most - beside[need_id, provider], now_ms)
        most = 0 if need is None else need.quantity * LEASE_UNIT[need.kind]
        others = sum(held for (of, _), held in beside.items() if of == need_id)
        _lower(leases, levels, most - others, now_ms)
        for entry in leases:
            if levels[entry.terms.lease_id] < entry.use.level:
                yield entry, levels[entry.terms.lease_id]


def _lower(leases: Sequence[LeaseEntry], levels: dict[bytes, int], most: int, now_ms: int) -> None:
    """Lower the levels of leases, in their order, until together they are no more than that."""
    beyond = sum(levels[entry.terms.lease_id] for entry in leases) - most
    for entry in leases:
        least = least_level(entry.terms, entry.use, now_ms) + entry.promised_at(now_ms)
        level, unit = levels[entry.terms.lease_id], LEVEL_UNIT[entry.terms.kind]
        less = max(least, level - max(0, beyond))
        less = levels[entry.terms.lease_id] = min(level, ceil_div(less, unit) * unit)
        beyond -= level - less
