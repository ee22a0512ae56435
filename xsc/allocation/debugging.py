"""The functions that the commons exposed in a browser's console, for a Python prompt."""

from __future__ import annotations

from collections.abc import Mapping

from xsc.allocation.clearing import Bid, SlotClearing, SlotTerms, Standing, clear
from xsc.allocation.queries import Participant, groups
from xsc.allocation.recognition import mutual_ppm, tier_of
from xsc.base.ids import to_text
from xsc.space.itc import join_events as itc_join
from xsc.space.itc import leq as itc_leq
from xsc.space.itc import split as itc_fork
from xsc.space.itc import tick as itc_event
from xsc.terms.slot import Commitment

__all__ = ["compute_allocation", "debug_allocation", "itc_event", "itc_fork", "itc_join", "itc_leq"]


def debug_allocation(known: Mapping[bytes, Participant]) -> dict[str, list[str]]:
    """Return the eleven groups with ids as people see them."""
    return {name: [to_text(node) for node in nodes] for name, nodes in groups(known).items()}


def compute_allocation(
    provider: bytes,
    commitment: Commitment,
    weights: Mapping[bytes, Mapping[bytes, int]],
    commitments: Mapping[bytes, Commitment],
    salt: bytes = bytes(32),
) -> dict[bytes, SlotClearing]:
    """Return what each slot of a provider would give to all needs of its kind, by slot.

    It looks at neither times, places nor filters, draws or credit: those are `granting`'s.

    Args:
        provider: whose slots they are.
        commitment: of the provider.
        weights: by node, what it gives to others in ppm.
        commitments: of the others.
        salt: of the lots.
    """
    found = {}
    for slot in commitment.slots:
        bids = []
        standings: dict[bytes, Standing] = {}
        for node, said in sorted(commitments.items()):
            mine = weights.get(provider, {}).get(node, 0)
            theirs = weights.get(node, {}).get(provider, 0)
            tier = tier_of(mine, theirs)
            weight = {"mutual": mutual_ppm(mine, theirs), "one_way": mine, "open": 1}[tier]
            standings[node] = tier, weight
            bids += [
                Bid(
                    node,
                    need.slot_id,
                    min(need.quantity, need.cap(provider)),
                    need.price_max,
                    said.damping_ppm,
                )
                for need in said.needs
                if need.kind == slot.kind and node != provider
            ]
        terms = SlotTerms(
            slot.quantity, slot.price_mutual, slot.price_one_way, slot.reserve, slot.rule
        )
        found[slot.slot_id] = clear(terms, bids, standings, salt)
    return found
