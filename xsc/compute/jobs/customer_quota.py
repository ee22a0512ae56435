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
        self._shared: Counter[tuple[bytes, bytes]] = Counter()
        """How often a customer holds what counts once."""

    def take(self, customer: bytes, size: int, shared: bytes | None = None) -> None:
        """Count so much more for a customer.

        Args:
            customer: who holds it.
            size: of what it holds.
            shared: names it where the customer may hold it several times, and it counts once.

        Raises:
            RateLimited: that would be more than its share, or than there is.
        """
        if shared is None or not self._shared[customer, shared]:
            if self._held[customer] + size > self._each:
                raise RateLimited(f"this node holds as much {self._what} of yours as it may")
            if size > self._left:
                raise RateLimited(f"this node holds as much {self._what} as it may")
            self._held[customer] += size
            self._left -= size
        if shared is not None:
            self._shared[customer, shared] += 1

    def give(self, customer: bytes, size: int, shared: bytes | None = None) -> None:
        """Count so much less."""
        if shared is not None:
            self._shared[customer, shared] -= 1
            if self._shared[customer, shared]:
                return
            del self._shared[customer, shared]
        self._left += size
        self._held[customer] -= size
        if not self._held[customer]:
            del self._held[customer]
