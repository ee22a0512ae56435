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

What a need is granted in two stages is one line, of the first of them, at the mean price.

Ties fall by hashes of the customers' keys under a salt that follows from slot and day, so that
nobody draws again by publishing again.

Credit, caps and shares bound the quantity of a bid before it comes here.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from xsc.base import encoding, limits
from xsc.base.units import ceil_div
from xsc.terms import clearing, quote
from xsc.terms.slot import AvailabilitySlot, DivisionRule

TIERS: Final[tuple[quote.Tier, ...]] = ("mutual", "one_way", "open")
DENOMINATOR_FLOOR: Final = 100
"""Least denominator of `proportional`, in millionths of a unit: it never divides by zero."""
_DAY_MS: Final = 24 * 3_600_000
Pin: TypeAlias = tuple[bytes, bytes]
"""A customer and one of its needs: ids of needs are unique for a customer only."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one node wants of the capacity, and its tier and weight."""

    id: bytes
    tier: quote.Tier
    weight: int
    need: int
    damping_ppm: int = limits.PPM
    """How much of the need is active; only `proportional` looks at it."""

    def __post_init__(self) -> None:
        assert self.need >= 0, "a need is not negative"
        assert self.weight > 0, "a claim has weight"
        assert 0 <= self.damping_ppm <= limits.PPM, "damping is a share"


@dataclass(frozen=True, slots=True)
class Division:
    """The result of a division."""

    allocations: dict[bytes, int]
    """By id; every claim is listed, also with 0."""
    tiers: tuple[clearing.TierLine, ...]
    """`mutual`, `one_way`, `open`, always all three."""


def weighted_uniform(capacity: int, claims: Sequence[Claim]) -> tuple[dict[bytes, int], int]:
    """Serve a tier by water-filling, up to the level L with sum(min(need, L · weight)) = capacity.

    Claims are sated in the order of need / weight; the first that the rest of the capacity cannot
    sate fixes the level. The units up to it are exactly those with weight / unit >= 1 / level, so
    they are the first that the unit-by-unit rule hands out. What is left by rounding down is less
    than one unit a claim, and is handed out by that rule itself. It takes O(n log n).
    """
    rest, weights = capacity, sum(claim.weight for claim in claims)
    denominator = weights
    for claim in sorted(claims, key=lambda claim: Fraction(claim.need, claim.weight)):
        if claim.need * weights > rest * claim.weight:
            break
        rest -= claim.need
        weights -= claim.weight
    else:
        return {claim.id: claim.need for claim in claims}, denominator
    given = {claim.id: min(claim.need, rest * claim.weight // weights) for claim in claims}
    waiting = [
        (Fraction(given[claim.id] + 1, claim.weight), claim.id, claim)
        for claim in claims
        if given[claim.id] < claim.need
    ]
    heapq.heapify(waiting)
    for _ in range(capacity - sum(given.values())):
        first = heapq.heappop(waiting)[2]
        given[first.id] += 1
        if given[first.id] < first.need:
            again = Fraction(given[first.id] + 1, first.weight)
            heapq.heappush(waiting, (again, first.id, first))
    return given, denominator


def proportional(capacity: int, claims: Sequence[Claim]) -> tuple[dict[bytes, int], int]:
    """Serve a tier in proportion to weight times need.

    With Q left: share_r = weight_r / sum of weights, numerator_r = share_r · need_r · damping_r,
    D = sum of numerators, x_r = min(need_r, Q · numerator_r / max(D, 0.0001)), each rounded down
    to a unit; the next tier gets Q - sum(x). As in the seed, D is published without its floor, a
    tier that finds nothing left publishes 0, and what caps and rounding leave is not handed out
    again inside of the tier. Numerators are in millionths here, all times the sum of weights.
    """
    if not claims or (capacity == 0 and claims[0].tier != "mutual"):
        return {}, 0
    weights = sum(claim.weight for claim in claims)
    numerators = {claim.id: claim.weight * claim.need * claim.damping_ppm for claim in claims}
    total = sum(numerators.values())
    least = max(total, DENOMINATOR_FLOOR * weights)
    given = {
        claim.id: min(claim.need, capacity * numerators[claim.id] // least) for claim in claims
    }
    return given, total // weights


RULES: Final[
    Mapping[DivisionRule, Callable[[int, Sequence[Claim]], tuple[Mapping[bytes, int], int]]]
] = {"weighted-uniform": weighted_uniform, "proportional": proportional}
"""By the names that a slot states; each gives units by claim, and the denominator, of a tier."""


def divide(
    capacity: int, claims: Sequence[Claim], rule: DivisionRule = "weighted-uniform"
) -> Division:
    """Divide tier after tier; each gets what those before it left."""
    assert capacity >= 0, "a capacity is not negative"
    assert len({claim.id for claim in claims}) == len(claims), "one claim an id"
    allocations, tiers = {claim.id: 0 for claim in claims}, []
    for tier in TIERS:
        members = [claim for claim in claims if claim.tier == tier and claim.need > 0]
        units, denominator = RULES[rule](capacity, members)
        allocations.update(units)
        given = sum(units.values())
        line = clearing.TierLine(tier=tier, capacity=capacity, given=given, denominator=denominator)
        tiers.append(line)
        capacity -= given
    return Division(allocations, tuple(tiers))


@dataclass(frozen=True, slots=True)
class Bid:
    """One need as it takes part."""

    customer: bytes
    need: bytes
    quantity: int
    """The eligible quantity: of the need, its caps, its customer's credit and share the least."""
    price_max: int
    tier: quote.Tier = "open"
    weight: int = 1
    """Tier and weight of its customer."""
    damping_ppm: int = limits.PPM
    """Only `proportional` looks at it."""

    @property
    def pin(self) -> Pin:
        """What names the need."""
        return self.customer, self.need


class Granted(NamedTuple):
    """What a need is granted."""

    tier: quote.Tier
    """Of the first stage that serves it."""
    quantity: int
    price: int
    """Of two stages the mean, rounded up. Where needs go unserved it can be above the reserve: what
    others lose by it is charged, or it would cost nothing to state a higher price."""


@dataclass(frozen=True, slots=True)
class SlotClearing:
    """The outcome of a clearing."""

    lines: dict[Pin, Granted]
    """Of the needs that are granted something."""
    tiers: tuple[clearing.TierLine, ...]
    """One a stage; that of stage 3 has no denominator."""
    payments: dict[bytes, int]
    """What each customer of stage 3 pays in all; its lines round this up, by less than 1 a unit."""


def salt_of(slot_id: bytes, at_ms: int) -> bytes:
    """Return the salt of all clearings of a slot on one day of UTC."""
    return encoding.tagged_sha256("clearing/salt", slot_id, (at_ms // _DAY_MS).to_bytes(8, "big"))


@lru_cache(maxsize=2**16)
def lot(salt: bytes, customer: bytes) -> bytes:
    """Return the hash by which ties fall: it stands in the place of the customer's id."""
    return encoding.tagged_sha256("clearing/lot", salt, customer)


def _auction(
    capacity: int, reserve: int, bids: Iterable[Bid], left_of: Mapping[Pin, int], salt: bytes
) -> tuple[dict[Pin, Granted], dict[bytes, int]]:
    """Clear stage 3: of each bid what earlier stages left of it."""
    ranked = sorted(
        (bid for bid in bids if bid.price_max >= reserve),
        key=lambda bid: (-bid.price_max, lot(salt, bid.customer), bid.need),
    )
    won, sold, unsold = Counter[bytes](), dict[Pin, int](), list[tuple[Bid, int]]()
    for bid in ranked:
        units = min(capacity, left_of[bid.pin])
        capacity -= units
        if units:
            sold[bid.pin] = units
            won[bid.customer] += units
        unsold.append((bid, left_of[bid.pin] - units))
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
    prices = {customer: ceil_div(payments[customer], units) for customer, units in won.items()}
    return {pin: Granted("open", units, prices[pin[0]]) for pin, units in sold.items()}, payments


def clear(slot: AvailabilitySlot, capacity: int, needs: Sequence[Bid], salt: bytes) -> SlotClearing:
    """Return what each need of one window of one slot is granted.

    Args:
        slot: its prices and rule.
        capacity: what is divided.
        needs: those that match it, in any order, each once; a quantity of zero takes no part.
        salt: under which ties fall.
    """
    assert len({bid.pin for bid in needs}) == len(needs), "one bid a need"
    # A recognised customer is one claim, which is split among its needs by falling price.
    members: defaultdict[bytes, list[Bid]] = defaultdict(list)
    for bid in sorted(needs, key=lambda bid: (-bid.price_max, bid.need)):
        if bid.tier != "open" and bid.quantity and bid.price_max >= slot.ladder.rung(bid.tier):
            members[bid.customer].append(bid)
    claims = [
        Claim(
            lot(salt, customer),
            of[0].tier,
            of[0].weight,
            sum(bid.quantity for bid in of),
            of[0].damping_ppm,
        )
        for customer, of in members.items()
    ]
    division, lines = divide(capacity, claims, slot.rule), dict[Pin, Granted]()
    left = {bid.pin: bid.quantity for bid in needs}
    for claim, of in zip(claims, members.values(), strict=True):
        units = division.allocations[claim.id]
        for bid in of:
            if given := min(bid.quantity, units):
                lines[bid.pin] = Granted(bid.tier, given, slot.ladder.rung(bid.tier))
            units -= given
            left[bid.pin] -= given
    mutual, one_way, rest = division.tiers
    sold, payments = _auction(rest.capacity, slot.reserve, needs, left, salt)
    for pin, more in sold.items():
        one = lines.get(pin, Granted("open", 0, 0))
        units = one.quantity + more.quantity
        cost = one.quantity * one.price + more.quantity * more.price
        lines[pin] = Granted(one.tier, units, ceil_div(cost, units))
    total = sum(line.quantity for line in sold.values())
    auction = rest.model_copy(update={"given": total})
    return SlotClearing(lines, (mutual, one_way, auction), payments)
