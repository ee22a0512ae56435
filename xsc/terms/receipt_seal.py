"""One signature of a host under several storage receipts that it gave at once."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from xsc.base.limits import SEALED_RECEIPTS_MAX
from xsc.identity.envelope import Id32, Record


class ReceiptSeal(Record):
    """Signed by the host: each storage receipt of these ids is its word, as if signed alone."""

    KIND: ClassVar[str] = "receipt_seal"

    host: Id32
    customer: Id32
    receipts: Annotated[tuple[Id32, ...], Field(min_length=1, max_length=SEALED_RECEIPTS_MAX)]
    """Record ids of the receipts."""
