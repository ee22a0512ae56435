"""A queue that serves its customers round robin: first in, first out for each of them.

With one queue for all, a customer that asks for 32 long runs would hold up the others.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Holds what waits: `take` serves the customers in turns."""

    def __init__(self) -> None:
        self._queues: OrderedDict[bytes, deque[T]] = OrderedDict()
        """None is empty; the first is the customer whose turn it is."""

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def add(self, customer: bytes, item: T) -> None:
        """Let something wait behind what that customer has waiting."""
        self._queues.setdefault(customer, deque()).append(item)

    def add_first(self, customer: bytes, item: T) -> None:
        """Let something wait before what that customer has waiting."""
        self._queues.setdefault(customer, deque()).appendleft(item)

    def first(self) -> T:
        """Return whose turn it is; something must wait."""
        return next(iter(self._queues.values()))[0]

    def take(self) -> T:
        """Take whose turn it is; the next turn is another customer's, where one waits."""
        customer, queue = next(iter(self._queues.items()))
        item = queue.popleft()
        if queue:
            self._queues.move_to_end(customer)
        else:
            del self._queues[customer]
        return item

    def drop(self, customer: bytes, item: T) -> bool:
        """Let something wait no more; False where it does not."""
        queue = self._queues.get(customer)
        if queue is None or item not in queue:
            return False
        queue.remove(item)
        if not queue:
            del self._queues[customer]
        return True

    def clear(self) -> list[T]:
        """Return all that waits, and let nothing wait any more."""
        items = [item for queue in self._queues.values() for item in queue]
        self._queues.clear()
        return items
