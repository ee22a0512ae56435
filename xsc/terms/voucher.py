"""What a provider counts of leases, and what its customer signs for (docs/design/market.md)."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Final

from pydantic import Field

from xsc.base import encoding, limits
from xsc.identity.envelope import Count, Id32, Record

_WIDE_BYTES: Final = 32
Wide = Annotated[bytes, Field(min_length=_WIDE_BYTES, max_length=_WIDE_BYTES)]
"""A number from 0 to 2^256 - 1, big-endian: byte-milliseconds pass 2^64 within a day."""


def wide(number: int) -> bytes:
    """Return the bytes of a wide number."""
    return number.to_bytes(_WIDE_BYTES, "big")


def number_of(raw: bytes) -> int:
    """Return the number of wide bytes."""
    return int.from_bytes(raw, "big")


class CountLine(Record):
    """One lease."""

    lease_id: Id32
    held_bytes: Count
    level: Count
    """What is kept free and billed by time: bytes, or fuel steps a second."""
    used: Wide
    """What is billed (`xsc.terms.pricing.worth`)."""
    end_ms: Count
    """When it ends, or ended."""


class LeaseCount(Record):
    """Signed by the provider: all leases of a customer that are not settled and forgotten.

    So it is its word, too, that it knows no other lease of that customer. It is not signed before
    what it says is on the provider's disk.
    """

    provider: Id32
    customer: Id32
    counted_ms: Count
    closed: Wide
    """What leases came to in all that are over and forgotten, in WORTHths of a micro-credit."""
    leases: Annotated[tuple[CountLine, ...], Field(max_length=limits.COUNT_LEASES_MAX)]
    amount_micro: Count
    """What all of it comes to, rounded down once."""


def leases_account(provider: bytes, customer: bytes) -> bytes:
    """Return the id of the account of all leases that a provider granted a customer."""
    return encoding.tagged_sha256("leases", provider, customer)


@lru_cache(maxsize=1024)
def off_books_account(payer: bytes, payee: bytes) -> bytes:
    """Return the account under which the payee signs what the payer paid off the books."""
    return encoding.tagged_sha256("off-books", payer, payee)


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


def voucher_in_all(account: bytes, customer: bytes, provider: bytes, amount_micro: int) -> Voucher:
    """Return the voucher that would say what something that nobody bought is worth in all."""
    return Voucher(
        account=account,
        provider=provider,
        customer=customer,
        number=1,
        amount_micro=amount_micro,
        until_ms=0,
        count=None,
    )
