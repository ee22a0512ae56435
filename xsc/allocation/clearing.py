"""Divides a capacity among claims, and clears one window of one slot among the needs that match it.

Mutually recognised peers are served first, by mutual recognition; what they leave goes to
peers that the provider recognises, by its recognition; what those leave goes to all
others, in equal weights (docs/design/allocation.md). Two rules divide inside of a tier and
have one signature:

- `weighted_uniform`, the default: water-filling. In integers, the next unit goes
  to the unsatisfied claim with the highest weight / (units + 1), ties to the
  lower id. Largest remainders would break monotonicity in capacity; this does
  not, and no claim gains by stating another need than it has.
- `proportional`: shares by weight times active need, capped by need. A claim gains
  by inflating its need, and tier 2 may be served before tier 1 is satisfied. It is
  kept for operators who select it (docs/adr/0019-weighted-uniform-division.md).

Both are exact: no floats, no order of input, no state.

A slot is cleared before its room is used. Three stages divide the capacity (C1 to C8):

1. Mutually recognised customers, at the price for them, by the slot's division rule.
2. Customers that the provider recognises, at the price for them, from what is left.
3. All that is still wanted at the reserve or more, by a Vickrey auction of units: the highest
   bids win, and a customer pays the reserve and what the others lose by its presence.

Ties fall by hashes of the customers' keys under a salt that follows from slot and day, so that
nobody draws again by publishing again.

Credit, caps and shares bound the quantity of a bid before it comes here.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Final, TypeAlias

from xsc.base.encoding import tagged_sha256
from xsc.base.limits import PPM
from xsc.base.units import ceil_div
from xsc.terms.pricing import Ladder
from xsc.terms.quote import Tier
from xsc.terms.slot import DivisionRule

TIERS: Final[tuple[Tier, ...]] = ("mutual", "one_way", "open")
DENOMINATOR_FLOOR: Final = Fraction(1, 10_000)
"""Least denominator of `proportional`, so that it never divides by zero."""
OPEN: Final[Tier] = "open"
_DAY_MS: Final = 24 * 3_600_000
Standing: TypeAlias = tuple[Tier, int]
"""Tier and weight: mutual recognition in `mutual`, own recognition in `one_way`, 1 in `open`."""
STRANGER: Final[Standing] = (OPEN, 1)


@dataclass(frozen=True, slots=True)
class Claim:
    """What one node wants of the capacity, and its tier and weight."""

    id: bytes
    tier: Tier
    weight: int
    """Mutual recognition in `mutual`, own recognition in `one_way`; not looked at in `open`."""
    need: int
    damping_ppm: int = PPM
    """How much of the need is active; only `proportional` looks at it."""

    def __post_init__(self) -> None:
        assert self.need >= 0, "a need is not negative"
        assert self.tier == "open" or self.weight > 0, "a recognised claim has weight"
        assert 0 <= self.damping_ppm <= PPM, "damping is a share"


@dataclass(frozen=True, slots=True)
class TierResult:
    """How one tier was served, so that each claimant can check its own line."""

    tier: Tier
    capacity: int
    """What came to the tier."""
    given: int
    denominator: Fraction
    """Sum of the weights (weighted uniform) or of the numerators (proportional)."""
    level: Fraction | None
    """Units a unit of weight (or of numerator); None where every claim got all it needs.

    While no need caps a claim, it is capacity / denominator. Under weighted uniform a
    claim has floor(level · weight) at least, or its need where that is less; what rounding
    down leaves is handed out by units, and may well give one claim more than one of them.
    """


@dataclass(frozen=True, slots=True)
class Division:
    """The result of a division."""

    allocations: dict[bytes, int]
    """By id; every claim is listed, also with 0."""
    tiers: tuple[TierResult, ...]
    """`mutual`, `one_way`, `open`, always all three."""


Rule: TypeAlias = Callable[[int, Sequence[Claim]], Division]


def _weight(claim: Claim) -> int:
    return 1 if claim.tier == "open" else claim.weight


_Served: TypeAlias = tuple[dict[bytes, int], Fraction, Fraction | None]
"""Units by claim, denominator and level of one tier."""


def _divide(
    capacity: int,
    claims: Sequence[Claim],
    serve: Callable[[Tier, int, Sequence[Claim]], _Served],
) -> Division:
    """Divide tier after tier; each gets what those before it left."""
    assert capacity >= 0, "a capacity is not negative"
    assert len({claim.id for claim in claims}) == len(claims), "one claim an id"
    allocations = {claim.id: 0 for claim in claims}
    results = []
    rest = capacity
    for tier in TIERS:
        members = [claim for claim in claims if claim.tier == tier and claim.need > 0]
        given, denominator, level = serve(tier, rest, members)
        allocations.update(given)
        total = sum(given.values())
        results.append(TierResult(tier, rest, total, denominator, level))
        rest -= total
    return Division(allocations, tuple(results))


def _fill_tier(_tier: Tier, capacity: int, claims: Sequence[Claim]) -> _Served:
    """Serve a tier by water-filling, up to the level L with sum(min(need, L · weight)) = capacity.

    Claims are sated in the order of need / weight; the first that the rest of the capacity cannot
    sate fixes the level. The units up to it are exactly those with weight / unit >= 1 / level, so
    they are the first that the unit-by-unit rule hands out. What is left by rounding down is less
    than one unit a claim, and is handed out by that rule itself.
    """
    level, rest = None, capacity
    denominator = weights = sum(_weight(claim) for claim in claims)
    for claim in sorted(claims, key=lambda claim: Fraction(claim.need, _weight(claim))):
        if claim.need * weights > rest * _weight(claim):
            level = Fraction(rest, weights)
            break
        rest -= claim.need
        weights -= _weight(claim)
    if level is None:
        return {claim.id: claim.need for claim in claims}, Fraction(denominator), None
    given = {
        claim.id: min(claim.need, level.numerator * _weight(claim) // level.denominator)
        for claim in claims
    }
    waiting = [
        (Fraction(given[claim.id] + 1, _weight(claim)), claim.id, claim)
        for claim in claims
        if given[claim.id] < claim.need
    ]
    heapq.heapify(waiting)
    for _ in range(capacity - sum(given.values())):
        first = heapq.heappop(waiting)[2]
        given[first.id] += 1
        if given[first.id] < first.need:
            again = Fraction(given[first.id] + 1, _weight(first))
            heapq.heappush(waiting, (again, first.id, first))
    return given, Fraction(denominator), level


def weighted_uniform(capacity: int, claims: Sequence[Claim]) -> Division:
    """Divide by water-filling, tier after tier, in O(n log n)."""
    return _divide(capacity, claims, _fill_tier)


def _share_tier(tier: Tier, capacity: int, claims: Sequence[Claim]) -> _Served:
    if capacity == 0 and tier != "mutual":
        return {}, Fraction(0), None
    weights = sum(_weight(claim) for claim in claims)
    numerators = {
        claim.id: Fraction(_weight(claim) * claim.need * claim.damping_ppm, weights * PPM)
        for claim in claims
    }
    denominator = sum(numerators.values(), Fraction(0))
    level = capacity / max(denominator, DENOMINATOR_FLOOR)
    given = {claim.id: min(claim.need, int(level * numerators[claim.id])) for claim in claims}
    sated = all(given[claim.id] == claim.need for claim in claims)
    return given, denominator, None if sated else level


def proportional(capacity: int, claims: Sequence[Claim]) -> Division:
    """Divide in proportion to weight times need, tier after tier.

    For each tier with Q left: share_r = weight_r / sum of weights, numerator_r = share_r ·
    need_r · damping_r, D = sum of numerators, x_r = min(need_r, Q · numerator_r /
    max(D, 0.0001)), each rounded down to a unit; the next tier gets Q - sum(x). As in the
    seed, D is published without its floor, a tier that finds nothing left publishes 0, and
    what caps and rounding leave is not handed out again inside of the tier.
    """
    return _divide(capacity, claims, _share_tier)


RULES: Final[dict[str, Rule]] = {
    "weighted-uniform": weighted_uniform,
    "proportional": proportional,
}
"""By the names that a slot states."""


@dataclass(frozen=True, slots=True)
class SlotTerms:
    """What is divided, by which rule, and at which prices (`xsc.terms.pricing`)."""

    capacity: int
    price_mutual: int
    price_one_way: int
    reserve: int
    rule: DivisionRule = "weighted-uniform"

    def __post_init__(self) -> None:
        assert self.capacity >= 0, "a capacity is not negative"
        assert 0 <= self.price_mutual <= self.price_one_way <= self.reserve, "a ladder rises"

    def rung(self, tier: Tier) -> int:
        """Return what a tier pays at least."""
        return Ladder(self.price_mutual, self.price_one_way, self.reserve).rung(tier)


@dataclass(frozen=True, slots=True)
class Bid:
    """One need as it takes part."""

    customer: bytes
    need: bytes
    quantity: int
    """The eligible quantity: of the need, its caps, its customer's credit and share the least."""
    price_max: int
    damping_ppm: int = PPM
    """Only `proportional` looks at it."""

    @property
    def key(self) -> tuple[bytes, bytes]:
        """What names the need: ids of needs are unique for a customer only."""
        return self.customer, self.need


@dataclass(frozen=True, slots=True)
class Line:
    """What a need is granted in one stage, and the price."""

    customer: bytes
    need: bytes
    tier: Tier
    quantity: int
    price: int


@dataclass(frozen=True, slots=True)
class SlotClearing:
    """The outcome of a clearing."""

    lines: tuple[Line, ...]
    """Those of stage 1, 2, 3, in each by customer and need."""
    tiers: tuple[TierResult, ...]
    """One a stage; that of stage 3 has neither denominator nor level."""
    payments: dict[bytes, int]
    """What each customer of stage 3 pays in all; its lines round this up, by less than 1 a unit."""

    def given(self) -> dict[tuple[bytes, bytes], int]:
        """Return the units of each need that got any, over all stages."""
        units = Counter[tuple[bytes, bytes]]()
        for line in self.lines:
            units[line.customer, line.need] += line.quantity
        return dict(units)


def salt_of(slot_id: bytes, at_ms: int) -> bytes:
    """Return the salt of all clearings of a slot on one day of UTC."""
    return tagged_sha256("clearing/salt", slot_id, (at_ms // _DAY_MS).to_bytes(8, "big"))


@lru_cache(maxsize=2**16)
def lot(salt: bytes, customer: bytes) -> bytes:
    """Return the hash by which ties fall: it stands in the place of the customer's id."""
    return tagged_sha256("clearing/lot", salt, customer)


def _auction(
    capacity: int, reserve: int, bids: Iterable[Bid], salt: bytes
) -> tuple[list[Line], dict[bytes, int]]:
    """Clear stage 3; the quantities of the bids are what earlier stages left of them."""
    ranked = sorted(
        (bid for bid in bids if bid.price_max >= reserve),
        key=lambda bid: (-bid.price_max, lot(salt, bid.customer), bid.need),
    )
    won, sold, unsold = Counter[bytes](), list[tuple[Bid, int]](), list[tuple[Bid, int]]()
    for bid in ranked:
        units = min(capacity, bid.quantity)
        capacity -= units
        if units:
            sold.append((bid, units))
            won[bid.customer] += units
        if units < bid.quantity:
            unsold.append((bid, bid.quantity - units))
    payments = {}
    for customer, units in won.items():
        left, payments[customer] = units, reserve * units
        for bid, waiting in unsold:
            if bid.customer != customer:
                more = min(left, waiting)
                left -= more
                payments[customer] += more * (bid.price_max - reserve)
            if not left:
                break
    # Who waits bids less than each unit that won, so no need pays above its bid, also rounded up.
    lines = [
        Line(*bid.key, OPEN, units, ceil_div(payments[bid.customer], won[bid.customer]))
        for bid, units in sold
    ]
    return lines, payments


def clear(
    slot: SlotTerms, needs: Sequence[Bid], weights: Mapping[bytes, Standing], salt: bytes
) -> SlotClearing:
    """Return what each need of one window of one slot is granted.

    Args:
        slot: its terms.
        needs: those that match it, in any order, each once; a quantity of zero takes no part.
        weights: tier and weight of the customers; one that is missing is a stranger.
        salt: under which ties fall.
    """
    assert len({bid.key for bid in needs}) == len(needs), "one bid a need"
    # A recognised customer is one claim, which is split among its needs by falling price.
    members: defaultdict[bytes, list[Bid]] = defaultdict(list)
    for bid in needs:
        tier = weights.get(bid.customer, STRANGER)[0]
        if tier != OPEN and bid.quantity and bid.price_max >= slot.rung(tier):
            members[bid.customer].append(bid)
    claims = [
        Claim(
            lot(salt, customer),
            *weights[customer],
            sum(bid.quantity for bid in of),
            of[0].damping_ppm,
        )
        for customer, of in members.items()
    ]
    division, lines = RULES[slot.rule](slot.capacity, claims), list[Line]()
    for claim, of in zip(claims, members.values(), strict=True):
        tier, units = claim.tier, division.allocations[claim.id]
        for bid in sorted(of, key=lambda bid: (-bid.price_max, bid.need)):
            if given := min(bid.quantity, units):
                lines.append(Line(*bid.key, tier, given, slot.rung(tier)))
            units -= given
    served = {(line.customer, line.need): line.quantity for line in lines}
    left = [replace(bid, quantity=bid.quantity - served.get(bid.key, 0)) for bid in needs]
    mutual, one_way, rest = division.tiers
    sold, payments = _auction(rest.capacity, slot.reserve, left, salt)
    total = sum(line.quantity for line in sold)
    auction = TierResult(OPEN, rest.capacity, total, Fraction(0), None)

    def place(line: Line) -> tuple[int, bytes, bytes]:
        return TIERS.index(line.tier), line.customer, line.need

    return SlotClearing(
        tuple(sorted([*lines, *sold], key=place)), (mutual, one_way, auction), payments
    )
