"""A queue that serves its customers round robin, first in, first out for each.

With one queue for all, a customer with 32 long runs would block the others.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items that wait: `take` serves the customers in turns."""

    def __init__(self) -> None:
        self._queues: OrderedDict[bytes, deque[T]] = OrderedDict()
        """No queue is empty; the first is that of the customer whose turn it is."""

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def add(self, customer: bytes, item: T) -> None:
        """Append an item to a customer's queue."""
        self._queues.setdefault(customer, deque()).append(item)

    def add_first(self, customer: bytes, item: T) -> None:
        """Put an item at the head of a customer's queue."""
        self._queues.setdefault(customer, deque()).appendleft(item)

    def first(self) -> T:
        """Return the next item; the queue must not be empty."""
        return next(iter(self._queues.values()))[0]

    def take(self) -> T:
        """Remove and return the next item; the turn passes to the next customer."""
        customer, queue = next(iter(self._queues.items()))
        item = queue.popleft()
        if queue:
            self._queues.move_to_end(customer)
        else:
            del self._queues[customer]
        return item

    def drop(self, customer: bytes, item: T) -> bool:
        """Remove an item; return False where it does not wait."""
        queue = self._queues.get(customer)
        if queue is None or item not in queue:
            return False
        queue.remove(item)
        if not queue:
            del self._queues[customer]
        return True

    def clear(self) -> list[T]:
        """Remove and return all items."""
        items = [item for queue in self._queues.values() for item in queue]
        self._queues.clear()
        return items
