"""The two-tier division of one capacity among claims.

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

Both are exact: no floats, no order of input, no state. Slot matching, filters
and the history behind the damping factor are not decided here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias

from xsc.base.limits import PPM
from xsc.terms.quote import Tier

TIERS: Final[tuple[Tier, ...]] = ("mutual", "one_way", "open")
DENOMINATOR_FLOOR: Final = Fraction(1, 10_000)
"""Least denominator of `proportional`, so that it never divides by zero."""


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
