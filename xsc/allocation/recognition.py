"""Recognition: how much of its weight a node gives to each peer, and what two weights say together.

A node has 1 000 000 ppm to give. Mutual recognition is the lesser of both
weights; it counts from a threshold on, because otherwise a crumb of
reciprocity would jump the whole queue (docs/design/allocation.md). Recognition is a
budgeted report, not a truthful one: nothing here proves that it is deserved.

The weights are a value in the space of the node (docs/design/space.md), whose record has the
owner, the sequence and the signature. This module only decides; `xsc.allocation.commitments` reads
and writes the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from xsc.base import errors, limits, units
from xsc.identity.envelope import Id32, Record
from xsc.terms import quote, slot

Weight = Annotated[int, Field(gt=0, le=limits.PPM)]


class Recognition(Record):
    """All weights that a node gives."""

    weights: Annotated[tuple[tuple[Id32, Weight], ...], Field(max_length=limits.PEERS_MAX)]
    """Peers by rising id with what they are given, in ppm; an absent peer is given nothing."""

    @model_validator(mode="after")
    def _budget(self) -> Recognition:
        slot.check_rising("peers", [peer for peer, _ in self.weights])
        # Never made to fit in silence: a sum above the whole is a false statement.
        if sum(ppm for _, ppm in self.weights) > limits.PPM:
            raise ValueError(f"the weights are above {limits.PPM} ppm together")
        return self


def value_of(weights: Mapping[bytes, int]) -> bytes:
    """Return weights as the space has them."""
    return Recognition(weights=tuple(sorted(weights.items()))).to_bytes()


def read_weights(owner: bytes, value: bytes) -> dict[bytes, int]:
    """Return the weights that an owner has in its space.

    Raises:
        TooLarge, RecordInvalid: the value breaks a rule.
    """
    weights = dict(Recognition.from_bytes(value).weights)
    if owner in weights:
        raise errors.RecordInvalid("a node does not recognise itself")
    return weights


def with_weight(weights: Mapping[bytes, int], peer: bytes, ppm: int) -> dict[bytes, int]:
    """Return the weights with one of them set; 0 takes it away.

    Raises:
        ArgumentInvalid: out of range, more than the budget, or more peers than are kept.
    """
    changed = {other: weight for other, weight in weights.items() if other != peer}
    left = limits.PPM - sum(changed.values())
    if not 0 <= ppm <= left:
        raise errors.ArgumentInvalid(
            f"only {units.format_share(left)} of the recognition is left to give",
            hint="lower the weight of another peer first",
        )
    if ppm:
        changed[peer] = ppm
    if len(changed) > limits.PEERS_MAX:
        raise errors.ArgumentInvalid(f"at most {limits.PEERS_MAX} peers can be recognised")
    return changed


def tier_of(mine: int, theirs: int) -> quote.Tier:
    """Return the tier of a peer, from the own weight for it and its weight for this node."""
    if min(mine, theirs) >= limits.MUTUAL_RECOGNITION_THRESHOLD_PPM:
        return "mutual"
    return "one_way" if mine > 0 else "open"
