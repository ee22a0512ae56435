"""What a provider asks of one customer: signed and time-bound (docs/design/market.md)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator

from xsc.base.limits import SLOT_ID_BYTES
from xsc.identity.envelope import Count, Id32, Record

Kind = Literal["storage", "compute"]
Tier = Literal["mutual", "one_way", "open"]
Label = Annotated[str, Field(max_length=64)]
SlotId = Annotated[bytes, Field(min_length=SLOT_ID_BYTES, max_length=SLOT_ID_BYTES)]


UNITS: Final[dict[Kind, str]] = {
    "storage": "GiB and hour",
    "compute": "Gfuel",
}
"""What a price is for, in words (`xsc.terms.pricing`)."""


class Quote(Record):
    """A price ladder and the rung on which the customer stands.

    Prices are micro-credits, of storage a GiB and hour; of compute a Gfuel, which is
    10^9 units of fuel for each begun 64 MiB of the memory limit.
    """

    KIND: ClassVar[str] = "quote"

    provider: Id32
    customer: Id32
    kind: Kind
    tier: Tier
    price_mutual: Count
    """For mutually recognised peers (p1)."""
    price_one_way: Count
    """For peers that the provider recognises (p2)."""
    reserve: Count
    """For everybody else."""
    price: Count
    """The rung of `tier`: what this customer pays at least."""
    available: Count
    """What this customer may still reserve: bytes of storage, or fuel steps (fuel times memory
    steps) a minute of compute, of which nothing is reserved: it is what is left."""
    valid_from_ms: Count
    valid_until_ms: Count
    nonce: Annotated[bytes, Field(min_length=16, max_length=16)]
    site: Label = ""
    """Failure domain: where the provider stands; empty where unknown."""
    owner: Label = ""
    """Failure domain: who runs the provider; empty where unknown."""

    @model_validator(mode="after")
    def _ladder(self) -> Quote:
        if not self.price_mutual <= self.price_one_way <= self.reserve:
            raise ValueError("the price ladder must not fall: mutual <= one-way <= reserve")
        rung = {
            "mutual": self.price_mutual,
            "one_way": self.price_one_way,
            "open": self.reserve,
        }[self.tier]
        if self.price != rung:
            raise ValueError("the price is not the rung of its tier")
        if self.valid_until_ms <= self.valid_from_ms:
            raise ValueError("the quote ends before it begins")
        return self
