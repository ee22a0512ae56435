"""Remembers the orders that a provider accepted: none runs twice, and answers can be repeated.

An order is remembered while it runs, and for as long as its date would be accepted. Its
answer is kept for a while longer, as far as there is room; a full store drops the oldest
answer of the customer that has most.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar

from xsc.base.bounded import Bounded
from xsc.base.errors import RateLimited
from xsc.base.limits import KIB, MIB, PEER_REQUESTS_A_SECOND_MAX, REQUEST_WINDOW_MS

ORDERS_REMEMBERED_A_PEER_MAX = PEER_REQUESTS_A_SECOND_MAX * (REQUEST_WINDOW_MS // 1000 + 2)
"""As many as its quota lets a customer bring, so that only orders dated ahead are refused by it."""
ORDERS_REMEMBERED_MAX = 2 * ORDERS_REMEMBERED_A_PEER_MAX
ANSWERS_KEPT_BYTES_MAX = 64 * MIB
"""Answers to orders that are kept to be given again."""
ANSWER_COST_BYTES = 2 * KIB
"""What an answer counts beside its bytes: objects take more than what they say."""

R = TypeVar("R")
Slot: TypeAlias = tuple[bytes, bytes]
"""Customer and nonce."""


@dataclass(slots=True)
class AcceptedOrder(Generic[R]):
    """An order that was accepted."""

    order_id: bytes
    created_ms: int
    run: R | None
    """What runs or has run; None where the answer is no longer kept."""


class AcceptedOrders(Generic[R]):
    """The orders of one provider. Times are its wall time."""

    def __init__(self) -> None:
        self._known: dict[Slot, AcceptedOrder[R]] = {}
        self._of_customer: Counter[bytes] = Counter()
        self._due: list[tuple[int, Slot]] = []
        """When what has ended may be forgotten, as a heap."""
        self._answers: Bounded[Slot, Literal[True]] = Bounded(size_max=ANSWERS_KEPT_BYTES_MAX)
        """The orders whose answers are kept."""

    def __len__(self) -> int:
        return len(self._known)

    def runs(self) -> Iterator[R]:
        """Yield what runs or has run, where it is still kept."""
        return (known.run for known in self._known.values() if known.run is not None)

    def find(self, slot: Slot) -> AcceptedOrder[R] | None:
        """Return the order of that customer and nonce, if it is remembered."""
        return self._known.get(slot)

    def check_room(self, customer: bytes, now_ms: int) -> None:
        """Forget expired orders, and return if there is room for another.

        Raises:
            RateLimited: more orders are remembered than may be, of this customer or in all.
        """
        while self._due and self._due[0][0] <= now_ms:
            self.drop(heapq.heappop(self._due)[1])
        if (
            self._of_customer[customer] >= ORDERS_REMEMBERED_A_PEER_MAX
            or len(self._known) >= ORDERS_REMEMBERED_MAX
        ):
            raise RateLimited("too many orders within the request window")

    def add(self, slot: Slot, order_id: bytes, created_ms: int, run: R) -> AcceptedOrder[R]:
        """Remember an order whose run begins now."""
        known = self._known[slot] = AcceptedOrder(order_id, created_ms, run)
        self._of_customer[slot[0]] += 1
        return known

    def drop(self, slot: Slot) -> None:
        """Forget an order that failed. It was not billed, so it may be sent again."""
        if self._known.pop(slot, None) is None:
            return
        self._of_customer[slot[0]] -= 1
        if not self._of_customer[slot[0]]:
            del self._of_customer[slot[0]]
        self._answers.pop(slot)

    def ended(self, slot: Slot, size_bytes: int, now_ms: int) -> None:
        """Keep the answer to an order that has ended, and drop the oldest answers for it.

        Args:
            slot: the order; one that was dropped meanwhile stays so.
            size_bytes: of the answer.
            now_ms: it is remembered for a request window from now, so that who was waiting can
                ask again, and at least until its date would be refused.
        """
        known = self._known.get(slot)
        if known is None:
            return
        last_ms = max(now_ms, known.created_ms) + REQUEST_WINDOW_MS
        heapq.heappush(self._due, (last_ms + 1, slot))
        for oldest in self._answers.put(slot, True, slot[0], size_bytes + ANSWER_COST_BYTES):
            self._known[oldest].run = None
