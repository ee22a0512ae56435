"""The Python client of a node.

    async with xsc.client.connect() as node:
        capability = await node.put("photo.jpg")
        await node.get(capability, "copy.jpg")
        sum_ = await node.invoke("add.wasm", "add", ["1", "2"])

Everything raises `xsc.base.errors.XscError`, the same errors that the command
line prints. The names below load on first use: the command line imports this
package for its synchronous core and must not pay for asyncio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xsc.base.jobs import JobItem, JobResult
    from xsc.client.client import Node, ObjectRow, SpaceChange, SpaceRecord, Stored, connect

__all__ = [
    "JobItem",
    "JobResult",
    "Node",
    "ObjectRow",
    "SpaceChange",
    "SpaceRecord",
    "Stored",
    "connect",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        from importlib import import_module  # noqa: PLC0415 - the point of loading late

        return getattr(import_module("xsc.client.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
