"""Compute endpoint: one job a request.

The body is a big-endian 32-bit length, that many bytes of JSON (`JobRequest`),
the module, and for a run its standard input; for a batch the lines of arguments.
"""

from __future__ import annotations

from aiohttp import web

from xsc.api.schema import JobRequest
from xsc.base.errors import ArgumentInvalid, TooLarge
from xsc.base.limits import INPUT_BYTES_MAX
from xsc.compute.quorum import read_quorum
from xsc.node.batch import read_lines
from xsc.node.build import Node
from xsc.node.http import JSON_BYTES_MAX, parse, reply
from xsc.node.results import batch_document, invoke_document, run_document


async def _exactly(request: web.Request, size: int, what: str) -> bytes:
    parts: list[bytes] = []
    left = size
    while left:
        chunk = await request.content.read(left)
        if not chunk:
            raise ArgumentInvalid(f"the request ends within {what}")
        parts.append(chunk)
        left -= len(chunk)
    return b"".join(parts)


def routes(node: Node) -> list[web.RouteDef]:
    """Return the compute endpoint of a node."""

    async def inputs_of(asked: JobRequest) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        total = 0
        for name, capability in asked.inputs.items():
            reader = await node.storage.open(capability)
            total += reader.size_bytes
            if total > INPUT_BYTES_MAX:
                raise TooLarge(f"the inputs of one job are bounded to {INPUT_BYTES_MAX} bytes")
            files[name] = b"".join([chunk async for chunk in reader.stream()])
        return files

    async def job(request: web.Request) -> web.Response:
        head_bytes = int.from_bytes(await _exactly(request, 4, "its length"), "big")
        if head_bytes > JSON_BYTES_MAX:
            raise TooLarge(f"the JSON of a job is bounded to {JSON_BYTES_MAX} bytes")
        asked = parse(await _exactly(request, head_bytes, "its JSON"), JobRequest)
        module = await _exactly(request, asked.module_bytes, "the module")
        stdin = await _exactly(request, asked.stdin_bytes, "the standard input")
        if await request.content.read(1):
            raise ArgumentInvalid("the request goes on after its end")
        limits = node.job_limits(asked.fuel, asked.memory_bytes, asked.timeout_ms)
        on = None if asked.on is None else node.find(asked.on)
        quorum = None if asked.verify is None else read_quorum(asked.verify)
        if asked.mode == "invoke":
            done = await node.compute.invoke(
                module,
                asked.function,
                asked.arguments,
                limits,
                on=on,
                local=asked.local,
                quorum=quorum,
            )
            return reply(invoke_document(done))
        if asked.mode == "batch":
            if quorum is not None:
                raise ArgumentInvalid("a batch is run by one provider")
            batch = await node.compute.invoke_batch(
                module,
                asked.function,
                read_lines(stdin),
                limits,
                item_fuel=asked.item_fuel,
                on=on,
                local=asked.local,
            )
            return reply(batch_document(batch))
        ran = await node.compute.run(
            module,
            asked.arguments,
            asked.env,
            stdin,
            await inputs_of(asked),
            limits,
            on=on,
            local=asked.local,
            quorum=quorum,
        )
        return reply(run_document(ran))

    return [web.post("/v1/jobs", job)]
