"""What the next half is judged by one at a time: rows that are looked up, not held in memory.

Rows follow from the halves. On the disk they are as the newest snapshot left them; what has
come since is in memory, and goes to the disk with the next snapshot, in one write.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from operator import itemgetter
from struct import Struct, error
from typing import Final, Generic, NamedTuple, TypeVar

from xsc.base.errors import LedgerDamaged
from xsc.base.keyvalue import Change, KeyValue

INDEX: Final = b"ledger/index/"
V = TypeVar("V", bound=tuple[object, ...])


class Index:
    """Rows in the store, and above them those that have changed since a snapshot.

    Args:
        base: where they are stored; None for a book that is only in memory.
    """

    def __init__(self, base: KeyValue | None = None) -> None:
        self._base = base
        self.changes: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        """Return a row."""
        found = self.changes.get(key)
        # In this order: a snapshot writes them before it forgets them, and threads read, too.
        if found is None and self._base is not None:
            found = self._base.get(INDEX + key)
        return found

    def put(self, key: bytes, value: bytes) -> None:
        """Set a row."""
        self.changes[key] = value

    def rows(self) -> list[Change]:
        """Return what the store lacks."""
        return [(INDEX + key, row) for key, row in self.changes.items()]

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows with start <= key < stop, in order of keys."""
        changes = self.changes
        new = sorted(
            ((key, row) for key, row in changes.items() if start <= key < stop), reverse=reverse
        )
        if self._base is None:
            return iter(new)
        stored = self._base.scan(INDEX + start, INDEX + stop, reverse=reverse)
        kept = ((key[len(INDEX) :], row) for key, row in stored if key[len(INDEX) :] not in changes)
        return heapq.merge(kept, new, key=itemgetter(0), reverse=reverse)


class Table(Generic[V]):
    """Rows of one kind, whose key and value are fields of fixed width.

    Args:
        index: has the rows.
        name: a byte, the first of each key.
        key: the fields of a key, as of `struct`.
        value: the fields of a value.
        kind: makes a value of its fields.
    """

    def __init__(
        self, index: Index, name: bytes, key: str, value: str, kind: Callable[..., V]
    ) -> None:
        self._index = index
        self._name = name
        self._key = Struct(">" + key)
        self._value = Struct(">" + value)
        self._kind = kind

    def get(self, key: tuple[bytes | int, ...]) -> V | None:
        """Return a value.

        Raises:
            LedgerDamaged: the row is none.
        """
        raw = self._index.get(self._name + self._key.pack(*key))
        return None if raw is None else self._read(raw)

    def _read(self, raw: bytes) -> V:
        try:
            return self._kind(*self._value.unpack(raw))
        except error:
            raise LedgerDamaged(
                "a row of the ledger's index is damaged", hint="`xsc ledger verify`"
            ) from None

    def __getitem__(self, key: tuple[bytes | int, ...]) -> V:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __setitem__(self, key: tuple[bytes | int, ...], value: V) -> None:
        self._index.put(self._name + self._key.pack(*key), self._value.pack(*value))

    def setdefault(self, key: tuple[bytes | int, ...], value: V) -> bool:
        """Set a value where there is none; return whether there was none."""
        if self.get(key) is not None:
            return False
        self[key] = value
        return True

    def scan(
        self,
        start: tuple[bytes | int, ...],
        stop: tuple[bytes | int, ...],
        *,
        reverse: bool = False,
    ) -> Iterator[tuple[bytes, V]]:
        """Yield keys and values with start <= key < stop."""
        first, last = (self._name + self._key.pack(*key) for key in (start, stop))
        for key, raw in self._index.scan(first, last, reverse=reverse):
            yield key, self._read(raw)


class Known(NamedTuple):
    """An entry that has a place in the own chain."""

    entry_id: bytes
    """Id of the initiator's half: the same at both parties."""
    seq: int
    """Of the own half."""


class Seen(NamedTuple):
    """A peer's half of an entry in this ledger."""

    id: bytes
    prev: bytes
    seq: int
    """Of the own half."""


class Account(NamedTuple):
    """What one party owes another in an account."""

    settled_micro: int
    """In all."""
    promised_micro: int = 0
    """The highest voucher under an old half."""


class Place(NamedTuple):
    """Where an entry is."""

    seq: int
    """Of the own half."""


ENTRY: Final = b"e"
"""Rows of `Known` by initiator and xid."""
ID: Final = b"i"
"""Rows of `Place` by the entry's id."""
SEEN: Final = b"s"
"""Rows of `Seen` by peer and its number."""
ACCOUNT: Final = b"a"
"""Rows of `Account` by account, debtor and creditor."""
HALF: Final = b"h"
"""Rows of what counts of an own half, by peer, date and number."""
DAY: Final = b"d"
"""Rows of sums, by peer, kind and day."""


def entries_of(index: Index) -> Table[Known]:
    """Return entries by initiator and xid."""
    return Table(index, ENTRY, "32s16s", "32sQ", Known)


def ids_of(index: Index) -> Table[Place]:
    """Return where entries are, by id."""
    return Table(index, ID, "32s", "Q", Place)


def seen_of(index: Index) -> Table[Seen]:
    """Return halves of peers, by peer and its number."""
    return Table(index, SEEN, "32sQ", "32s32sQ", Seen)


def accounts_of(index: Index) -> Table[Account]:
    """Return accounts by account, debtor and creditor."""
    return Table(index, ACCOUNT, "32s32s32s", "QQ", Account)
