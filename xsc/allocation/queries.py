"""What people ask about allocation, computed from what has been published and recorded.

The eleven groups are those of the commons: who recognises whom, who offers, who needs, who is
there. Why a need came out at a slot as it did is said in sentences, and what would have changed
that is found by clearing again with that one thing changed, so it is what would have happened and
not a guess (docs/design/allocation.md, W1).

All functions here are plain: from what a node knows to what it shows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Final, Literal, TypeAlias

from xsc.allocation.clearing import STRANGER, Bid, SlotTerms, Standing, clear
from xsc.allocation.clearing_record import Checked, Published, parties
from xsc.allocation.matching import Party, piece, windows_of
from xsc.allocation.recognition import tier_of
from xsc.base.limits import MUTUAL_RECOGNITION_THRESHOLD_PPM, PPM
from xsc.base.units import ceil_div, format_credits, format_level, format_share
from xsc.terms.clearing import TwoTierAllocationState, from_ratio
from xsc.terms.quote import Kind, Tier
from xsc.terms.slot import STEP, AvailabilitySlot, Commitment, Entitlement, NeedSlot, Window

NETWORK_PPM: Final = 800_000
_SHARE_STEP_PPM: Final = 1000
"""Shares are shown with one decimal; a bound is rounded up, so that it suffices."""
What: TypeAlias = Literal["mutual", "one_way", "price"]
_CHANGES: Final[Mapping[What, tuple[str, Callable[[int], str]]]] = {
    "mutual": ("mutual recognition", format_share),
    "one_way": ("recognition by the provider", format_share),
    "price": ("a greatest price", format_credits),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A slot and a need of two nodes, as each sees the other."""

    slot: AvailabilitySlot
    provider: Party
    need: NeedSlot
    customer: Party


def pairs_of(provider: Published, customer: Published, one: bytes | None = None) -> Iterator[Pair]:
    """Return the pairs of what two nodes have published; those of one slot or need where given."""
    there, here = parties(provider, customer)
    for slot, need in product(provider.commitment.slots, customer.commitment.needs):
        if one in (None, slot.slot_id, need.slot_id):
            yield Pair(slot, there, need, here)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that, alone, would have given the need more."""

    what: What
    bound: int
    """The least recognition in ppm, or the least greatest price."""
    quantity: int
    """What the need would have been granted."""

    def said(self, kind: Kind) -> str:
        """Return it as a sentence."""
        what, shown = _CHANGES[self.what]
        bound = self.bound
        if self.what != "price":
            bound = min(PPM, ceil_div(bound, _SHARE_STEP_PPM) * _SHARE_STEP_PPM)
        return f"{what} of {shown(bound)} would have given it {_shown(kind, self.quantity)}"


@dataclass(frozen=True, slots=True)
class Explained:
    """One need in one window of one slot; in none where nothing of the slot was cleared for it."""

    pair: Pair
    because: str
    clearing: bytes | None = None
    window: Window | None = None
    tier: Tier | None = None
    """How the provider stood to the customer; None where the need took no part."""
    weight: int | None = None
    eligible: int | None = None
    """The need, its cap and what credit and shares left of it, the least of these."""
    stages: tuple[tuple[Tier, int, int], ...] = ()
    """What each stage gave it, in units, and its price."""
    changes: tuple[Change, ...] = ()

    @property
    def quantity(self) -> int:
        """The units granted in all."""
        return sum(units for _, units, _ in self.stages)


def _shown(kind: Kind, steps: int) -> str:
    return format_level(kind, steps * STEP[kind])


def changes_of(
    terms: SlotTerms, bids: Sequence[Bid], weights: Mapping[bytes, Standing], salt: bytes, bid: Bid
) -> list[Change]:
    """Return each change that, alone, would have given one of the bids more.

    Found by halving, and so the least one where more recognition or a higher price never serves
    less.
    """

    def given(what: What, bound: int) -> int:
        told, changed = list(bids), dict(weights)
        if what == "price":
            told = [replace(each, price_max=bound) if each == bid else each for each in bids]
        else:  # the whole customer is served in the tier: its needs stand there together
            changed[bid.customer] = (what, bound)
        return clear(terms, told, changed, salt).given().get(bid.key, 0)

    now = given("price", bid.price_max)
    if now >= bid.quantity:
        return []
    top = max(terms.reserve, *(each.price_max for each in bids)) + 1
    tries: dict[What, range] = {
        "one_way": range(1, PPM + 1),
        "mutual": range(MUTUAL_RECOGNITION_THRESHOLD_PPM, PPM + 1),
        "price": range(bid.price_max + 1, top + 1),
    }
    tier, weight = weights.get(bid.customer, STRANGER)
    if tier == "mutual":
        del tries["one_way"]
    if tier != "open":
        tries[tier] = range(weight + 1, PPM + 1)
    changes = []
    for what, bounds in tries.items():
        if bounds and given(what, bounds[-1]) > now:
            least = bounds[bisect_left(bounds, now + 1, key=partial(given, what))]
            changes.append(Change(what, least, given(what, least)))
    return changes


def explain(row: Explained, checked: Checked, drawn: int) -> Explained:
    """Return why a need was granted what a clearing record says, or why it took no part.

    Args:
        row: the slot and the need, as they are now.
        checked: the clearing.
        drawn: steps that the need has drawn of the window.
    """
    terms, bids, weights, salt = checked.game
    customer, need_id = row.pair.customer.node, row.pair.need.slot_id
    bid = next((each for each in bids if each.key == (customer, need_id)), None)
    if bid is None:
        return replace(row, because=_absence(row.pair, checked, drawn))
    taking = checked.record.participants
    lines = [(each.customer, line) for each in taking for line in each.lines]
    stages = tuple(line[1:] for taker, line in lines if (taker, line[0]) == bid.key)
    need = _needs_of(checked, customer)[need_id]
    tier, weight = weights.get(customer, STRANGER)
    asked = checked.record.slot.ladder.rung(tier)
    if sum(units for _, units, _ in stages) < bid.quantity:
        if bid.price_max < asked:
            because = (
                f"it pays at most {format_credits(bid.price_max)}, and the slot asks "
                f"{format_credits(asked)} of the tier {tier}"
            )
        elif len(stages) == len(lines):
            because = "the slot has no more"
        elif tier == "open":
            because = "others are recognised, or bid more"
        else:
            because = (
                f"the rest went to others: it stands in the tier {tier} with {format_share(weight)}"
            )
    elif bid.quantity == need.most(checked.record.provider) < need.quantity:
        because = "all that it asked for of this provider was there"
    elif bid.quantity < need.quantity:
        because = (
            f"it asks for {_shown(need.kind, need.quantity)}, and its customer's credit and "
            "share, what it took of others, and other windows leave no more"
        )
    else:
        because = "all that it asked for was there"
    changes = changes_of(terms, bids, weights, salt, bid)
    return replace(
        row,
        because=because,
        tier=tier,
        weight=weight,
        eligible=bid.quantity,
        stages=stages,
        changes=tuple(changes),
    )


def _needs_of(checked: Checked, customer: bytes) -> dict[bytes, NeedSlot]:
    """Return the needs of a customer, as its provider saw them when it cleared."""
    said = (each.commitment.needs for each in checked.customers if each.node == customer)
    return {need.slot_id: need for need in next(said, ())}


def _absence(pair: Pair, checked: Checked, drawn: int) -> str:
    """Return why a need that matches a slot took no part in a clearing: what fails first, now."""
    need, customer, record = pair.need, pair.customer.node, checked.record
    time = piece(record.window, windows_of(need), kind=need.kind, now_ms=record.at_ms)
    seen = _needs_of(checked, customer).get(need.slot_id)
    if time is None:
        return "this window of the slot overlaps none of the need"
    if drawn:
        has = _shown(need.kind, drawn)
        return f"it has drawn {has} and keeps that; only the rest was cleared"
    if need.cap(pair.provider.node) == 0:
        return "others fill it, so it takes nothing more of this provider"
    if customer in record.left_out:
        return "its provider had no room for all customers, and left this one out"
    if seen is None or seen.number != need.number:
        return "its provider had not seen the need as it is now when it cleared"
    if pair.customer.tier == "open" and time[0] > record.at_ms:
        return "what begins later is granted only to customers that the provider recognises"
    return (
        "its provider found nothing of it eligible: other slots fill the need, its customer's "
        "credit or share is used up, or it took no lease on what it was granted"
    )


@dataclass(frozen=True, slots=True)
class Participant:
    """What is known of another node."""

    commitment: Commitment
    weight_ppm: int
    """What this node gives to it."""
    their_weight_ppm: int
    """What it gives to this node."""
    is_fresh: bool
    """Whether it was heard of lately."""
    state: TwoTierAllocationState | None

    @property
    def is_active(self) -> bool:
        """Whether it was heard of lately, and offers or needs something."""
        return self.is_fresh and bool(self.commitment.slots or self.commitment.needs)

    @property
    def has_converged(self) -> bool:
        """Whether what it grants has settled; who has no slots or no state grants nothing."""
        return not self.commitment.slots or self.state is None or self.state.converged

    @property
    def tier(self) -> Tier:
        """The tier on which this node serves it."""
        return tier_of(self.weight_ppm, self.their_weight_ppm)


GROUPS: Final[Mapping[str, Callable[[Participant], object]]] = {
    "my_mutual_recognition": lambda each: each.weight_ppm and each.their_weight_ppm,
    "my_mutual_beneficiaries": lambda each: each.tier == "mutual",
    "my_non_mutual_beneficiaries": lambda each: each.tier == "one_way",
    "mutual_providers_for_me": lambda each: each.tier == "mutual" and each.commitment.slots,
    "non_mutual_providers_for_me": lambda each: (
        each.tier != "mutual" and each.their_weight_ppm and each.commitment.slots
    ),
    "mutual_beneficiaries_with_needs": lambda each: each.tier == "mutual" and each.commitment.needs,
    "non_mutual_beneficiaries_with_needs": lambda each: (
        each.tier == "one_way" and each.commitment.needs
    ),
    "all_mutual_partners": lambda each: each.tier == "mutual",
    "active_participants": lambda each: each.is_active,
    "oscillating_participants": lambda each: each.commitment.damping_ppm < PPM,
    "has_system_converged": lambda each: each.is_active and each.has_converged,
}
"""By name, which participants belong to a group."""


def groups(known: Mapping[bytes, Participant]) -> dict[str, list[bytes]]:
    """Return the eleven groups."""
    return {
        name: sorted(node for node, each in known.items() if belongs(each))
        for name, belongs in GROUPS.items()
    }


def network_has_converged(flags: Mapping[bytes, bool]) -> bool:
    """Return whether 80 % of the nodes say that they have: an estimate, over those heard lately.

    Args:
        flags: what each known fresh participant says, this node among them.
    """
    return sum(flags.values()) * PPM >= NETWORK_PPM * len(flags)


def is_open(window: Window, now_ms: int) -> bool:
    """Return whether a moment is within a window."""
    return window[0] <= now_ms < window[1]


def granted_level(each: Entitlement, drawn: int, now_ms: int) -> int:
    """Return the steps that an entitlement grants now: what has lapsed is what was drawn of it."""
    if not is_open(each.window, now_ms):
        return 0
    return each.quantity if now_ms < each.until_ms else min(drawn, each.quantity)


def denominator_of(raw: tuple[bytes, bytes]) -> int | str:
    """Return a published denominator as JSON has it: a number where it is whole."""
    value = from_ratio(raw)
    return value.numerator if value.denominator == 1 else str(value)
