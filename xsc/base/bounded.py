"""A dict with a maximum size: a full one drops the least recently used entries.

Use it for whatever a node remembers for a while: caches, answers that may be asked for
again, marks of what happened lately. What must never be forgotten needs a bound that
refuses instead.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """A least-recently-used cache, which several holders (customers, peers) may share.

    A full one drops from the holder that has most, so that nobody can push out the entries of
    others; of holders that have the same, the one that came first loses. `get` and `put` use an
    entry; `in` and iteration do not. The newest entry stays, whatever its size. No value is None.

    Args:
        count_max: most entries, at least 1; None for any number.
        size_max: most that the sizes of all entries may add up to; None for any size.
        size_of: returns the size of a value; each counts 1 where sizes are not bounded.
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
        self._entries: dict[K, tuple[V, Hashable, int]] = {}
        self._keys: dict[Hashable, OrderedDict[K, None]] = {}
        """Of each holder, the least recently used first."""
        self._sizes: Counter[Hashable] = Counter()
        self.size = 0
        """The sum of the sizes of all entries."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        """Yield the keys, of each holder the least recently used first."""
        for keys in self._keys.values():
            yield from keys

    def get(self, key: K) -> V | None:
        """Return the value of a key, None where it is not kept."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._keys[entry[1]].move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, holder: Hashable = None, size: int | None = None) -> list[K]:
        """Keep a value in place of the one before; return the keys that were dropped for it.

        Args:
            key, value: the entry.
            holder: whose it is.
            size: of the value, where `size_of` does not say it.
        """
        self.pop(key)
        if size is None:
            size = 1 if self._size_max is None else self._size_of(value)
        dropped = self.make_room(size, holder)
        self._entries[key] = value, holder, size
        self._keys.setdefault(holder, OrderedDict())[key] = None
        self._sizes[holder] += size
        self.size += size
        return dropped

    def make_room(self, size: int = 0, holder: Hashable = None) -> list[K]:
        """Drop entries until there is room for one more of that size; return their keys."""

        def with_it(each: Hashable) -> int:
            return self._sizes[each] + (size if each == holder else 0)

        dropped: list[K] = []
        while self._entries and self._is_full(size):
            dropped.append(next(iter(self._keys[max(self._keys, key=with_it)])))
            self.pop(dropped[-1])
        return dropped

    def _is_full(self, size: int) -> bool:
        if self._count_max is not None and len(self._entries) >= self._count_max:
            return True
        return self._size_max is not None and self.size + size > self._size_max

    def pop(self, key: K) -> V | None:
        """Drop an entry; return its value, None where it was not kept."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        value, holder, size = entry
        del self._keys[holder][key]
        self._sizes[holder] -= size
        self.size -= size
        if not self._keys[holder]:
            del self._keys[holder], self._sizes[holder]
        return value

    def clear(self) -> None:
        """Drop all entries."""
        for key in list(self._entries):
            self.pop(key)
