"""A bound on what all customers hold together, and on what each of them holds."""

from __future__ import annotations

from collections import Counter

from xsc.base.errors import RateLimited


class CustomerQuota:
    """Counts what each customer holds, against both bounds.

    Args:
        what: of what, to follow on "this node holds".
        total: for all customers together.
        each: for one customer.
    """

    def __init__(self, what: str, total: int, each: int) -> None:
        self._what = what
        self._left = total
        self._each = each
        self._held: Counter[bytes] = Counter()

    def take(self, customer: bytes, size: int) -> None:
        """Count so much more for a customer.

        Raises:
            RateLimited: that would be more than its share, or than there is.
        """
        if self._held[customer] + size > self._each:
            raise RateLimited(f"this node holds as much {self._what} of yours as it may")
        if size > self._left:
            raise RateLimited(f"this node holds as much {self._what} as it may")
        self._held[customer] += size
        self._left -= size

    def give(self, customer: bytes, size: int) -> None:
        """Count so much less."""
        self._left += size
        self._held[customer] -= size
        if not self._held[customer]:
            del self._held[customer]
