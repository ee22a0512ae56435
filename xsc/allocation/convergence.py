"""Convergence: whether what a node grants has settled (docs/design/allocation.md, G6)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fractions import Fraction
from math import ceil
from typing import Final, TypeAlias

from xsc.base.limits import PPM
from xsc.terms.clearing import SlotDenominators, from_ratio
from xsc.terms.slot import Window

EPSILON_PPM: Final = 1_000
"""0.1 %: a denominator or level that changes by no more is stable."""
NETWORK_PPM: Final = 800_000

Shares: TypeAlias = Mapping[tuple[bytes, Window, str], tuple[Fraction, Fraction | None]]
"""By slot, window and tier, what the tier is divided by, and the units a unit of weight.

The latter is None where every need is sated."""


def shares_of(cleared: Collection[SlotDenominators]) -> Shares:
    """Return what is compared of the present clearings."""
    return {
        (slot.slot, slot.window, line.tier): (
            from_ratio(line.denominator),
            None if line.level is None else from_ratio(line.level),
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


def change_ppm(before: Shares, after: Shares) -> int:
    """Return the greatest relative change of a denominator or level, rounded up, at most PPM.

    What appears or vanishes has changed as a whole.
    """
    appeared = before.keys() != after.keys()
    moved = (
        _moved_ppm(*pair)
        for place in before.keys() & after.keys()
        for pair in zip(before[place], after[place], strict=True)
    )
    return PPM if appeared else max(moved, default=0)


def network_has_converged(flags: Mapping[bytes, bool]) -> bool:
    """Return whether 80 % of the nodes say that they have: an estimate, over those heard lately.

    Args:
        flags: what each known fresh participant says, this node among them.
    """
    return sum(flags.values()) * PPM >= NETWORK_PPM * len(flags)
