"""Service endpoints: deploy, list, roll back, remove, and the log of requests.

The body of a deployment is a big-endian 32-bit length, that many bytes of JSON
(`DeployRequest`) and the module, or nothing more where it names one that is there.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import asdict

from aiohttp import web

from xsc.api.schema import DeployRequest, RollbackRequest, Service, ServiceRequest
from xsc.base.ids import to_text
from xsc.base.limits import SERVICE_LOG_ROWS_MAX
from xsc.compute.deployments.service import WAIT_MS_MAX, ServiceView
from xsc.compute.deployments.store import LogRow
from xsc.node.api.app import read_body, reply, whole_number
from xsc.node.api.framing import ended, exactly, head
from xsc.node.build import Node
from xsc.node.jobs.modules import name_of


def _number(request: web.Request, name: str, default: int | None, most: int) -> int | None:
    given = request.query.get(name)
    return default if given is None else whole_number(given, name, most)


def _row(row: LogRow) -> ServiceRequest:
    return ServiceRequest(**{**asdict(row), "receipt": b64encode(row.receipt).decode()})


def routes(node: Node) -> list[web.RouteDef]:
    """Return the service endpoints of a node."""

    def document(view: ServiceView) -> Service:
        told = asdict(view)
        owner, provider = told.pop("owner"), told.pop("provider")
        return Service(
            **{**told, "versions": list(view.versions)},
            owner=to_text(owner),
            owner_name=node.name_of(owner),
            node=to_text(provider),
            node_name=node.name_of(provider),
        )

    async def module_of(named: bytes | None, brought: bytes) -> bytes:
        if named is None:
            return brought
        return await node.services.module(named) or node.modules.get(named)

    async def deploy(request: web.Request) -> web.Response:
        asked = await head(request, DeployRequest)
        module = await exactly(request, asked.module_bytes, "the module")
        await ended(request)
        entry = await node.services.owner.deploy(
            await module_of(name_of(asked.module, module), module),
            asked.name,
            version=asked.version,
            environment=asked.env,
            limits=node.job_limits(asked.fuel, asked.memory_bytes, asked.timeout_ms),
            concurrency=asked.concurrency,
            on=None if asked.on is None else node.find(asked.on),
        )
        return reply(document(node.services.view(entry)), status=201)

    async def listed(_: web.Request) -> web.Response:
        return reply({"services": [document(view).model_dump() for view in node.services.views()]})

    async def rollback(request: web.Request) -> web.Response:
        asked = await read_body(request, RollbackRequest)
        entry = await node.services.owner.rollback(request.match_info["name"], asked.to)
        return reply(document(node.services.view(entry)))

    async def undeploy(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return reply({"name": name, "warning": await node.services.owner.undeploy(name)})

    async def log(request: web.Request) -> web.Response:
        rows = await node.services.log_rows(
            request.match_info["name"],
            after=_number(request, "after", None, 2**63 - 1),
            most=_number(request, "n", 100, SERVICE_LOG_ROWS_MAX) or 0,
            wait_ms=_number(request, "wait_ms", 0, WAIT_MS_MAX) or 0,
        )
        return reply({"requests": [_row(row).model_dump() for row in rows]})

    return [
        web.post("/v1/services", deploy),
        web.get("/v1/services", listed),
        web.post("/v1/services/{name}/rollback", rollback),
        web.delete("/v1/services/{name}", undeploy),
        web.get("/v1/services/{name}/log", log),
    ]
