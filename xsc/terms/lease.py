"""Capacity promised for a price: asked for by the customer, granted by the provider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from xsc.identity.envelope import Count, Id32, Record
from xsc.terms.quote import Kind, SlotId, Tier

OWN_STORAGE = b"\0" * 32
OWN_COMPUTE = b"\xff" * 32
"""The ids of a node's leases with itself."""


class Draw(Record):
    """Names what a clearing granted, as the customer of a lease on it read it in the state."""

    KIND: ClassVar[str] = "draw"

    slot: SlotId
    start_ms: Count
    """Of the slot's window."""
    end_ms: Count
    need: SlotId
    number: Count
    """Of the need."""
    tier: Tier
    """Of the first stage that served it."""


class LeaseRequest(Record):
    """Signed by the customer: for now under a quote, or on what a clearing granted.

    Either fixes the terms: later prices cannot touch them.
    """

    KIND: ClassVar[str] = "lease_request"

    lease_id: Id32
    """Made by the customer before the first send: the same id asks for the same lease."""
    provider: Id32
    customer: Id32
    kind: Kind
    quote: bytes | None
    """The provider's signed quote, whole, of a lease for now."""
    draw: Draw | None = None
    """What was granted, of a cleared lease."""
    quantity: Annotated[int, Field(gt=0, lt=2**63)]
    """Storage: bytes held at any one time. Compute: fuel steps, of a lease that a clearing granted
    those of each minute, of one for now those that may be billed under it."""
    quantity_min: Annotated[int, Field(gt=0, lt=2**63)]
    """A grant of less is of no use to the customer."""
    price: Count
    """Micro-credits a GiB and hour, or a Gfuel, at least what was quoted or granted (the auction
    may pay more)."""
    start_ms: Count
    end_ms: Count
    renews: Id32 | None = None
    """The lease whose bytes it keeps, of the same parties; None: new bytes."""

    @model_validator(mode="after")
    def _ordered(self) -> LeaseRequest:
        if self.end_ms <= self.start_ms:
            raise ValueError("the lease ends before it begins")
        if (self.quote is None) == (self.draw is None):
            raise ValueError("a lease is under a quote, or on what was granted")
        if self.quantity_min > self.quantity:
            raise ValueError("the least useful quantity is above the quantity")
        return self


class Lease(Record):
    """Signed by the provider over the customer's signed request."""

    KIND: ClassVar[str] = "lease"

    request: bytes
    """The customer's signed request, whole."""
    quantity: Annotated[int, Field(gt=0, lt=2**63)]
    """What was granted: between the request's least and its quantity."""
    granted_ms: Count
    clearing: Id32 | None = None
    """Id of the clearing record that granted a cleared lease; None for now."""


@dataclass(frozen=True, slots=True)
class RunTerms:
    """What a run under a lease costs, and its place among those of others."""

    price: int
    """Micro-credits a Gfuel."""
    tier: Tier
    """How the provider recognises the customer."""
    cleared: bool
    """Whether it is run at a rate that was granted ahead of use."""
