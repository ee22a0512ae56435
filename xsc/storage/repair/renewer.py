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
from typing import TypeAlias

from xsc.base.errors import LeaseExhausted, XscError
from xsc.base.ids import short
from xsc.base.limits import RENEWAL_OBJECTS_MAX
from xsc.base.turns import sliced
from xsc.storage.repair.maintained_object import MaintainedObjects
from xsc.storage.transfer.host_client import HostClient, together
from xsc.storage.transfer.put import Held

Renewal: TypeAlias = tuple[bytes, bytes, bytes]
"""A host, a lease of this node there, and the lease that renews it."""


def over(held: Sequence[Held], renewal: Renewal, kept_bytes: int) -> tuple[tuple[Held, ...], int]:
    """Return what is held once so much of it lies under the new lease, and how much is new there.

    It is never more in all than it was: what a host says beyond that, the next look finds.
    """
    node, *both = renewal
    rest = [item for item in held if item.node != node or item.lease_id not in both]
    old, before = (
        sum(item.size_bytes for item in held if (item.node, item.lease_id) == (node, lease_id))
        for lease_id in both
    )
    kept = max(before, min(kept_bytes, old + before))
    # The newest lease last: it is the first that more is stored under.
    parts = [Held(node, both[0], old + before - kept), Held(node, both[1], kept)]
    return (*rest, *(item for item in parts if item.size_bytes)), kept - before


@dataclass(frozen=True, slots=True)
class Renewer:
    """Moves what lies under leases to those that renew them."""

    client: HostClient
    registries: Sequence[MaintainedObjects]

    async def renew(self, renewals: Sequence[Renewal]) -> set[bytes]:
        """Have all go over that fits; return the leases of which a host did not answer for all."""
        unheard: set[bytes] = set()
        by_old = {renewal[:2]: renewal for renewal in renewals}
        for objects in self.registries:
            found: defaultdict[tuple[bytes, bytes], list[bytes]] = defaultdict(list)
            async for ref, _ in sliced(objects.refs()):
                known = objects.load(ref)
                for item in () if known is None else known.held:
                    at = (item.node, item.lease_id)
                    if at in by_old and item.size_bytes and ref not in found[at][-1:]:
                        found[at].append(ref)
                        if len(found[at]) == RENEWAL_OBJECTS_MAX:
                            unheard |= await self._try(objects, by_old[at], found.pop(at))
            for at, refs in found.items():
                unheard |= await self._try(objects, by_old[at], refs)
        return unheard

    async def _try(
        self, objects: MaintainedObjects, renewal: Renewal, refs: Sequence[bytes]
    ) -> set[bytes]:
        try:
            await self._renew(objects, renewal, refs)
        except XscError as fault:
            if isinstance(fault, LeaseExhausted):
                # The next round takes another.
                self.client.hosts.renewal_ended(renewal[2])
            self.client.log.warning(
                "storage.not_renewed", peer=short(renewal[0]), reason=fault.message
            )
            return {renewal[1]}
        return set()

    async def _renew(
        self, objects: MaintainedObjects, renewal: Renewal, refs: Sequence[bytes]
    ) -> None:
        async with AsyncExitStack() as still:
            for ref in sorted(refs):
                await still.enter_async_context(objects.turns.of(ref))
            found = [known for ref in refs if (known := objects.load(ref)) is not None]
            if not found:
                return
            locates = [known.capability.locate for known in found]
            kept = await self.client.renew(*renewal, locates)
            after = [over(each.held, renewal, kept[each.capability.locate]) for each in found]
            moved = sum(size for _, size in after)
            self.client.hosts.renewed(*renewal[1:], moved)
            await together(
                objects.save(known.ref, known.placement, held)
                for known, (held, size) in zip(found, after, strict=True)
                if size
            )
