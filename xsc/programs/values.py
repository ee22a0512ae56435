"""The values of a frame: typed slots, each written by one writer in a frame.

A slot has a storage and an offset in the bank of that storage. Banks are arrays of the
standard library. Each slot remembers the frame in which it was written, so that clearing for the
next frame is one step and keeps all values (docs/design/programs.md, V2 to V4).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass
from typing import Any, Final

from xsc.base.errors import ArgumentInvalid
from xsc.programs.numbers import check_value

CODES: Final = {"f64": "d", "f32": "f", "i32": "i", "u32": "I"}
"""The array type of each numeric storage."""
STORAGES: Final = (*CODES, "object")


@dataclass(frozen=True, slots=True)
class SlotMeta:
    """Where the value of a slot is."""

    slot: int
    storage: str
    offset: int


def bank_of(storage: str, size: int) -> MutableSequence[Any]:
    """Return the bank of a storage, filled with zeros, or with None for objects."""
    return array(CODES[storage], [0]) * size if storage in CODES else [None] * size


class ValueStore:
    """Typed slots with a single writer for each slot and frame."""

    __slots__ = ("_frame", "_metas", "_written", "banks")

    def __init__(self, slot_meta: Iterable[SlotMeta]) -> None:
        self._metas = {meta.slot: meta for meta in slot_meta}
        sizes = dict.fromkeys(STORAGES, 0)
        for meta in self._metas.values():
            sizes[meta.storage] = max(sizes[meta.storage], meta.offset + 1)
        self.banks = {storage: bank_of(storage, size) for storage, size in sizes.items()}
        """The bank of each storage, as long as its greatest offset asks for."""
        self._frame = 1
        self._written: dict[int, int] = {}
        """The frame in which each slot was written last."""

    def _meta(self, slot: int) -> SlotMeta:
        try:
            return self._metas[slot]
        except KeyError:
            raise ArgumentInvalid(f"slot {slot} not found in slot_meta") from None

    def write(self, slot: int, value: object) -> None:
        """Write a slot; a value that its storage would change is refused, and changes nothing.

        Raises:
            ArgumentInvalid: no such slot, written in this frame already, or no such value.
        """
        if self.written(slot):
            raise ArgumentInvalid(f"slot {slot} already written this frame")
        meta = self._metas[slot]
        kept = value if meta.storage == "object" else check_value(meta.storage, value)
        self.banks[meta.storage][meta.offset] = kept
        self._written[slot] = self._frame

    def read(self, slot: int) -> Any:  # noqa: ANN401 (of the type that was written)
        """Return the newest value of a slot, of this frame or an earlier one.

        Raises:
            ArgumentInvalid: no such slot, or it was never written.
        """
        meta = self._meta(slot)
        if slot not in self._written:
            raise ArgumentInvalid(f"slot {slot} is read before it was written")
        return self.banks[meta.storage][meta.offset]

    def written(self, slot: int) -> bool:
        """Say whether a slot was written in this frame.

        Raises:
            ArgumentInvalid: no such slot.
        """
        return self._written.get(self._meta(slot).slot) == self._frame

    def clear(self) -> None:
        """Begin the next frame: every slot may be written again, and keeps its value."""
        self._frame += 1
