"""Clears one window of one slot among standing needs, ahead of use.

Three stages divide the capacity (docs/design/allocation.md, C1 to C8):

1. Mutually recognised customers, at the price for them, by the slot's division rule.
2. Customers that the provider recognises, at the price for them, from what is left.
3. All that is still wanted at the reserve or more, by VCG: the bids of greatest worth
   win, and each customer pays the reserve and what the others lose by its presence.

A need with a minimum gets that at least, or nothing. In stages 1 and 2, while the share of
a need is below its minimum, one such need leaves the stage and the rest is divided again:
the least recognised first, then by lot. Stage 3 chooses among all outcomes that meet the
minima. Ties fall by hashes of ids under a salt that the provider draws for the clearing:
customers choose their ids.

Credit, caps and shares bound the quantity of a bid before it comes here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

from xsc.allocation.tiers import RULES, Claim, TierResult
from xsc.base.encoding import tagged_sha256
from xsc.base.limits import AUCTION_LOOKS_MAX, AUCTION_STEPS_MAX, LEAVING_TURNS_MAX, PPM
from xsc.base.units import ceil_div
from xsc.terms.quote import Tier
from xsc.terms.slot import DivisionRule

OPEN: Final[Tier] = "open"


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
    """One need as it takes part. A customer's needs have one tier and one weight."""

    customer: bytes
    need: bytes
    tier: Tier
    weight: int
    """Mutual recognition in `mutual`, own recognition in `one_way`; not looked at in `open`."""
    quantity: int
    """The eligible quantity: of the need, its caps, its customer's credit and share the least."""
    quantity_min: int
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
    left: tuple[tuple[bytes, bytes], ...]
    """Needs that left stage 1 or 2 for their minimum, in the order of leaving."""

    def given(self) -> dict[tuple[bytes, bytes], int]:
        """Return the units of each need that got any, over all stages."""
        units: defaultdict[tuple[bytes, bytes], int] = defaultdict(int)
        for line in self.lines:
            units[line.customer, line.need] += line.quantity
        return dict(units)


@lru_cache(maxsize=2**16)
def lot(salt: bytes, *ids: bytes) -> bytes:
    """Return the hash that stands for ids where ids decide."""
    return tagged_sha256("clearing/lot", salt, *ids)


def _split(members: Sequence[Bid], units: int) -> dict[tuple[bytes, bytes], int]:
    """Split a customer's units among its needs: the highest price first, then by id."""
    split = {}
    for bid in sorted(members, key=lambda bid: (-bid.price_max, bid.need)):
        split[bid.key] = min(bid.quantity, units)
        units -= split[bid.key]
    return split


def _divide(
    tier: Tier, capacity: int, bids: Sequence[Bid], rule: DivisionRule, salt: bytes
) -> tuple[dict[tuple[bytes, bytes], int], TierResult]:
    """Divide once, without a look at minima: one claim a customer."""
    needs: defaultdict[bytes, list[Bid]] = defaultdict(list)
    for bid in bids:
        needs[bid.customer].append(bid)
    claims = {
        customer: Claim(
            lot(salt, customer),
            tier,
            members[0].weight,
            sum(bid.quantity for bid in members),
            members[0].damping_ppm,
        )
        for customer, members in needs.items()
    }
    division = RULES[rule](capacity, list(claims.values()))
    units: dict[tuple[bytes, bytes], int] = {}
    for customer, members in needs.items():
        units |= _split(members, division.allocations[claims[customer].id])
    return units, division.tier(tier)


def _by_recognition(
    tier: Tier, capacity: int, bids: Sequence[Bid], rule: DivisionRule, salt: bytes
) -> tuple[dict[tuple[bytes, bytes], int], TierResult, list[tuple[bytes, bytes]]]:
    """Clear stage 1 or 2: return the units, the result, and who left for its minimum.

    One need leaves a turn. After LEAVING_TURNS_MAX turns half of all that are short leave.
    """
    members = list(bids)
    left: list[tuple[bytes, bytes]] = []
    turn = 0
    while True:
        units, result = _divide(tier, capacity, members, rule, salt)
        # A need of which nothing is served takes from nobody: it stays, and may be served yet.
        short = [bid for bid in members if 0 < units[bid.key] < bid.quantity_min]
        if not short:
            return units, result, left
        short.sort(key=lambda bid: (bid.weight, lot(salt, *bid.key)))
        # Each turn looks at all: who recomputes the clearing takes so many, and hardly more.
        leaving = 1 if turn < LEAVING_TURNS_MAX else ceil_div(len(short), 2)
        gone = [bid.key for bid in short[:leaving]]
        left += gone
        turn += 1
        members = [bid for bid in members if bid.key not in gone]


@dataclass(frozen=True, slots=True)
class _Step:
    """A bid of the auction: what a unit of it is worth beyond the reserve, and how many."""

    key: tuple[bytes, bytes]
    surplus: int
    least: int
    most: int


def _skipping(capacity: int, steps: Sequence[_Step]) -> list[int]:
    """Serve by falling price, and nothing to whom less than its minimum is left."""
    units = []
    for step in steps:
        units.append(min(capacity, step.most) if capacity >= step.least else 0)
        capacity -= units[-1]
    return units


def _worth(steps: Sequence[_Step], units: Sequence[int]) -> tuple[int, int, Sequence[int]]:
    """Return what outcomes are compared by: the surplus in all, the units, then bid by bid."""
    surplus = sum(step.surplus * count for step, count in zip(steps, units, strict=True))
    return surplus, sum(units), units


def _visits(looks: int) -> int:
    """Return how many divisions a search may try, of which each looks at so many bids."""
    return min(AUCTION_STEPS_MAX, AUCTION_LOOKS_MAX // max(1, looks))


def _best(capacity: int, steps: Sequence[_Step], visits: int) -> list[int]:
    """Return the units of greatest worth that meet every minimum that they serve.

    Without minima the bids are served by falling price. Otherwise at most one bid, the
    marginal one, is served below its minimum: either it gets nothing, or its minimum
    first; both are tried, as far as they may be worth more than the best that is known.
    After so many visits the best that was found stands.

    Args:
        capacity: what there is.
        steps: by falling surplus, those of one surplus in the order of ties.
        visits: how many divisions are tried.
    """
    best = _skipping(capacity, steps)
    most = _worth(steps, best)
    pending: list[tuple[frozenset[int], frozenset[int]]] = [(frozenset(), frozenset())]
    while pending and visits:
        visits -= 1
        sure, out = pending.pop()
        units = [step.least if index in sure else 0 for index, step in enumerate(steps)]
        rest = capacity - sum(units)
        if rest < 0:
            continue
        for index, step in enumerate(steps):
            if index not in out:
                more = min(rest, step.most - units[index])
                units[index] += more
                rest -= more
        worth = _worth(steps, units)
        if worth <= most:
            continue
        short = next((i for i, step in enumerate(steps) if 0 < units[i] < step.least), None)
        if short is None:
            best, most = units, worth
        else:
            pending += [(sure, out | {short}), (sure | {short}, out)]
    return best


def _waiting(
    capacity: int, steps: Sequence[_Step], units: Sequence[int]
) -> list[tuple[_Step, int]] | None:
    """Return the steps that are not served in full, by rank, and what each has.

    None where a minimum was in the way: then something is left, or a later step was served.
    """
    first = next(n for n, step in enumerate(steps) if units[n] < step.most)
    if sum(units) < capacity or any(units[first + 1 :]):
        return None
    return list(zip(steps[first:], units[first:], strict=True))


def _gain(freed: int, customer: bytes, waiting: Sequence[tuple[_Step, int]]) -> int | None:
    """Return what the others gain by the units of a customer; None where a minimum is in the way.

    The units go to those that wait, in their order; so does `_best`, as long as all minima are met.
    """
    gain = 0
    for step, count in waiting:
        if step.key[0] != customer:
            more = min(freed, step.most - count)
            if 0 < count + more < step.least:
                return None
            gain += more * step.surplus
            freed -= more
            if not freed:
                break
    return gain


def _auction(
    capacity: int, reserve: int, bids: Iterable[Bid], salt: bytes
) -> tuple[list[Line], dict[bytes, int]]:
    """Clear stage 3 by VCG; the quantities of the bids are what earlier stages left of them."""
    ranked = sorted(
        (bid for bid in bids if bid.price_max >= reserve),
        key=lambda bid: (-bid.price_max, lot(salt, *bid.key)),
    )
    steps = [
        _Step(bid.key, bid.price_max - reserve, bid.quantity_min, min(bid.quantity, capacity))
        for bid in ranked
        if bid.quantity_min <= capacity
    ]
    units = _best(capacity, steps, _visits(len(steps)))
    worth = _worth(steps, units)[0]
    scarce = sum(step.most for step in steps) > capacity
    own: defaultdict[bytes, int] = defaultdict(int)
    won: defaultdict[bytes, int] = defaultdict(int)
    for step, count in zip(steps, units, strict=True):
        if count:
            own[step.key[0]] += step.surplus * count
            won[step.key[0]] += count
    lost = dict.fromkeys(own, 0)
    if scarce:
        waiting = _waiting(capacity, steps, units)
        visits = _visits(len(steps) * len(own))
        for customer in own:
            gain = None if waiting is None else _gain(won[customer], customer, waiting)
            if gain is None:
                others = [step for step in steps if step.key[0] != customer]
                gain = _worth(others, _best(capacity, others, visits))[0] - (worth - own[customer])
            # Between the bounds by itself, unless a search was cut short.
            lost[customer] = max(0, min(own[customer], gain))
    lines = []
    for step, count in zip(steps, units, strict=True):
        if count:
            customer, need = step.key
            # By surplus, so that no need pays above its own bid, also rounded up.
            share = lost[customer] and ceil_div(lost[customer] * step.surplus, own[customer])
            lines.append(Line(customer, need, OPEN, count, reserve + share))
    return lines, {customer: reserve * won[customer] + lost[customer] for customer in own}


def clear_slot(terms: SlotTerms, bids: Sequence[Bid], salt: bytes) -> SlotClearing:
    """Return what each need of one window of one slot is granted.

    A bid whose quantity is below its minimum, or zero, takes no part.

    Args:
        terms: the slot's.
        bids: those that match it, in any order, at most one for each need.
        salt: under which ties fall.
    """
    assert len({bid.key for bid in bids}) == len(bids), "one bid a need"
    taking = [bid for bid in bids if bid.quantity >= max(1, bid.quantity_min)]
    rest = terms.capacity
    lines: list[Line] = []
    tiers: list[TierResult] = []
    left: list[tuple[bytes, bytes]] = []
    served: dict[tuple[bytes, bytes], int] = {}
    stages: tuple[tuple[Tier, int], ...] = (
        ("mutual", terms.price_mutual),
        ("one_way", terms.price_one_way),
    )
    for tier, price in stages:
        members = [bid for bid in taking if bid.tier == tier and bid.price_max >= price]
        units, result, gone = _by_recognition(tier, rest, members, terms.rule, salt)
        left += gone
        tiers.append(result)
        rest -= result.given
        served |= units
        lines += [
            Line(customer, need, tier, units[customer, need], price)
            for customer, need in sorted(units)
            if units[customer, need]
        ]
    residual = [_less(bid, served.get(bid.key, 0)) for bid in taking]
    sold, payments = _auction(rest, terms.reserve, [bid for bid in residual if bid.quantity], salt)
    lines += sorted(sold, key=lambda line: (line.customer, line.need))
    tiers.append(TierResult(OPEN, rest, sum(line.quantity for line in sold), Fraction(0), None))
    return SlotClearing(tuple(lines), tuple(tiers), payments, tuple(left))


def _less(bid: Bid, served: int) -> Bid:
    """Return what is still wanted; a minimum that is met asks for nothing more."""
    if not served:
        return bid
    return Bid(
        bid.customer,
        bid.need,
        bid.tier,
        bid.weight,
        bid.quantity - served,
        0,
        bid.price_max,
        bid.damping_ppm,
    )
