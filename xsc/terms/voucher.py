"""What a customer owes under a lease, so far (docs/design/market.md: cumulative receipts)."""

from __future__ import annotations

from typing import ClassVar

from xsc.base.encoding import tagged_sha256
from xsc.identity.envelope import Count, Id32, Record


def off_books_lease(payer: bytes, payee: bytes) -> bytes:
    """Return the lease id under which the payee signs what the payer paid off the books.

    No lease may have it: what was paid would count as paid for the lease.
    """
    return tagged_sha256("off-books", payer, payee)


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
