"""The own objects as a registry for their repairer."""

from __future__ import annotations

from collections.abc import Iterator

from xsc.base.turns import Turns
from xsc.storage.catalogue.held import held_of
from xsc.storage.catalogue.objects import ObjectCatalogue
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.placement import Placement
from xsc.storage.repair.maintained_object import MaintainedObject
from xsc.storage.transfer.put import Held


class OwnObjects:
    """Gives the repairer of its catalogue what it may know: not how to decrypt."""

    def __init__(self, catalogue: ObjectCatalogue, own: bytes) -> None:
        self._catalogue = catalogue
        self._own = own
        self.turns: Turns[bytes] = Turns()
        """By manifest hash: held while an object is surveyed, repaired or deleted."""

    def refs(self) -> Iterator[tuple[bytes, Placement]]:
        """Yield manifest hash and placement of each object that is not being deleted."""
        return (
            (ref, entry.placement) for ref, entry in self._catalogue.entries() if not entry.deleting
        )

    def load(self, ref: bytes) -> MaintainedObject | None:
        """Return an object; None if it is gone or being deleted."""
        entry = self._catalogue.entry(ref)
        if entry is None or entry.deleting:
            return None
        capability, held = parse_verify(entry.capability), held_of(entry.held)
        return MaintainedObject(ref, capability, self._own, entry.placement, held)

    async def save(self, ref: bytes, placement: Placement, held: tuple[Held, ...]) -> bool:
        """Write where an object is now; return False if it is deleted or being deleted."""
        return await self._catalogue.note_placement(ref, placement, held)
