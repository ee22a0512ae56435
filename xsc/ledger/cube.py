"""The cubes of what two nodes have sealed: 9 cells a face, 3 faces a cube, 27 cubes a cube above.

A cell of level 0 is the id of an entry. 27 cells of a level in a row are three faces, and make one
cell of the level above: a cube. So a cube follows from the sealed entries in their order, never
changes, and has a hash only once it is full. docs/design/ledger.md, "Cubes"; vectors in
tests/vectors/ledger.json.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from xsc.base import encoding, ids, limits
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

ReadCell: TypeAlias = Callable[[int, int], bytes]
"""Returns the hash of a full cell, by level and index."""


class Sealed(NamedTuple):
    """What a seal names: entries in order of id, and how many were sealed before them."""

    before: int
    entry_ids: tuple[bytes, ...]

    @property
    def raw(self) -> bytes:
        """The bytes that are sent and stored where a `post` has its voucher."""
        return encoding.encode({"v": 1, "before": self.before, "ids": [*self.entry_ids]})

    @property
    def id(self) -> bytes:
        """The hash by which the halves name it."""
        return encoding.tagged_sha256("seal", self.raw)


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


def open_sealed(raw: bytes) -> Sealed:
    """Return what a seal names.

    Raises:
        TooLarge, RecordInvalid: it is of no known form, or not in order of id.
    """
    match encoding.decode(raw, size_max=limits.LEDGER_RECORD_BYTES_MAX):
        case {"v": 1, "before": int(before), "ids": [*listed], **rest} if not rest and before >= 0:
            named = {one for one in listed if isinstance(one, bytes) and len(one) == ids.ID_BYTES}
            if 0 < len(listed) <= SEALED_MAX and sorted(named) == listed:
                return Sealed(before, tuple(sorted(named)))
    raise RecordInvalid("a seal names entries, each once and in order of id")


def seal_voucher(
    sealed: Sealed, account: bytes, *, debtor: bytes, creditor: bytes
) -> Signed[Voucher]:
    """Return what is sealed as if it were a voucher: over all entries up to its last one."""
    total = sealed.before + len(sealed.entry_ids)
    voucher = voucher_in_all(account, debtor, creditor, total)
    return Signed(voucher, debtor, b"", sealed.id, sealed.raw)


def face_hash(cells: Sequence[bytes]) -> bytes:
    """Return the hash of nine cells."""
    assert len(cells) == FACE, "what is not full has no hash"
    return encoding.tagged_sha256("face", *cells)


def cube_hash(level: int, index: int, faces: Sequence[bytes]) -> bytes:
    """Return the hash of three faces, which is a cell of that level."""
    assert len(faces) == FACES, "what is not full has no hash"
    place = level.to_bytes(1, "big") + index.to_bytes(8, "big")
    return encoding.tagged_sha256("cube", place, *faces)


def grown(read: ReadCell, sealed: Sealed) -> dict[tuple[int, int], bytes]:
    """Return the cells that a seal adds: its entries, and every cube that they fill."""
    added: dict[tuple[int, int], bytes] = {}

    def cell(level: int, index: int) -> bytes:
        return added.get((level, index)) or read(level, index)

    for position, entry_id in enumerate(sealed.entry_ids, sealed.before):
        level, index = 0, position
        added[level, index] = entry_id
        while index % CUBE == CUBE - 1:
            level, index = level + 1, index // CUBE
            faces = hashes(cell, position + 1, Ask(level, index))
            added[level, index] = cube_hash(level, index, faces)
    return added


def hashes(read: ReadCell, count: int, ask: Ask) -> list[bytes]:
    """Return what is asked for of a history of so many entries; what is not full is left out."""
    below, first = ask.level - 1, ask.place * CUBE
    full = min(CUBE, count // CUBE**below - first)
    if ask.face is not None:
        start = ask.face * FACE
        return [read(below, first + at) for at in range(start, min(start + FACE, full))]
    faces = range(full // FACE)
    return [face_hash(hashes(read, count, ask._replace(face=face))) for face in faces]


def top_level(count: int) -> int:
    """Return the level of the cube that has room for so many entries."""
    return next(level for level in range(1, LEVEL_MAX + 2) if CUBE**level >= count)


def search(
    read: ReadCell, count: int
) -> Generator[Ask, Sequence[encoding.Value] | None, int | None]:
    """Find the first entry that differs from a peer's history; None where both agree.

    Yields what to ask the peer, and is sent its answers: at most 12 hashes a level.

    Args:
        read: reads the own cells.
        count: entries that both have sealed.

    Raises:
        RecordInvalid: the peer's answers contradict each other.
    """
    index, differs = 0, False
    for level in range(top_level(count), 0, -1):
        cell = 0
        own = hashes(read, count, Ask(level, index))
        face = _first_other(own, (yield Ask(level, index)))
        differs |= face < len(own)
        # Behind the last face of a full cube there are no cells.
        if own := hashes(read, count, Ask(level, index, face)):
            cell = _first_other(own, (yield Ask(level, index, face)))
        if differs and cell == len(own):
            raise RecordInvalid("the peer's cubes do not have the hashes that it says")
        differs |= cell < len(own)
        index = index * CUBE + face * FACE + cell
        if index * CUBE ** (level - 1) >= count:
            return None
    return index


def _first_other(own: Sequence[bytes], theirs: Sequence[encoding.Value] | None) -> int:
    """Return the place of the first hash that the peer has otherwise; the end where none is."""
    if theirs is None or len(theirs) != len(own):
        raise RecordInvalid("the peer shows another number of hashes than it has sealed")
    return next((at for at, found in enumerate(own) if found != theirs[at]), len(own))
