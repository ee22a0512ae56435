"""Services: deploy, list, roll back, remove, and the log of requests."""

from __future__ import annotations

from collections.abc import Sequence

from xsc.api import services as api
from xsc.api.endpoint import Nothing
from xsc.compute.wasm.limits import limits_of
from xsc.node import build
from xsc.node.api.serving import Body


async def deploy(node: build.Node, asked: api.Deploy, body: Body) -> api.Service:
    """Make a module a service."""
    module = await body.exactly(asked.module_bytes, "the module")
    await body.ended()
    entry = await node.services.owner.deploy(
        await node.modules.find(asked.module, module),
        asked.name,
        version=asked.version,
        environment=asked.env,
        limits=limits_of(asked, node.compute.runner.limits),
        concurrency=asked.concurrency,
        on=None if asked.on is None else node.find(asked.on),
    )
    return node.services.view(entry)


async def list_(node: build.Node, _: Nothing) -> list[api.Service]:
    """List the services."""
    return node.services.views()


async def rollback(node: build.Node, asked: api.Rollback) -> api.Service:
    """Go back to a version."""
    entry = await node.services.owner.rollback(asked.name, asked.to)
    return node.services.view(entry)


async def undeploy(node: build.Node, asked: api.Named) -> api.Undeployed:
    """Remove a service."""
    warning = await node.services.owner.undeploy(asked.name)
    return api.Undeployed(name=asked.name, warning=warning)


async def log(node: build.Node, asked: api.Log) -> Sequence[api.Served]:
    """List requests of a service."""
    return await node.services.log_rows(
        asked.name, after=asked.after, most=asked.n, wait_ms=asked.wait_ms
    )
