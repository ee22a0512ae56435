"""The files that a program leaves, as objects of the node that asked for the run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from xsc.base.errors import XscError
from xsc.base.jobs import StoredOutput
from xsc.node.build import Node


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def store_outputs(
    node: Node, prefix: str, files: Mapping[str, bytes]
) -> tuple[StoredOutput, ...]:
    """Store each file under the prefix and its path; return what became of each.

    The run is over and paid: what cannot be stored is told, and the others are stored.
    """
    told = []
    for path, data in sorted(files.items()):
        name, capability, fault = prefix + path, "", None
        try:
            done = await node.storage.put(_once(data), name=name, size_hint=len(data))
            capability = done.capability
        except XscError as error:
            fault = error
        told.append(StoredOutput(path, name, capability, len(data), fault))
    return tuple(told)
