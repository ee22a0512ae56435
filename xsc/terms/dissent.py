"""Two providers' receipts for one order that cannot both be true (docs/design/compute.md)."""

from __future__ import annotations

from xsc.identity.envelope import Count, Id32, Record


class Dissent(Record):
    """Signed by the customer that gave both orders, which differ in provider and lease alone."""

    customer: Id32
    first: bytes
    """The signed execution receipt of one provider, whole."""
    second: bytes
    """Of another: same engine and configuration, another outcome."""
    found_ms: Count
