"""What a customer owes under a lease, so far (DESIGN section 9: cumulative receipts)."""

from __future__ import annotations

from typing import ClassVar

from xsc.identity.envelope import Count, Id32, Record


class Voucher(Record):
    """Signed by the customer. The highest number wins; losing all but the last changes nothing."""

    KIND: ClassVar[str] = "voucher"

    lease_id: Id32
    provider: Id32
    customer: Id32
    number: Count
    """Rises with every voucher of a lease."""
    amount_micro: Count
    """Micro-credits owed in all under this lease; never falls."""
    quantity: Count
    """Storage: byte-epochs begun. Compute: fuel steps used. Never falls."""
    until_ms: Count
