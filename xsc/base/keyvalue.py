"""The ordered key-value port. Its adapters are in `xsc.db`.

It stands in `base` so that `net` can keep replay windows and addresses without
knowing `db`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Change: TypeAlias = "tuple[bytes, bytes | None]"
"""A key and its new value; None deletes it."""
Commit: TypeAlias = "Callable[[list[Change]], Awaitable[None]]"
"""Writes changes, all or none, and returns once they are on the disk."""


class KeyValue(Protocol):
    """Ordered keys; keys and values are bytes. Calls block: use an executor for large ones.

    Every implementation keeps these laws (tests/contracts/test_keyvalue.py):
    a write is atomic; a synced write survives a power loss together with every
    write before it; an unsynced one survives the death of the process; a scan
    sees the state at its start.
    """

    def get(self, key: bytes, *, verify: bool = True) -> bytes | None:
        """Return the value of a key, or None.

        Args:
            key: of the value.
            verify: hold it against the store's own checksums. Without it a damaged store may
                give any bytes, or None: for who checks them by a hash anyway.

        Raises:
            StoreDamaged: the store fails its own checksums.
        """

    def scan(
        self, start: bytes, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values with start <= key < stop, in order of keys."""

    def write(self, changes: list[Change], *, sync: bool) -> None:
        """Apply all changes or none. With `sync` they are on the disk on return."""

    def compact(self, start: bytes, stop: bytes) -> None:
        """Return the space of deleted keys in that range to the disk."""

    def disk_bytes(self, start: bytes, stop: bytes) -> int:
        """Return about how many bytes of the disk a range takes, what is deleted included."""

    def close(self) -> None:
        """Release the store; any later call is a bug."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The databases of one node."""

    bodies: KeyValue
    index: KeyValue
    state: KeyValue
    space: KeyValue

    def close(self) -> None:
        """Release them."""
        for store in (self.index, self.bodies, self.space, self.state):
            store.close()


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the first key after all keys with that prefix; None where there is none."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        return None
    return trimmed[:-1] + bytes([trimmed[-1] + 1])
