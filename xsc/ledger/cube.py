"""The cubes of what two nodes have sealed: 9 cells a face, 3 faces a cube, 27 cubes a cube above.

A cell of level 0 is the id of an entry. 27 cells of a level in a row are three faces, and make one
cell of the level above: a cube. So a cube follows from the sealed entries in their order, never
changes, and has a hash only once it is full. docs/design/ledger.md, "Cubes"; vectors in
tests/vectors/ledger.json.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from xsc.base import encoding, ids
from xsc.base.errors import RecordInvalid
from xsc.identity.envelope import Signed
from xsc.terms.voucher import Voucher, voucher_in_all

FACE: Final = 9
"""Cells."""
FACES: Final = 3
CUBE: Final = FACE * FACES
SEALED_MAX: Final = 3 * CUBE
"""Entries of one seal."""
LEVEL_MAX: Final = 13
"""Of cubes: 2^63 entries have no more."""


class Ask(NamedTuple):
    """Asks for the hashes of a cube's full faces, or of the full cells of one of its faces."""

    level: int
    place: int
    """Of the cube, among those of its level."""
    face: int | None = None


def history(first: Mapping[bytes, int]) -> bytes:
    """Return what names the sealed history of two nodes, and is the account of its seals.

    Args:
        first: of both, the number of the first half in its present incarnation.
    """
    listed: list[encoding.Value] = [[node, first[node]] for node in sorted(first)]
    return encoding.tagged_sha256("cube_history", encoding.encode(listed))


def seal_hash(entry_ids: Iterable[bytes]) -> bytes:
    """Return the hash by which a seal names entries, given in order of id."""
    return encoding.tagged_sha256("seal", *entry_ids)


def seal_voucher(
    account: bytes, receipt: bytes, below: int, *, debtor: bytes, creditor: bytes
) -> Signed[Voucher]:
    """Return what a seal is as if it rested on a voucher: its half says all of it."""
    voucher = voucher_in_all(account, debtor, creditor, below)
    return Signed(voucher, debtor, b"", receipt, b"")


def face_hash(cells: Sequence[bytes]) -> bytes:
    """Return the hash of nine cells."""
    assert len(cells) == FACE, "what is not full has no hash"
    return encoding.tagged_sha256("face", *cells)


def cube_hash(level: int, index: int, faces: Sequence[bytes]) -> bytes:
    """Return the hash of three faces, which is a cell of that level."""
    assert len(faces) == FACES, "what is not full has no hash"
    place = level.to_bytes(1, "big") + index.to_bytes(8, "big")
    return encoding.tagged_sha256("cube", place, *faces)


class Cells:
    """The cells of one history, as far as they were added.

    Args:
        history: names it.
    """

    def __init__(self, history: bytes) -> None:
        self.history = history
        self.below = 0
        """The number of the starter's half up to which the seals that were added go."""
        self._levels = [bytearray() for _ in range(LEVEL_MAX + 1)]

    def count(self, level: int = 0) -> int:
        """Return how many full cells a level has; of level 0, entries."""
        return len(self._levels[level]) // ids.ID_BYTES

    def read(self, level: int, index: int) -> bytes:
        """Return a full cell."""
        return bytes(self._levels[level][index * ids.ID_BYTES : (index + 1) * ids.ID_BYTES])

    def add(self, entry_ids: Iterable[bytes]) -> None:
        """Add the entries of the next seal, and every cube that they fill."""
        self._levels[0] += b"".join(entry_ids)
        for level in range(1, LEVEL_MAX + 1):
            for index in range(self.count(level), self.count(level - 1) // CUBE):
                faces = self.hashes(self.count(), Ask(level, index))
                self._levels[level] += cube_hash(level, index, faces)

    def hashes(self, count: int, ask: Ask) -> list[bytes]:
        """Return what is asked for of so many entries; what is not full is left out."""
        below, first = ask.level - 1, ask.place * CUBE
        full = min(CUBE, count // CUBE**below - first)
        if ask.face is not None:
            start = ask.face * FACE
            return [self.read(below, first + at) for at in range(start, min(start + FACE, full))]
        faces = range(full // FACE)
        return [face_hash(self.hashes(count, ask._replace(face=face))) for face in faces]


def top_level(count: int) -> int:
    """Return the level of the cube that has room for so many entries."""
    return next(level for level in range(1, LEVEL_MAX + 2) if CUBE**level >= count)


def search(own: Cells, count: int) -> Generator[Ask, Sequence[encoding.Value] | None, int | None]:
    """Find the first entry that differs from a peer's history; None where both agree.

    Yields what to ask the peer, and is sent its answers: at most 12 hashes a level.

    Args:
        own: the own cells.
        count: entries that both have sealed.

    Raises:
        RecordInvalid: the peer's answers contradict each other.
    """
    index, differs = 0, False
    for level in range(top_level(count), 0, -1):
        cell = 0
        mine = own.hashes(count, Ask(level, index))
        face = _first_other(mine, (yield Ask(level, index)))
        differs |= face < len(mine)
        # Behind the last face of a full cube there are no cells.
        if mine := own.hashes(count, Ask(level, index, face)):
            cell = _first_other(mine, (yield Ask(level, index, face)))
        if differs and cell == len(mine):
            raise RecordInvalid("the peer's cubes do not have the hashes that it says")
        differs |= cell < len(mine)
        index = index * CUBE + face * FACE + cell
        if index * CUBE ** (level - 1) >= count:
            return None
    return index


def _first_other(own: Sequence[bytes], theirs: Sequence[encoding.Value] | None) -> int:
    """Return the place of the first hash that the peer has otherwise; the end where none is."""
    if theirs is None or len(theirs) != len(own):
        raise RecordInvalid("the peer shows another number of hashes than it has sealed")
    return next((at for at, found in enumerate(own) if found != theirs[at]), len(own))
