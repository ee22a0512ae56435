"""Dicts with a maximum size: a full one drops the least recently used entries.

Use them for whatever a node remembers for a while: caches, answers that may be asked for
again, marks of what happened lately. What must never be forgotten needs a bound that
refuses instead.

- `Bounded` drops the least recently used entry of all.
- `FairBounded` counts what each holder (a customer, a peer) has in it, and drops from the
  holder that has most, so that nobody can push out the entries of others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
H = TypeVar("H", bound=Hashable)


class Bounded(Generic[K, V]):
    """A least-recently-used cache.

    `get` and `put` use an entry; `in` and iteration do not. The newest entry stays, whatever
    its size. No value is None.

    Args:
        count_max: most entries, at least 1; None for any number.
        size_max: most that the sizes of all entries may add up to; None for any size.
        size_of: returns the size of a value, which must not change while it is kept.
    """

    def __init__(
        self,
        count_max: int | None = None,
        *,
        size_max: int | None = None,
        size_of: Callable[[V], int] = lambda _: 1,
    ) -> None:
        self._count_max = count_max
        self._size_max = size_max
        self._size_of = size_of
        self._entries: OrderedDict[K, V] = OrderedDict()
        """The least recently used first."""
        self._size = 0

    @property
    def size(self) -> int:
        """The sum of the sizes of all entries; 0 where sizes are not bounded."""
        return self._size

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        """Yield the keys, the least recently used first."""
        return iter(self._entries)

    def get(self, key: K) -> V | None:
        """Return the value of a key, None where it is not kept."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> list[K]:
        """Keep a value in place of the one before; return the keys that were dropped for it."""
        self.pop(key)
        size = 0 if self._size_max is None else self._size_of(value)
        dropped = self.make_room(size)
        self._entries[key] = value
        self._size += size
        return dropped

    def make_room(self, size: int = 0) -> list[K]:
        """Drop entries until there is room for one more of that size; return their keys."""
        dropped: list[K] = []
        while self._entries and self._is_full(size):
            key, value = self._entries.popitem(last=False)
            if self._size_max is not None:
                self._size -= self._size_of(value)
            dropped.append(key)
        return dropped

    def _is_full(self, size: int) -> bool:
        if self._count_max is not None and len(self._entries) >= self._count_max:
            return True
        return self._size_max is not None and self._size + size > self._size_max

    def pop(self, key: K) -> V | None:
        """Drop an entry; return its value, None where it was not kept."""
        value = self._entries.pop(key, None)
        if value is not None and self._size_max is not None:
            self._size -= self._size_of(value)
        return value

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self._size = 0


class FairBounded(Generic[H, K, V]):
    """A cache that holders share: a full one drops the oldest entry of the holder with most.

    "Oldest" is least recently used: `get` and `put` use an entry, `in` and iteration do not.
    Of holders that have the same, the one that came first loses. The newest entry stays,
    whatever its size. No value is None.

    Args:
        size_max: most that the sizes of all entries may add up to.
    """

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._size = 0
        self._entries: dict[K, tuple[H, V, int]] = {}
        self._keys: dict[H, OrderedDict[K, None]] = {}
        """Of each holder, the least recently used first."""
        self._sizes: Counter[H] = Counter()

    @property
    def size(self) -> int:
        """The sum of the sizes of all entries."""
        return self._size

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        """Yield the keys, in the order in which their values were put."""
        return iter(self._entries)

    def get(self, key: K) -> V | None:
        """Return the value of a key, None where it is not kept."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        holder, value, _ = entry
        self._keys[holder].move_to_end(key)
        return value

    def put(self, key: K, value: V, holder: H, size: int = 1) -> list[K]:
        """Keep a value in place of the one before; return the keys that were dropped for it."""
        self.pop(key)
        self._entries[key] = holder, value, size
        self._keys.setdefault(holder, OrderedDict())[key] = None
        self._sizes[holder] += size
        self._size += size
        dropped: list[K] = []
        while self._size > self._size_max and len(self._entries) > 1:
            dropped.append(self._next_to_drop(key))
            self.pop(dropped[-1])
        return dropped

    def _next_to_drop(self, newest: K) -> K:
        # The newest is its holder's last, so it comes first only where it is the only one.
        oldest = max(self._sizes, key=self._sizes.__getitem__)
        found = next(iter(self._keys[oldest]))
        if found != newest:
            return found
        others = (holder for holder in self._sizes if holder != oldest)
        return next(iter(self._keys[max(others, key=self._sizes.__getitem__)]))

    def pop(self, key: K) -> V | None:
        """Drop an entry; return its value, None where it was not kept."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        holder, value, size = entry
        keys = self._keys[holder]
        del keys[key]
        self._size -= size
        self._sizes[holder] -= size
        if not keys:
            del self._keys[holder], self._sizes[holder]
        return value

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self._keys.clear()
        self._sizes.clear()
        self._size = 0
