"""What a provider signs of leases that it does not know: when it counts for their customer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from xsc.base.limits import REQUEST_WINDOW_MS
from xsc.terms.lease_denial import LeaseDenial

REASON: Final = "the host has signed that it does not know the lease"


def check_denial(
    denial: LeaseDenial, *, provider: bytes, customer: bytes, asked: Collection[bytes], now_ms: int
) -> str | None:
    """Return what is wrong with a denial that a provider gave to a question."""
    if (denial.provider, denial.customer) != (provider, customer):
        return "the denial is between other nodes"
    if not set(denial.leases) <= set(asked):
        return "the denial is of leases that were not asked for"
    if abs(denial.denied_ms - now_ms) > REQUEST_WINDOW_MS:
        return "the denial is of another time"
    return None
