"""The words that slots, leases and prices share."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from xsc.base.limits import SLOT_ID_BYTES

Kind = Literal["storage", "compute"]
KINDS: Final[tuple[Kind, ...]] = ("storage", "compute")
UNITS: Final[dict[Kind, str]] = {"storage": "GiB and hour", "compute": "Gfuel"}
"""What a price is for, in words (`xsc.terms.pricing`)."""
Tier = Literal["mutual", "one_way", "open"]
Label = Annotated[str, Field(max_length=64)]
SlotId = Annotated[bytes, Field(min_length=SLOT_ID_BYTES, max_length=SLOT_ID_BYTES)]
