"""What a node has published of what it offers, needs and recognises, and how two nodes stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, TypeAlias

from xsc.allocation.recognition import read_weights, tier_of
from xsc.base.limits import KIB
from xsc.identity.envelope import Id32
from xsc.terms import quote, slot
from xsc.terms.clearing import Named, SpaceValue

CLEARING_VALUE_BYTES = 4 * KIB
"""What a value that a clearing record names counts at least, so that they are not too many."""

Said: TypeAlias = tuple[Id32, SpaceValue, SpaceValue | None]
"""A node, its commitment, and its recognition where it has one."""

_PARTICIPANT_BYTES = 256
"""Of a participant, beside what it published and what grows with its needs."""
_NEED_BYTES = 192
"""Of a need: what is eligible, and its line of the state."""


def charged(size_bytes: int) -> int:
    """Return what a value counts of CLEARINGS_BYTES_MAX."""
    return max(size_bytes, CLEARING_VALUE_BYTES)


@dataclass(frozen=True, slots=True)
class Published:
    """What a node published, parsed, and the space records that sign it."""

    node: bytes
    commitment: slot.Commitment
    commitment_value: SpaceValue
    weights: Mapping[bytes, int] = field(default_factory=dict)
    """What it gives to others, in ppm."""
    recognition_value: SpaceValue | None = None

    @property
    def values(self) -> list[SpaceValue]:
        """What records name of it: its commitment, and its recognition where it has one."""
        return [value for value in self.said[1:] if value is not None]

    @property
    def size_bytes(self) -> int:
        """What it takes of what is kept, with what is granted to it."""
        values = sum(charged(len(each.record) + len(each.value)) for each in self.values)
        return _PARTICIPANT_BYTES + _NEED_BYTES * len(self.commitment.needs) + values

    @classmethod
    def read(cls, node: bytes, commitment: SpaceValue, recognition: SpaceValue | None) -> Self:
        """Return what a node published; who signed it is not checked.

        Raises:
            TooLarge, RecordInvalid: a value is none of its kind.
        """
        said = slot.Commitment.read(commitment.value) if commitment.value else slot.Commitment()
        weights = {} if recognition is None else read_weights(node, recognition.value)
        return cls(node, said, commitment, weights, recognition)

    @property
    def said(self) -> Said:
        """What `read` makes it from."""
        return self.node, self.commitment_value, self.recognition_value

    @property
    def named(self) -> Named:
        """How records name it."""
        recognition = None if self.recognition_value is None else self.recognition_value.name
        return self.node, self.commitment_value.name, recognition


def standing(provider: Published, customer: Published) -> tuple[quote.Tier, int]:
    """Return the tier and weight of a customer at a provider."""
    mine = provider.weights.get(customer.node, 0)
    if not mine:
        return "open", 1
    theirs = customer.weights.get(provider.node, 0)
    tier = tier_of(mine, theirs)
    return tier, min(mine, theirs) if tier == "mutual" else mine
