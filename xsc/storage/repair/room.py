"""Leases room for columns at hosts, and deletes what is not needed there any more."""

from __future__ import annotations

from xsc.base.errors import SpaceExhausted, XscError
from xsc.base.ids import short
from xsc.base.refusals import refusal
from xsc.storage.ports import HostLease
from xsc.storage.repair.maintained_object import without
from xsc.storage.repair.survey import Survey
from xsc.storage.transfer.host_client import HostClient
from xsc.storage.transfer.put import Held


async def room_at(
    client: HostClient, targets: frozenset[bytes], size_bytes: int
) -> tuple[HostLease | None, str]:
    """Return room at one of the nodes, or why there is none."""
    known = {client.own, *client.hosts.peers()}
    offered = await client.hosts.lease_hosts(
        size_bytes=size_bytes, count=1, exclude=frozenset(known - targets)
    )
    if not offered.leases:
        if any(isinstance(fault, SpaceExhausted) for fault in offered.refused.values()):
            client.hosts.unplaced(size_bytes, 1)
        return None, refusal(offered.refused, "no node offers the room that is needed").message
    client.hosts.placed(size_bytes)
    if offered.leases[0].node not in targets:
        return None, "no node that may take it has room"
    return offered.leases[0], ""


async def delete_at(
    client: HostClient, survey: Survey, node: bytes, columns: frozenset[int], held: list[Held]
) -> list[Held]:
    """Delete columns of an object at a host; return what is held after that.

    Args:
        client: the hosts.
        survey: of the object.
        node: the host. One that does not confirm is asked again after the next survey.
        columns: to delete; all that is there if empty.
        held: what is held before.
    """
    try:
        freed, _ = await client.delete(node, survey.located.locate, columns=columns)
    except XscError as fault:
        ref = short(survey.maintained.ref)
        client.log.warning("repair.failed", object=ref, reason=fault.message)
        return held
    if columns:
        for lease_id, size in freed.items():
            await client.note_freed(node, lease_id, size)
        return without(held, node, freed)
    for item in held:
        if item.node == node:
            await client.note_freed(node, item.lease_id, item.size_bytes)
    return [item for item in held if item.node != node]
