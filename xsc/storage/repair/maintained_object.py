"""An object that this node keeps whole, as its owner or as its custodian, and what a repair did.

Design: docs/design/storage-repair.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from xsc.base.turns import Turns
from xsc.storage.catalogue.objects import ObjectCatalogue
from xsc.storage.object.capability import VerifyCapability, parse_verify
from xsc.storage.object.durability import Contract
from xsc.storage.object.held import Held
from xsc.storage.object.placement import Placement
from xsc.terms.lease import LeaseHandle


class Settings(Protocol):
    """What the operator decides."""

    @property
    def lease_grace_ms(self) -> int:
        """How long hosts keep what is stored under a lease that is over."""

    @property
    def storage_lease_ms(self) -> int:
        """How long leases last that this node takes."""

    @property
    def warned_ms(self) -> int:
        """How long before its end a lease counts as ending soon."""

    @property
    def guard_bytes(self) -> int:
        """Most that is stored at hosts for one absent owner."""

    @property
    def survive(self) -> Contract | None:
        """The default contract; None: what all known nodes can keep."""

    @property
    def repair_grace_ms(self) -> int:
        """How long a node must be silent before its columns count as lost."""

    @property
    def repair_bytes_a_second(self) -> int:
        """Limit of what repair fetches and sends; 0: no limit."""

    @property
    def repair_interval_ms(self) -> int:
        """How often every host of every object is asked, even if nothing happened."""

    @property
    def moved_kept_ms(self) -> int:
        """How long the old copy of a moved column stays, for readers of the old placement."""


@dataclass(frozen=True, slots=True)
class MaintainedObject:
    """An object to keep whole, and in which role this node does so."""

    ref: bytes
    """The key under which its registry has it."""
    capability: VerifyCapability
    owner: bytes
    placement: Placement
    held: tuple[Held, ...]
    """What this node pays for, by host and lease. An item of 0 bytes marks that a transfer was
    about to begin: more may be stored there than was confirmed."""
    is_own: bool = True
    """Whether this node is the owner; else it is a custodian."""
    before: tuple[bytes, ...] = ()
    """At a custodian: the custodians whose turn comes first."""
    budget_bytes: int | None = None
    """At a custodian: how much more it may store for that owner."""
    rescue_ms: int = 0
    """At a custodian: how long before its end it takes over what the owner did not renew."""
    only_clean: bool = False
    """Whether to repair nothing, and only delete copies that this node pays for in vain."""


class MaintainedObjects(Protocol):
    """A registry of objects to keep whole, on the disk."""

    @property
    def turns(self) -> Turns[bytes]:
        """By reference: held while an object is surveyed, repaired or deleted.

        A deletion waits for a repair, and a repair stops at the next segment once `load`
        returns None.
        """

    def refs(self) -> Iterator[tuple[bytes, Placement, Collection[bytes]]]:
        """Yield what to look after at this moment: reference, placement, and former hosts.

        These have no column any more, and this node still pays for something there.
        """

    def load(self, ref: bytes) -> MaintainedObject | None:
        """Return an object; None if it is gone or being deleted."""

    async def save(self, ref: bytes, placement: Placement, held: tuple[Held, ...]) -> bool:
        """Write placement and held bytes, synced; return False if the object is gone.

        Of an object that is being deleted only `held` is written: all of that is deleted.
        """


def former_hosts(columns: Iterable[bytes], held: Iterable[Held]) -> frozenset[bytes]:
    """Return the nodes that have no column any more, and at which this node still pays."""
    return frozenset(item.node for item in held) - set(columns)


def marks(leases: Iterable[LeaseHandle]) -> list[Held]:
    """Return the marks that a transfer under these leases is about to begin."""
    return [Held(lease.node, lease.lease_id, 0) for lease in leases]


def merged(held: Iterable[Held], more: Iterable[Held]) -> tuple[Held, ...]:
    """Return what is held by host and lease, summed."""
    sizes: dict[tuple[bytes, bytes], int] = {}
    for item in (*held, *more):
        place = (item.node, item.lease_id)
        sizes[place] = sizes.get(place, 0) + item.size_bytes
    return tuple(Held(node, lease_id, max(0, size)) for (node, lease_id), size in sizes.items())


class OwnObjects:
    """Gives the repairer of its catalogue what it may know: not how to decrypt."""

    def __init__(self, catalogue: ObjectCatalogue, own: bytes) -> None:
        self._catalogue = catalogue
        self._own = own
        self.turns: Turns[bytes] = Turns()
        """By manifest hash: held while an object is surveyed, repaired or deleted."""

    def refs(self) -> Iterator[tuple[bytes, Placement, Collection[bytes]]]:
        """Yield each object that is not being deleted, as `MaintainedObjects.refs`."""
        for ref, entry in self._catalogue.entries():
            if not entry.deleting:
                yield ref, entry.placement, former_hosts(entry.placement.columns, entry.held)

    def load(self, ref: bytes) -> MaintainedObject | None:
        """Return an object; None if it is gone or being deleted."""
        entry = self._catalogue.entry(ref)
        if entry is None or entry.deleting:
            return None
        capability, held = parse_verify(entry.capability), entry.held
        return MaintainedObject(ref, capability, self._own, entry.placement, held)

    async def save(self, ref: bytes, placement: Placement, held: tuple[Held, ...]) -> bool:
        """Write where an object is now; return False if it is deleted or being deleted."""
        return await self._catalogue.note_placement(ref, placement, held)
