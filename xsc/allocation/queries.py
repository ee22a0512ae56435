"""What people ask about nodes and what they grant, computed from what has been published.

The eleven groups are those of the commons: who recognises whom, who offers, who needs, who is
there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from xsc.allocation.recognition import tier_of
from xsc.base.limits import PPM
from xsc.terms import clearing, quote, slot

NETWORK_PPM: Final = 800_000


@dataclass(frozen=True, slots=True)
class Participant:
    """What is known of another node."""

    commitment: slot.Commitment
    weight_ppm: int
    """What this node gives to it."""
    their_weight_ppm: int
    """What it gives to this node."""
    is_fresh: bool
    """Whether it was heard of lately."""
    state: clearing.TwoTierAllocationState | None

    @property
    def is_active(self) -> bool:
        """Whether it was heard of lately, and offers or needs something."""
        return self.is_fresh and bool(self.commitment.slots or self.commitment.needs)

    @property
    def has_converged(self) -> bool:
        """Whether what it grants has settled; who has no slots or no state grants nothing."""
        return not self.commitment.slots or self.state is None or self.state.converged

    @property
    def tier(self) -> quote.Tier:
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
