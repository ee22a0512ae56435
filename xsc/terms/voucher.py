"""What a customer owes a provider, so far (docs/design/market.md: counts and vouchers)."""

from __future__ import annotations

from xsc.base.encoding import tagged_sha256
from xsc.identity.envelope import Count, Id32, Record


def leases_account(provider: bytes, customer: bytes) -> bytes:
    """Return the id of the account of all leases that a provider granted a customer."""
    return tagged_sha256("leases", provider, customer)


def off_books_account(payer: bytes, payee: bytes) -> bytes:
    """Return the account under which the payee signs what the payer paid off the books."""
    return tagged_sha256("off-books", payer, payee)


class Voucher(Record):
    """Signed by the customer. The highest number wins; losing all but the last changes nothing."""

    account: Id32
    provider: Id32
    customer: Id32
    number: Count
    """Rises with every voucher of an account."""
    amount_micro: Count
    """Micro-credits owed in all in this account; never falls."""
    until_ms: Count
    """Up to when that is."""
    count: Id32 | None
    """The id of the provider's count that it pays; None off the books."""
