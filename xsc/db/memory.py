"""The key-value port in memory, with the losses of a power failure.

It keeps two states: what readers see, and what the disk would hold. A synced
write makes every write before it durable; `crash` forgets the others.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from xsc.base.keyvalue import Change


class MemoryKeyValue:
    """An ordered map for tests and simulations."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        self._durable: dict[bytes, bytes] = {}
        self._unsynced: list[Change] = []
        self._closed = False

    def get(self, key: bytes, *, verify: bool = True) -> bytes | None:  # noqa: ARG002 (no sums)
        """Return the value of a key, or None."""
        assert not self._closed, "the store is closed"
        return self._values.get(key)

    def scan(
        self, start: bytes, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values with start <= key < stop, as they are at the call."""
        assert not self._closed, "the store is closed"
        first = bisect_left(self._keys, start)
        last = len(self._keys) if stop is None else bisect_left(self._keys, stop)
        found = [(key, self._values[key]) for key in self._keys[first:last]]
        return iter(reversed(found)) if reverse else iter(found)

    def write(self, changes: list[Change], *, sync: bool) -> None:
        """Apply all changes; with `sync`, they and all before them survive `crash`."""
        assert not self._closed, "the store is closed"
        for key, value in changes:
            if value is not None:
                if key not in self._values:
                    insort(self._keys, bytes(key))
                self._values[bytes(key)] = bytes(value)
            elif self._values.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]
        self._unsynced.extend(changes)
        if sync:
            self._settle()

    def _settle(self) -> None:
        for key, value in self._unsynced:
            if value is None:
                self._durable.pop(key, None)
            else:
                self._durable[bytes(key)] = bytes(value)
        self._unsynced.clear()

    def compact(self, start: bytes, stop: bytes) -> None:
        """Do nothing: deleted keys take no room."""

    def disk_bytes(self, start: bytes, stop: bytes) -> int:
        """Return the bytes of keys and values in a range: what is deleted takes none."""
        return sum(len(key) + len(value) for key, value in self.scan(start, stop))

    def close(self) -> None:
        """Refuse any later call until `reopen`. What was written is kept, as on a clean exit."""
        self._settle()
        self._closed = True

    def crash(self) -> None:
        """Lose the power and come back: every write after the last synced one is gone."""
        self._values = dict(self._durable)
        self._keys = sorted(self._values)
        self._unsynced.clear()
        self._closed = False

    def after_crash(self) -> MemoryKeyValue:
        """Return another store with what the disk would hold: all up to the last synced write."""
        kept = MemoryKeyValue()
        kept.write(list(self._durable.items()), sync=True)
        return kept

    def reopen(self) -> None:
        """Come back after `close`."""
        self._closed = False
