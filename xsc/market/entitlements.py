"""What an entitlement keeps free, when it may be drawn, and what is quoted to its holder.

An entitlement is capacity of one window of a slot that a clearing granted to a need ahead of use
(`xsc.terms.slot`). A lease draws on one as a whole, or on none. What is drawn stays with the
lease, whatever is cleared later; what is not drawn is kept free until the window ends or the
entitlement lapses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xsc.base.limits import FUEL_QUANTUM
from xsc.market.calendar import EVER_MS, Promise, free_over, level_of, quanta_of
from xsc.market.pricing import Ladder
from xsc.terms.pricing import SLOT_UNIT
from xsc.terms.quote import Kind, Tier
from xsc.terms.slot import Entitlement, EntitlementKey, Window


def quantum(kind: Kind) -> int:
    """Return how much of a lease a quantum of a slot is: bytes, or fuel steps."""
    return SLOT_UNIT[kind]


def undrawn(entitlement: Entitlement, drawn: Mapping[EntitlementKey, int]) -> int:
    """Return what can still be drawn: bytes, or fuel steps."""
    whole = entitlement.quantity * quantum(entitlement.kind)
    return max(0, whole - drawn.get(entitlement.key, 0))


def is_present(entitlement: Entitlement, now_ms: int) -> bool:
    """Return whether an entitlement can be drawn now."""
    return entitlement.window[0] <= now_ms < entitlement.until_ms


def best(
    entitlements: Iterable[Entitlement],
    kind: Kind,
    quantity: int,
    drawn: Mapping[EntitlementKey, int],
    now_ms: int,
) -> Entitlement | None:
    """Return what a holder draws on next: the cheapest with so much left, then by end and id."""
    usable = [
        each
        for each in entitlements
        if each.kind == kind and is_present(each, now_ms) and undrawn(each, drawn) >= quantity
    ]
    return min(usable, key=lambda e: (e.price, e.until_ms, e.slot, e.need), default=None)


def promise(entitlement: Entitlement, left: int, now_ms: int) -> Promise:
    """Return what an entitlement with that much left keeps free.

    What is stored does not go when the window ends, so storage counts from its start on.
    """
    start, end = max(now_ms, entitlement.window[0]), entitlement.until_ms
    if entitlement.kind == "storage":
        return Promise(start, EVER_MS, left)
    # Once it lapses nothing is kept; until the window ends it is used evenly.
    length = max(0, entitlement.window[1] - start)
    return Promise(start, end, level_of(entitlement.kind, -(-left // FUEL_QUANTUM), length))


def promises(
    entitlements: Iterable[Entitlement],
    kind: Kind,
    drawn: Mapping[EntitlementKey, int],
    now_ms: int,
    *,
    beside: Entitlement | None = None,
) -> list[Promise]:
    """Return what all entitlements of a kind keep free, without one of them."""
    return [
        promise(each, left, now_ms)
        for each in entitlements
        if each.kind == kind
        and each is not beside
        and each.until_ms > now_ms
        and (left := undrawn(each, drawn))
    ]


def ladder_for(entitlement: Entitlement, posted: Ladder, tier: Tier) -> Ladder:
    """Return the ladder of a quote whose rung is the entitlement's price.

    A customer of that tier pays no more than it is asked now without an entitlement.
    """
    price = min(entitlement.price, posted.rung(tier))
    rungs: dict[Tier, Ladder] = {
        "mutual": Ladder(price, max(price, posted.one_way), max(price, posted.reserve)),
        "one_way": Ladder(min(price, posted.mutual), price, max(price, posted.reserve)),
        "open": Ladder(min(price, posted.mutual), min(price, posted.one_way), price),
    }
    return rungs[entitlement.tier]


@dataclass(slots=True)
class SlotRoom:
    """What a provider can grant of its slots, as a pass over all of them takes it.

    Args:
        free: by kind, what is neither used nor reserved.
        now_ms: the present.
    """

    free: Mapping[Kind, int]
    now_ms: int
    _taken: dict[Kind, list[Promise]]

    def __init__(self, free: Mapping[Kind, int], now_ms: int) -> None:
        self.free = free
        self.now_ms = now_ms
        self._taken = {"storage": [], "compute": []}

    def left(self, kind: Kind, window: Window) -> int:
        """Return the quanta that can be granted over a window."""
        start, end, length = self._span(kind, window)
        level = free_over(self.free[kind], self._taken[kind], start, end)
        return quanta_of(kind, level, length)

    def take(self, kind: Kind, window: Window, quanta: int) -> None:
        """Count quanta as granted over a window."""
        if quanta:
            start, end, length = self._span(kind, window)
            self._taken[kind].append(Promise(start, end, level_of(kind, quanta, length)))

    def _span(self, kind: Kind, window: Window) -> tuple[int, int, int]:
        start = max(self.now_ms, window[0])
        length = max(0, window[1] - start)
        return start, EVER_MS if kind == "storage" else window[1], length
