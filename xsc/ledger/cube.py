"""The cubes of what two nodes have sealed: 9 cells a face, 3 faces a cube, 27 cubes a cube above.

A cell of level 0 is the id of an entry. 27 cells of a level in a row are three faces, and make one
cell of the level above: a cube. So a cube follows from the sealed entries in their order, never
changes, and has a hash only once it is full. docs/design/ledger.md, "Cubes"; vectors in
tests/vectors/ledger.json.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from xsc.api.ledger import CubeLevel
from xsc.base import encoding, fields, ids, limits
from xsc.base.errors import RecordInvalid
from xsc.identity.envelope import Signed
from xsc.ledger.entry import Half
from xsc.terms.voucher import Voucher

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
Cell: TypeAlias = "tuple[int, int]"
"""Its level and index."""


@dataclass(frozen=True, slots=True)
class Sealed:
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


@dataclass(frozen=True, slots=True)
class Ask:
    """Asks for the hashes of a cube's full faces, or of the full cells of one of its faces."""

    level: int
    index: int
    face: int | None


def history(first: dict[bytes, int]) -> bytes:
    """Return what names the sealed history of two nodes.

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
    value = encoding.decode(raw, size_max=limits.LEDGER_RECORD_BYTES_MAX)
    if not isinstance(value, dict) or value.keys() != {"v", "before", "ids"} or value["v"] != 1:
        raise RecordInvalid("what a seal names is of no known form")
    listed = fields.take_list(value, "ids", most=SEALED_MAX)
    named = [each for each in listed if isinstance(each, bytes) and len(each) == ids.ID_BYTES]
    if not listed or sorted({*named}) != listed:
        raise RecordInvalid("a seal names entries, each once and in order of id")
    return Sealed(fields.take_int(value, "before"), tuple(named))


def voucher_of(sealed: Sealed, half: Half, network: bytes | None) -> Signed[Voucher]:
    """Return what is sealed as if it were a voucher: over all entries up to its last one.

    Raises:
        RecordInvalid: it is not over so many entries as the half says.
    """
    if half.account is None or half.amount_micro != len(sealed.entry_ids):
        raise RecordInvalid("a seal is over another number of entries than it names")
    voucher = Voucher(
        account=half.account,
        provider=half.credit,
        customer=half.debit,
        number=1,
        amount_micro=sealed.before + len(sealed.entry_ids),
        until_ms=0,
        count=None,
    )
    return Signed(voucher, half.debit, network or b"", sealed.id, sealed.raw)


def face_hash(cells: Sequence[bytes]) -> bytes:
    """Return the hash of nine cells."""
    assert len(cells) == FACE, "what is not full has no hash"
    return encoding.tagged_sha256("face", *cells)


def cube_hash(level: int, index: int, faces: Sequence[bytes]) -> bytes:
    """Return the hash of three faces, which is a cell of that level."""
    assert len(faces) == FACES, "what is not full has no hash"
    place = level.to_bytes(1, "big") + index.to_bytes(8, "big")
    return encoding.tagged_sha256("cube", place, *faces)


def grown(read: ReadCell, sealed: Sealed) -> dict[Cell, bytes]:
    """Return the cells that a seal adds: its entries, and every cube that they fill."""
    added: dict[Cell, bytes] = {}

    def cell(level: int, index: int) -> bytes:
        found = added.get((level, index))
        return read(level, index) if found is None else found

    for position, entry_id in enumerate(sealed.entry_ids, sealed.before):
        level, index, found = 0, position, entry_id
        added[level, index] = found
        while index % CUBE == CUBE - 1:
            level, index = level + 1, index // CUBE
            found = cube_hash(level, index, hashes(cell, position + 1, Ask(level, index, None)))
            added[level, index] = found
    return added


def hashes(read: ReadCell, count: int, ask: Ask) -> list[bytes]:
    """Return what is asked for of a history of so many entries; what is not full is left out."""
    below, first = ask.level - 1, ask.index * CUBE
    full = min(CUBE, count // CUBE**below - first)
    if ask.face is not None:
        start = ask.face * FACE
        return [read(below, first + at) for at in range(start, min(start + FACE, full))]
    return [
        face_hash([read(below, first + face * FACE + at) for at in range(FACE)])
        for face in range(full // FACE)
    ]


def top_level(count: int) -> int:
    """Return the level of the cube that has room for so many entries."""
    level = 1
    while CUBE**level < count:
        level += 1
    return level


def search(read: ReadCell, count: int) -> Generator[Ask, Sequence[bytes], int | None]:
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
        faces = hashes(read, count, Ask(level, index, None))
        theirs = yield Ask(level, index, None)
        face = _first_other(faces, theirs)
        differs |= face < len(faces)
        cells = hashes(read, count, Ask(level, index, face))
        # The last face of a full cube that agrees: there is nothing behind it.
        cell = _first_other(cells, (yield Ask(level, index, face))) if cells else 0
        if differs and cell == len(cells):
            raise RecordInvalid("the peer's cubes do not have the hashes that it says")
        differs |= cell < len(cells)
        index = index * CUBE + face * FACE + cell
        if index * CUBE ** (level - 1) >= count:
            return None
    return index


def _first_other(own: Sequence[bytes], theirs: Sequence[bytes]) -> int:
    """Return the place of the first hash that the peer has otherwise; the end where none is."""
    if len(theirs) != len(own):
        raise RecordInvalid("the peer shows another number of hashes than it has sealed")
    return next((at for at, found in enumerate(own) if found != theirs[at]), len(own))


def drawn(count: int, differs: int | None = None) -> list[CubeLevel]:
    """Return of each level, the highest first, the cube to draw: 27 cells, some of them full.

    Args:
        count: sealed entries.
        differs: place of the entry in whose cubes something differs; else those are drawn that
            are being filled.
    """
    levels = []
    for level in range(top_level(count + 1), 0, -1):
        index = (count if differs is None else differs) // CUBE**level
        below = CUBE ** (level - 1)
        levels.append(
            CubeLevel(
                level=level,
                index=index,
                full=min(CUBE, count // below - index * CUBE),
                differs=None if differs is None else differs // below % CUBE,
            )
        )
    return levels
