"""What is sealed with each peer, and what waits for it, as rows beside the chain.

`ledger-cell/<peer><level><index>` is a full cell of the cubes: the id of an entry with the number
of its own half, or the hash of a cube. `ledger-unsealed/<peer><entry>` is the number of the own
half of an entry that no seal names. All are written together with the halves that they follow from.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from xsc.base import errors, ids
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.ledger.cube import SEALED_MAX, Sealed, grown

CELL: Final = b"ledger-cell/"
UNSEALED: Final = b"ledger-unsealed/"


def _key(peer: bytes, level: int, index: int) -> bytes:
    return CELL + peer + level.to_bytes(1, "big") + index.to_bytes(8, "big")


def not_following(peer: bytes) -> errors.LedgerDamaged:
    """Return the error where cells are not those of the entries."""
    return errors.LedgerDamaged(
        f"the cubes with {ids.short(peer)} do not follow from the entries",
        hint="restore the home from a backup",
    )


class Cells:
    """The cells of one node.

    Args:
        store: the ledger's.
    """

    def __init__(self, store: KeyValue) -> None:
        self._store = store

    def read(self, peer: bytes, level: int, index: int) -> bytes:
        """Return a full cell.

        Raises:
            LedgerDamaged: it is missing.
        """
        return self._row(peer, level, index)[: ids.ID_BYTES]

    def seq_at(self, peer: bytes, position: int) -> int:
        """Return the number of the own half of a sealed entry.

        Raises:
            LedgerDamaged: it is missing.
        """
        return int.from_bytes(self._row(peer, 0, position)[ids.ID_BYTES :], "big")

    def _row(self, peer: bytes, level: int, index: int) -> bytes:
        row = self._store.get(_key(peer, level, index))
        if row is None:
            raise not_following(peer)
        return row

    def unsealed(self, peer: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield the entries that wait for a seal, in order of id, and the numbers of own halves."""
        prefix = UNSEALED + peer
        for key, row in self._store.scan(prefix, prefix_end(prefix)):
            yield key[len(prefix) :], int.from_bytes(row, "big")

    def next_ids(self, peer: bytes) -> tuple[bytes, ...]:
        """Return the entries that the next seal is to name."""
        return tuple(entry_id for entry_id, _ in islice(self.unsealed(peer), SEALED_MAX))

    def lacks(self, peer: bytes, sealed: Sealed) -> bool:
        """Return whether a seal names an entry that does not wait for one here."""
        wanted = (UNSEALED + peer + entry_id for entry_id in sealed.entry_ids)
        return any(self._store.get(key) is None for key in wanted)

    @staticmethod
    def settled(peer: bytes, entry_id: bytes, seq: int) -> list[Change]:
        """Return the rows that change where an entry comes to have both halves."""
        return [(UNSEALED + peer + entry_id, seq.to_bytes(8, "big"))]

    def sealed(self, peer: bytes, sealed: Sealed) -> list[Change]:
        """Return the rows that change where a seal comes to have both halves."""
        changes: list[Change] = []
        for (level, index), cell in grown(lambda *at: self.read(peer, *at), sealed).items():
            if level:
                changes.append((_key(peer, level, index), cell))
                continue
            waiting = UNSEALED + peer + cell
            seq = self._store.get(waiting)
            assert seq is not None, "only what waits for a seal is sealed"
            changes += [(_key(peer, level, index), cell + seq), (waiting, None)]
        return changes

    def ended(self, peer: bytes = b"", keep: frozenset[bytes] = frozenset()) -> list[Change]:
        """Return the rows to delete where a history ends: with one peer, or with all.

        Args:
            peer: the peer; all without one.
            keep: entries that wait for a seal in the next history.
        """
        rows = ((CELL, CELL + peer), (UNSEALED, UNSEALED + peer))
        return [
            (key, None)
            for _, prefix in rows
            for key, _ in self._store.scan(prefix, prefix_end(prefix))
            if key[-ids.ID_BYTES :] not in keep
        ]

    def check(self, peer: bytes, sealed: Sealed, waiting: dict[bytes, int]) -> int:
        """Check the rows of a seal; return how many they are.

        Args:
            peer: with whom.
            sealed: what the seal names.
            waiting: entries that waited for a seal; what is named goes out of it.

        Raises:
            LedgerDamaged: a row is another one, or none.
        """
        cells = grown(lambda *at: self.read(peer, *at), sealed)
        for (level, index), cell in cells.items():
            wanted = cell
            if not level:
                seq = waiting.pop(cell, None)
                wanted += b"" if seq is None else seq.to_bytes(8, "big")
            if self._row(peer, level, index) != wanted:
                raise not_following(peer)
        return len(cells)

    def count(self) -> int:
        """Return how many rows there are with all peers."""
        return sum(
            1 for prefix in (CELL, UNSEALED) for _ in self._store.scan(prefix, prefix_end(prefix))
        )
