"""Capacity promised for a price: asked for by the customer, granted by the provider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from xsc.identity.envelope import Count, Id32, Record
from xsc.terms.quote import Kind, SlotId, Tier

OWN_STORAGE = b"\0" * 32
OWN_COMPUTE = b"\xff" * 32
"""The ids of a node's leases with itself."""
Level = Annotated[int, Field(ge=0, lt=2**63)]
"""Bytes held at any one time, or fuel steps a second."""


class LeaseHandle(NamedTuple):
    """A lease to use; one with oneself costs nothing."""

    node: Id32
    """The provider; this node's own id where it is its own."""
    lease_id: Id32
    price: Count = 0
    """Micro-credits a GiB and hour, or a Gfuel."""


class LeaseRequest(Record):
    """Signed by the customer, on what a clearing granted or for now. It fixes the price.

    A request with the id of a lease renews that: what is held stays where it is.
    """

    lease_id: Id32
    """Made by the customer before the first send: the same request gets the same lease."""
    provider: Id32
    customer: Id32
    kind: Kind
    slot: SlotId
    """Of the provider, as it is published."""
    window: tuple[Count, Count]
    """Of the slot."""
    tier: Tier
    """On which the provider serves the customer."""
    need: SlotId | None = None
    """Of the customer, to which a clearing granted it; None: it is needed for now."""
    number: Count = 0
    """Of the need; 0 for now."""
    renews: bool = False
    """Whether its provider has the lease: one that lost its disk does not grant it anew."""
    level: Level = 0
    """What is kept free; 0 for now."""
    price: Count
    """Micro-credits a GiB and hour, or a Gfuel: at least what is asked or was granted (the auction
    may pay more)."""
    start_ms: Count
    end_ms: Count

    @property
    def cleared(self) -> bool:
        """Whether a clearing granted it ahead of use."""
        return self.need is not None

    @model_validator(mode="after")
    def _is_one(self) -> LeaseRequest:
        if self.end_ms <= self.start_ms:
            raise ValueError("the lease ends before it begins")
        if self.cleared != (self.level > 0):
            raise ValueError("a cleared lease has a level, and one for now has none")
        return self


class Lease(Record):
    """Signed by the provider over the customer's signed request."""

    request: bytes
    """The customer's signed request, whole."""
    level: Level
    """What was granted, up to the level of the request; 0 for now."""
    clearing: Id32 | None = None
    """Id of the clearing record that granted a cleared lease."""


@dataclass(frozen=True, slots=True)
class RunTerms:
    """What a run under a lease costs, and its place among those of others."""

    price: int
    """Micro-credits a Gfuel."""
    tier: Tier
    """How the provider recognises the customer."""
    cleared: bool
    """Whether it is run at a rate that was granted ahead of use."""
