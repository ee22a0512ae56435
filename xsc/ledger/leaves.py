"""The tree over the halves that are stored: reads them from the disk, and hashes them again.

`ledger-tile/<first><number>`: the root of 256 leaves of an incarnation, which nothing changes any
more, so that a root or a proof does not read all halves. It is written with the first checkpoint
over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from xsc.base.errors import LedgerDamaged
from xsc.ledger import tree
from xsc.ledger.chain import Chain, key_of

TILE_LEAVES = 256
TILE: Final = b"ledger-tile/"


class Leaves:
    """The tree over a chain as it is at this moment.

    Its methods read the store. They raise LedgerDamaged where a half is missing or damaged.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.first_seq = chain.state.first_seq
        self.size = chain.state.next_seq - self.first_seq
        """Halves."""
        self._head = chain.state.head

    def _key(self, number: int) -> bytes:
        return key_of(key_of(TILE, self.first_seq), number)

    def _tile(self, number: int) -> bytes:
        stored = self._chain.store.get(self._key(number))
        return stored or self._hashed(number * TILE_LEAVES, (number + 1) * TILE_LEAVES)

    def _hashed(self, low: int, high: int) -> bytes:
        own, first = self._chain.own, self.first_seq
        return tree.root_of([tree.leaf_hash(own(first + at).id) for at in range(low, high)])

    def top(self, low: int, high: int) -> bytes:
        """Return the root of the leaves from one number, which begins a subtree, to another."""
        if high - low < TILE_LEAVES:
            return self._hashed(low, high)
        tiles = [self._tile(number) for number in range(low // TILE_LEAVES, high // TILE_LEAVES)]
        rest = high // TILE_LEAVES * TILE_LEAVES
        return tree.root_of([*tiles, self._hashed(rest, high)] if rest < high else tiles)

    def check_from(self, size: int) -> Mapping[bytes, bytes]:
        """Read all halves again from a number on; return the rows of the tiles that are full now.

        Raises:
            LedgerDamaged: one does not follow on the one before it, or the last one is not the
                end of the chain.
        """
        low = max(0, size - 1) // TILE_LEAVES * TILE_LEAVES
        before, hashes, rows = None, [], {}
        for index in range(low, self.size):
            half = self._chain.own(self.first_seq + index)
            if before not in {None, half.record.prev}:
                break
            before = half.id
            hashes.append(tree.leaf_hash(before))
            if len(hashes) == TILE_LEAVES:
                rows[self._key(index // TILE_LEAVES)] = tree.root_of(hashes)
                hashes.clear()
        if before != self._head:
            raise _damaged()
        return rows

    def check_continues(self, size: int, root: bytes, new_root: bytes) -> None:
        """Check that the tree of now, of a new root, continues one that was signed before.

        Raises:
            LedgerDamaged: it does not.
        """
        path = tree.prove_consistency(size, self.size, self.top)
        if not tree.is_consistent(size, root, self.size, new_root, path):
            raise _damaged()


def _damaged() -> LedgerDamaged:
    return LedgerDamaged(
        "the chain on the disk is not the one that this node works with",
        hint="restart the node; if it happens again, restore the home from a backup",
    )
