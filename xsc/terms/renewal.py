"""A lease that goes on: asked for by the customer, signed by both, under the same id."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from xsc.identity.envelope import Count, Id32, Record


class RenewalRequest(Record):
    """Signed by the customer: what the lease came to so far, and what holds from here on."""

    KIND: ClassVar[str] = "renewal_request"

    lease_id: Id32
    provider: Id32
    customer: Id32
    number: Annotated[int, Field(ge=1, lt=2**63)]
    """The first renewal of a lease is 1."""
    quote: bytes
    """The provider's signed quote, whole: the price from here on."""
    quantity: Annotated[int, Field(gt=0, lt=2**63)]
    quantity_min: Annotated[int, Field(gt=0, lt=2**63)]
    price: Count
    """Micro-credits a GiB and hour, at least the quote's."""
    base_quantity: Count
    """Byte-epochs used so far: they cost what was agreed before."""
    base_amount_micro: Count
    """What these come to."""
    start_ms: Count
    end_ms: Count

    @model_validator(mode="after")
    def _ordered(self) -> RenewalRequest:
        if self.end_ms <= self.start_ms:
            raise ValueError("the lease ends before it is renewed")
        if self.quantity_min > self.quantity:
            raise ValueError("the least useful quantity is above the quantity")
        return self


class Renewal(Record):
    """Signed by the provider over the customer's signed request."""

    KIND: ClassVar[str] = "renewal"

    request: bytes
    """The customer's signed request, whole."""
    quantity: Annotated[int, Field(gt=0, lt=2**63)]
    """What was granted: between the request's least and its quantity."""
    renewed_ms: Count
