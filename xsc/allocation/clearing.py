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

A slot is cleared ahead of use. Three stages divide the capacity (C1 to C8):

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
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Final, TypeAlias

from xsc.base.encoding import tagged_sha256
from xsc.base.limits import PPM
from xsc.base.units import ceil_div
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

    def tier(self, tier: Tier) -> TierResult:
        """Return the result of one tier."""
        return self.tiers[TIERS.index(tier)]


Rule: TypeAlias = Callable[[int, Sequence[Claim]], Division]


def _weight(claim: Claim) -> int:
    return 1 if claim.tier == "open" else claim.weight


def _level(capacity: int, claims: Sequence[Claim]) -> Fraction | None:
    """Return L with sum(min(need, L · weight)) = capacity, or None where all needs fit.

    Claims are sated in the order of need / weight; the first that the rest of the
    capacity cannot sate fixes the level.
    """
    rest = capacity
    weights = sum(_weight(claim) for claim in claims)
    for claim in sorted(claims, key=lambda claim: Fraction(claim.need, _weight(claim))):
        if claim.need * weights > rest * _weight(claim):
            return Fraction(rest, weights)
        rest -= claim.need
        weights -= _weight(claim)
    return None


def _fill(capacity: int, claims: Sequence[Claim]) -> tuple[dict[bytes, int], Fraction | None]:
    """Return the units of each claim of one tier, and the level.

    The units up to the level are exactly those with weight / unit >= 1 / level, so they
    are the first that the unit-by-unit rule hands out. What is left by rounding down is
    less than one unit a claim, and is handed out by that rule itself.
    """
    level = _level(capacity, claims)
    if level is None:
        return {claim.id: claim.need for claim in claims}, None
    given = {
        claim.id: min(claim.need, level.numerator * _weight(claim) // level.denominator)
        for claim in claims
    }
    # (units + 1) / weight as an integer: two different fractions with denominators up to w
    # differ by 1 / w² at least, so scaled by w² they differ after rounding down as well.
    scale = max(_weight(claim) for claim in claims) ** 2
    waiting = [
        ((given[claim.id] + 1) * scale // _weight(claim), claim.id, claim)
        for claim in claims
        if given[claim.id] < claim.need
    ]
    heapq.heapify(waiting)
    for _ in range(capacity - sum(given.values())):
        _, _, claim = waiting[0]
        given[claim.id] += 1
        if given[claim.id] < claim.need:
            key = (given[claim.id] + 1) * scale // _weight(claim)
            heapq.heapreplace(waiting, (key, claim.id, claim))
        else:
            heapq.heappop(waiting)
    return given, level


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


def _fill_tier(_: Tier, capacity: int, claims: Sequence[Claim]) -> _Served:
    given, level = _fill(capacity, claims)
    return given, Fraction(sum(_weight(claim) for claim in claims)), level


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
        units: defaultdict[tuple[bytes, bytes], int] = defaultdict(int)
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


def _serve(
    tier: Tier,
    capacity: int,
    bids: Iterable[Bid],
    weights: Mapping[bytes, Standing],
    *,
    rule: DivisionRule,
    salt: bytes,
) -> tuple[dict[tuple[bytes, bytes], int], TierResult]:
    """Clear stage 1 or 2: one claim a customer, split among its needs by falling price."""
    needs: defaultdict[bytes, list[Bid]] = defaultdict(list)
    for bid in bids:
        needs[bid.customer].append(bid)
    claims = {
        customer: Claim(
            lot(salt, customer),
            tier,
            weights[customer][1],
            sum(bid.quantity for bid in members),
            members[0].damping_ppm,
        )
        for customer, members in needs.items()
    }
    division = RULES[rule](capacity, list(claims.values()))
    given: dict[tuple[bytes, bytes], int] = {}
    for customer, members in needs.items():
        units = division.allocations[claims[customer].id]
        for bid in sorted(members, key=lambda bid: (-bid.price_max, bid.need)):
            given[bid.key] = min(bid.quantity, units)
            units -= given[bid.key]
    return given, division.tier(tier)


class _Waiting:
    """The units that win nothing, by rank, and what so many of them would have gained."""

    def __init__(self) -> None:
        self._ends = [0]
        self._gains = [0]
        self._surplus: list[int] = []
        self._own: defaultdict[bytes, list[tuple[int, int, int]]] = defaultdict(list)

    def add(self, customer: bytes, units: int, surplus: int) -> None:
        """Add units of the next lower rank."""
        self._own[customer].append((self._ends[-1], units, surplus))
        self._ends.append(self._ends[-1] + units)
        self._gains.append(self._gains[-1] + units * surplus)
        self._surplus.append(surplus)

    def lost_by(self, customer: bytes, units: int) -> int:
        """Return what the units of a customer would have gained others: it skips its own."""
        most, own = units, 0
        for start, count, surplus in self._own.get(customer, ()):
            if start >= most:
                break
            most, own = most + count, own + count * surplus
        most = min(most, self._ends[-1])
        place = max(1, bisect_left(self._ends, most))
        beyond = self._ends[place] - most if place < len(self._ends) else 0
        return self._gains[place] - beyond * self._surplus[place - 1] - own if most else 0


def _auction(
    capacity: int, reserve: int, bids: Iterable[Bid], salt: bytes
) -> tuple[list[Line], dict[bytes, int]]:
    """Clear stage 3; the quantities of the bids are what earlier stages left of them."""
    ranked = sorted(
        (bid for bid in bids if bid.price_max >= reserve),
        key=lambda bid: (-bid.price_max, lot(salt, bid.customer), bid.need),
    )
    waiting, won = _Waiting(), defaultdict[bytes, int](int)
    sold: list[tuple[Bid, int]] = []
    for bid in ranked:
        units = min(capacity, bid.quantity)
        capacity -= units
        if units:
            sold.append((bid, units))
            won[bid.customer] += units
        if units < bid.quantity:
            waiting.add(bid.customer, bid.quantity - units, bid.price_max - reserve)
    lost = {customer: waiting.lost_by(customer, units) for customer, units in won.items()}
    # Who waits bids less than each unit that won, so no need pays above its bid, also rounded up.
    lines = [
        Line(*bid.key, OPEN, units, reserve + ceil_div(lost[bid.customer], won[bid.customer]))
        for bid, units in sold
    ]
    return lines, {customer: reserve * won[customer] + lost[customer] for customer in won}


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
    rest = slot.capacity
    lines: list[Line] = []
    tiers: list[TierResult] = []
    served: dict[tuple[bytes, bytes], int] = {}
    stages: tuple[tuple[Tier, int], ...] = (
        ("mutual", slot.price_mutual),
        ("one_way", slot.price_one_way),
    )
    for tier, price in stages:
        members = [
            bid
            for bid in needs
            if bid.quantity
            and bid.price_max >= price
            and weights.get(bid.customer, STRANGER)[0] == tier
        ]
        given, result = _serve(tier, rest, members, weights, rule=slot.rule, salt=salt)
        tiers.append(result)
        rest -= result.given
        served |= given
        lines += [Line(*key, tier, given[key], price) for key in sorted(given) if given[key]]
    left = [replace(bid, quantity=bid.quantity - served.get(bid.key, 0)) for bid in needs]
    sold, payments = _auction(rest, slot.reserve, left, salt)
    lines += sorted(sold, key=lambda line: (line.customer, line.need))
    tiers.append(TierResult(OPEN, rest, sum(line.quantity for line in sold), Fraction(0), None))
    return SlotClearing(tuple(lines), tuple(tiers), payments)
