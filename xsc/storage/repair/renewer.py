"""Has hosts count what lies under a lease under the one that renews it, and keeps the records.

The objects of this node and those in custody name the lease that pays for each part. An object is
held still meanwhile. Its record is written after the host's answer and after the market's count; a
crash before that has the host asked again, and it answers the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from xsc.base.errors import XscError
from xsc.base.ids import short
from xsc.base.limits import RENEWAL_OBJECTS_MAX
from xsc.base.turns import sliced
from xsc.storage.repair.maintained_object import MaintainedObjects
from xsc.storage.transfer.host_client import HostClient, together
from xsc.storage.transfer.put import Held


class Renewed(Protocol):
    """A lease of this node at a host, and the one that renews it."""

    @property
    def node(self) -> bytes:
        """The host."""

    @property
    def old_id(self) -> bytes:
        """The lease that ends."""

    @property
    def new_id(self) -> bytes:
        """The lease that goes on."""


def over(held: Sequence[Held], pair: Renewed, kept_bytes: int) -> tuple[tuple[Held, ...], int]:
    """Return what is held once so much of it lies under the new lease, and how much is new there.

    It is never more in all than it was: what a host says beyond that, the next look finds.
    """
    both = (pair.old_id, pair.new_id)
    rest = [item for item in held if item.node != pair.node or item.lease_id not in both]
    theirs = [item for item in held if item.node == pair.node and item.lease_id in both]
    total = sum(item.size_bytes for item in theirs)
    before = sum(item.size_bytes for item in theirs if item.lease_id == pair.new_id)
    kept = max(before, min(kept_bytes, total))
    # The newest lease last: it is the first that more is stored under.
    parts = [Held(pair.node, pair.old_id, total - kept), Held(pair.node, pair.new_id, kept)]
    return (*rest, *(item for item in parts if item.size_bytes)), kept - before


@dataclass(frozen=True, slots=True)
class Renewer:
    """Moves what lies under leases to those that renew them."""

    client: HostClient
    registries: Sequence[MaintainedObjects]

    async def renew(self, pairs: Sequence[Renewed]) -> None:
        """Have all of it go over that fits; what could not is tried at the next call."""
        by_old = {(pair.node, pair.old_id): pair for pair in pairs}
        for objects in self.registries:
            found: defaultdict[tuple[bytes, bytes], list[bytes]] = defaultdict(list)
            async for ref, _ in sliced(objects.refs()):
                known = objects.load(ref)
                for item in () if known is None else known.held:
                    at = (item.node, item.lease_id)
                    if at in by_old and item.size_bytes and ref not in found[at][-1:]:
                        found[at].append(ref)
                        if len(found[at]) == RENEWAL_OBJECTS_MAX:
                            await self._try(objects, by_old[at], found.pop(at))
            for at, refs in found.items():
                await self._try(objects, by_old[at], refs)

    async def _try(self, objects: MaintainedObjects, pair: Renewed, refs: Sequence[bytes]) -> None:
        try:
            await self._renew(objects, pair, refs)
        except XscError as fault:
            self.client.log.warning(
                "storage.not_renewed", peer=short(pair.node), reason=fault.message
            )

    async def _renew(
        self, objects: MaintainedObjects, pair: Renewed, refs: Sequence[bytes]
    ) -> None:
        async with AsyncExitStack() as still:
            for ref in sorted(refs):
                await still.enter_async_context(objects.turns.of(ref))
            found = [known for ref in refs if (known := objects.load(ref)) is not None]
            if not found:
                return
            locates = [known.capability.locate for known in found]
            kept, used = await self.client.renew(pair.node, pair.old_id, pair.new_id, locates)
            after = [over(each.held, pair, kept[each.capability.locate]) for each in found]
            moved = sum(size for _, size in after)
            self.client.hosts.renewed(pair.old_id, pair.new_id, moved, used)
            await together(
                objects.save(known.ref, known.placement, held)
                for known, (held, size) in zip(found, after, strict=True)
                if size
            )
