"""The values of a frame: typed slots, each written by one writer in a frame.

A slot has a storage and an offset in the bank of that storage. Banks are arrays of the
standard library, which refuse what they cannot hold. Each slot remembers the frame in which
it was written, so that clearing for the next frame is one step and keeps all values
(docs/design/programs.md, V1 to V5).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass
from typing import Any, Final

from xsc.base.errors import ArgumentInvalid, ProgramInvalid
from xsc.programs.numbers import as_float, as_integer

CODES: Final = {"f64": "d", "f32": "f", "i32": "i", "u32": "I"}
"""The array type of each numeric storage."""
STORAGES: Final = (*CODES, "object")
BANK_MAX: Final = 1 << 20
"""Offsets of one bank."""


@dataclass(frozen=True, slots=True)
class SlotMeta:
    """Where the value of a slot is."""

    slot: int
    storage: str
    offset: int


class _Place:
    """A slot's bank and offset, and the frame in which it was last written; 0 for never."""

    __slots__ = ("bank", "frame", "offset", "storage", "usual")

    def __init__(self, bank: MutableSequence[Any], offset: int, storage: str) -> None:
        self.bank = bank
        self.offset = offset
        self.storage = storage
        self.frame = 0
        # What the bank itself takes or refuses: an f32 bank would round, so nothing is usual there.
        self.usual = {"f64": float, "i32": int, "u32": int}.get(storage)

    def fit(self, value: object) -> object:
        """Return an unusual value as the bank has it, or refuse it."""
        if self.storage == "object":
            return value
        return (as_integer if self.usual is int else as_float)(value, self.storage)


class ValueStore:
    """Typed slots with a single writer for each slot and frame.

    Raises:
        ProgramInvalid: an unknown storage, a slot or an offset that is there twice, or one
            out of range.
    """

    __slots__ = ("_frame", "_places", "banks")

    def __init__(self, slot_meta: Iterable[SlotMeta]) -> None:
        metas = tuple(slot_meta)
        sizes = dict.fromkeys(STORAGES, 0)
        for meta in metas:
            if meta.storage not in sizes:
                raise ProgramInvalid(f"slot {meta.slot} has the unknown storage '{meta.storage}'")
            if not 0 <= meta.offset < BANK_MAX:
                raise ProgramInvalid(f"slot {meta.slot} has the offset {meta.offset}")
            sizes[meta.storage] = max(sizes[meta.storage], meta.offset + 1)
        self.banks: dict[str, MutableSequence[Any]] = {
            storage: array(CODES[storage], bytes(size * array(CODES[storage]).itemsize))
            if storage in CODES
            else [None] * size
            for storage, size in sizes.items()
        }
        """The bank of each storage, as long as its greatest offset asks for."""
        self._places: dict[int, _Place] = {}
        self._frame = 1
        taken: dict[tuple[str, int], int] = {}
        for meta in metas:
            if meta.slot in self._places:
                raise ProgramInvalid(f"slot {meta.slot} is there twice")
            other = taken.setdefault((meta.storage, meta.offset), meta.slot)
            if other != meta.slot:
                raise ProgramInvalid(
                    f"slots {other} and {meta.slot} share {meta.storage} offset {meta.offset}"
                )
            bank = self.banks[meta.storage]
            self._places[meta.slot] = _Place(bank, meta.offset, meta.storage)

    def write(self, slot: int, value: object) -> None:
        """Write a slot; a value that its storage would change is refused, and changes nothing.

        Raises:
            ArgumentInvalid: no such slot, written in this frame already, or no such value.
        """
        try:
            place = self._places[slot]
        except KeyError:
            raise _unknown(slot) from None
        if place.frame == self._frame:
            raise ArgumentInvalid(f"slot {slot} already written this frame")
        if place.usual is not type(value) or value != value:  # noqa: PLR0124 (NaN)
            value = place.fit(value)
        try:
            place.bank[place.offset] = value
        except OverflowError:
            raise ArgumentInvalid(f"slot {slot}: {value} is no {place.storage}") from None
        place.frame = self._frame

    def read(self, slot: int) -> Any:  # noqa: ANN401 (of the type that was written)
        """Return the newest value of a slot, of this frame or an earlier one.

        Raises:
            ArgumentInvalid: no such slot, or it was never written.
        """
        try:
            place = self._places[slot]
        except KeyError:
            raise _unknown(slot) from None
        if not place.frame:
            raise ArgumentInvalid(f"slot {slot} is read before it was written")
        return place.bank[place.offset]

    def written(self, slot: int) -> bool:
        """Say whether a slot was written in this frame.

        Raises:
            ArgumentInvalid: no such slot.
        """
        try:
            return self._places[slot].frame == self._frame
        except KeyError:
            raise _unknown(slot) from None

    def clear(self) -> None:
        """Begin the next frame: every slot may be written again, and keeps its value."""
        self._frame += 1


def _unknown(slot: int) -> ArgumentInvalid:
    return ArgumentInvalid(f"slot {slot} not found in slot_meta")
