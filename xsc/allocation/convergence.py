"""Convergence: whether what a node grants has settled (docs/design/allocation.md, G6)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Final, TypeAlias

from xsc.base.limits import PPM
from xsc.terms.clearing import SlotDenominators, from_ratio
from xsc.terms.slot import Window

EPSILON_PPM: Final = 1_000
"""0.1 %: a denominator or level that changes by no more is stable."""
NETWORK_PPM: Final = 800_000

Place: TypeAlias = tuple[bytes, Window, str]
"""A slot, a window and a tier."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a tier of a window is divided by, and the units a unit of weight."""

    denominator: Fraction
    level: Fraction | None
    """None where every need is sated."""


def shares_of(cleared: Collection[SlotDenominators]) -> dict[Place, Share]:
    """Return what is compared of the present clearings."""
    return {
        (slot.slot, slot.window, line.tier): Share(
            from_ratio(line.denominator), None if line.level is None else from_ratio(line.level)
        )
        for slot in cleared
        for line in slot.tiers
    }


def _moved_ppm(before: Fraction | None, after: Fraction | None) -> int:
    if before == after:
        return 0
    if not before or after is None:
        return PPM
    return min(PPM, ceil(abs(after - before) * PPM / before))


def change_ppm(before: Mapping[Place, Share], after: Mapping[Place, Share]) -> int:
    """Return the greatest relative change of a denominator or level, rounded up, at most PPM.

    What appears or vanishes has changed as a whole.
    """
    return max(
        (
            PPM
            if place not in before or place not in after
            else max(
                _moved_ppm(before[place].denominator, after[place].denominator),
                _moved_ppm(before[place].level, after[place].level),
            )
            for place in before.keys() | after.keys()
        ),
        default=0,
    )


def has_converged(
    before: Mapping[Place, Share], after: Mapping[Place, Share], *, pending: bool
) -> bool:
    """Return whether a node's clearings have settled.

    Args:
        before: of the last computation.
        after: of this one.
        pending: whether an offer or a rejection is still to be considered in own slots.
    """
    return not pending and change_ppm(before, after) <= EPSILON_PPM


def network_has_converged(flags: Mapping[bytes, bool]) -> bool:
    """Return whether 80 % of the nodes say that they have: an estimate, over those heard lately.

    Args:
        flags: what each known fresh participant says, this node among them.
    """
    return sum(flags.values()) * PPM >= NETWORK_PPM * len(flags)
