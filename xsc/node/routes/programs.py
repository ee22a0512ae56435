"""Program endpoints: register, list, activate, deactivate, set a variable, and follow results.

The body of a registration is a big-endian 32-bit length, that many bytes of JSON
(`ProgramRequest`), the document, and the modules in their order. A program is named by its hash or
the beginning of one. Results are followed as server-sent events, the first one at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from aiohttp import web

from xsc.api.schema import Empty, ProgramRequest, ProgramResults, ProgramRow, ProgramSet
from xsc.base.errors import NotFound, TooLarge
from xsc.base.limits import PROGRAM_DOCUMENT_BYTES_MAX
from xsc.node.api.app import read_body, reply
from xsc.node.api.framing import ended, exactly, head
from xsc.node.build import Node
from xsc.programs.limits import PROGRAM_MODULES_BYTES_MAX

BEAT_MS = 5_000
"""Results that do not change are followed by a comment this often, so that each side notices if
the other is gone."""


def routes(node: Node) -> list[web.RouteDef]:
    """Return the program endpoints of a node."""

    def named(request: web.Request) -> bytes:
        return node.programs.find(request.match_info["hash"])

    def results(program: bytes) -> ProgramResults:
        return ProgramResults.model_validate(node.programs.get_results(program))

    async def register(request: web.Request) -> web.Response:
        asked = await head(request, ProgramRequest)
        if asked.document_bytes > PROGRAM_DOCUMENT_BYTES_MAX:
            raise TooLarge(
                f"a document of {asked.document_bytes} bytes is over its bound of "
                f"{PROGRAM_DOCUMENT_BYTES_MAX}",
                hint="divide it into several programs",
            )
        if sum(module.size_bytes for module in asked.modules) > PROGRAM_MODULES_BYTES_MAX:
            raise TooLarge(
                f"all modules have at most {PROGRAM_MODULES_BYTES_MAX} bytes together",
                hint="build them smaller, or divide the program",
            )
        document = await exactly(request, asked.document_bytes, "the document")
        modules = {
            module.name: await exactly(request, module.size_bytes, "a module")
            for module in asked.modules
        }
        await ended(request)
        begin = node.programs.start if asked.activate else node.programs.register
        return reply(results(await begin(document, asked.form, modules)), status=201)

    async def listed(_: web.Request) -> web.Response:
        rows = [ProgramRow.model_validate(row).model_dump() for row in node.programs.status()]
        return reply({"programs": rows})

    async def shown(request: web.Request) -> web.Response:
        return reply(results(named(request)))

    async def activate(request: web.Request) -> web.Response:
        await read_body(request, Empty)
        program = named(request)
        await node.programs.activate(program)
        return reply(results(program))

    async def deactivate(request: web.Request) -> web.Response:
        await read_body(request, Empty)
        program = named(request)
        await node.programs.deactivate(program)
        return reply(results(program))

    async def set_variable(request: web.Request) -> web.Response:
        asked, program = await read_body(request, ProgramSet), named(request)
        await node.programs.set_variable(program, request.match_info["name"], asked.value)
        return reply(results(program))

    async def watch(request: web.Request) -> web.StreamResponse:
        program = named(request)
        changed = asyncio.ensure_future(node.programs.changed(program))
        await asyncio.sleep(0)
        if changed.done():
            changed.result()  # it is not active
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await _tell(response, changed, lambda: results(program), node, program)
        await response.write_eof()
        return response

    return [
        web.post("/v1/programs", register),
        web.get("/v1/programs", listed),
        web.get("/v1/programs/{hash}", shown),
        web.post("/v1/programs/{hash}/activate", activate),
        web.post("/v1/programs/{hash}/deactivate", deactivate),
        web.put("/v1/programs/{hash}/variables/{name}", set_variable),
        web.get("/v1/programs/{hash}/watch", watch),
    ]


async def _tell(
    response: web.StreamResponse,
    changed: asyncio.Future[None],
    results: Callable[[], ProgramResults],
    node: Node,
    program: bytes,
) -> None:
    """Send results until the program is deactivated or the node stops.

    Raises:
        ConnectionError: the client is gone.
    """
    told = ""
    try:
        while True:
            text = json.dumps(results().model_dump(), ensure_ascii=False)
            if text != told:
                await response.write(b"data: " + text.encode() + b"\n\n")
            told = text
            while not changed.done():
                await asyncio.wait({changed}, timeout=BEAT_MS / 1000)
                if not changed.done():
                    await response.write(b":\n\n")
            changed.result()
            changed = asyncio.ensure_future(node.programs.changed(program))
    except NotFound:
        return
    finally:
        changed.cancel()
