"""Clears one window of one slot among the needs that match it, ahead of use.

Three stages divide the capacity (docs/design/allocation.md, C1 to C8):

1. Mutually recognised customers, at the price for them, by the slot's division rule.
2. Customers that the provider recognises, at the price for them, from what is left.
3. All that is still wanted at the reserve or more, by a Vickrey auction of units: the highest
   bids win, and a customer pays the reserve and what the others lose by its presence.

Ties fall by hashes of the customers' keys under a salt that follows from slot and day, so that
nobody draws again by publishing again.

Credit, caps and shares bound the quantity of a bid before it comes here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Final, TypeAlias

from xsc.allocation.tiers import RULES, Claim, TierResult
from xsc.base.encoding import tagged_sha256
from xsc.base.limits import PPM
from xsc.base.units import ceil_div
from xsc.terms.quote import Tier
from xsc.terms.slot import DivisionRule

OPEN: Final[Tier] = "open"
_DAY_MS: Final = 24 * 3_600_000
Standing: TypeAlias = tuple[Tier, int]
"""Tier and weight: mutual recognition in `mutual`, own recognition in `one_way`, 1 in `open`."""
STRANGER: Final[Standing] = (OPEN, 1)


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


def _divide(
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
        given, result = _divide(tier, rest, members, weights, rule=slot.rule, salt=salt)
        tiers.append(result)
        rest -= result.given
        served |= given
        lines += [Line(*key, tier, given[key], price) for key in sorted(given) if given[key]]
    left = [replace(bid, quantity=bid.quantity - served.get(bid.key, 0)) for bid in needs]
    sold, payments = _auction(rest, slot.reserve, left, salt)
    lines += sorted(sold, key=lambda line: (line.customer, line.need))
    tiers.append(TierResult(OPEN, rest, sum(line.quantity for line in sold), Fraction(0), None))
    return SlotClearing(tuple(lines), tuple(tiers), payments)
