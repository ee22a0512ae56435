"""A program's run, shown while it goes on: `POST /v1/jobs/stream`.

The request is that of `POST /v1/jobs`. The answer is JSON, a document a line:
`{"stdout"}` and `{"stderr"}` hold what was written (base64), in order of each stream; the last
line is `{"result"}`, without these two, or `{"problem"}`. Whoever hangs up cancels the run.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from dataclasses import replace

from aiohttp import web

from xsc.api.jobs import result_document
from xsc.api.problems import problem
from xsc.base.errors import ArgumentInvalid, XscError
from xsc.compute.jobs.output_buffer import OutputBuffer
from xsc.node.build import Node
from xsc.node.routes.jobs import read_job, run_job

PATH = "/v1/jobs/stream"
STREAMS = {1: "stdout", 2: "stderr"}
_LOOK_MS = 200
"""How often it is looked whether the caller is still there."""


def routes(node: Node) -> list[web.RouteDef]:
    """Return the streaming endpoint of a node."""

    async def watch(
        request: web.Request, output: OutputBuffer, running: asyncio.Task[object]
    ) -> None:
        """Cancel the run once nobody listens any more."""
        while not running.done():
            await asyncio.wait({running}, timeout=_LOOK_MS / 1000)
            if request.transport is None or request.transport.is_closing():
                output.cancel()
                return

    async def handle(request: web.Request) -> web.StreamResponse:
        asked, module, stdin = await read_job(request)
        if asked.mode != "run" or asked.verify is not None:
            raise ArgumentInvalid("only a program that one node runs is shown while it runs")
        output = OutputBuffer(node.clock)
        running = asyncio.create_task(run_job(node, asked, module, stdin, output))
        running.add_done_callback(lambda _: output.close())
        watching = asyncio.create_task(watch(request, output, running))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})

        async def line(document: dict[str, object]) -> None:
            await response.write(json.dumps(document).encode() + b"\n")

        try:
            await response.prepare(request)
            async for stream, piece in output.pieces():
                await line({STREAMS[stream]: b64encode(piece).decode()})
            try:
                done = await running
            except XscError as error:
                await line({"problem": problem(error)})
            else:
                await line({"result": result_document(replace(done, stdout=b"", stderr=b""))})
            await response.write_eof()
        finally:
            # The run itself goes to its end: what was used is paid, whoever listens.
            output.cancel()
            await asyncio.gather(running, watching, return_exceptions=True)
        return response

    return [web.post(PATH, handle)]
