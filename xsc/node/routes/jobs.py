"""Compute endpoint: one job a request.

The body is a big-endian 32-bit length, that many bytes of JSON (`JobRequest`), the module,
and for a run its standard input; for a batch the lines of arguments. Instead of bringing the
module a request may name one that came before (`JobRequest.module`); where the node does not
keep it any more, the answer is `module_unknown`, and nothing was run.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from aiohttp import web

from xsc.api.jobs import result_document
from xsc.api.schema import JobRequest
from xsc.base.clock import run_sized
from xsc.base.ids import to_text
from xsc.base.jobs import JobResult
from xsc.compute.jobs.output_buffer import OutputBuffer
from xsc.net.transport.parser import SmallRequest
from xsc.node.api.app import FastPathHandler, parse, reply
from xsc.node.api.framing import (
    LENGTH_BYTES,
    check_head,
    cut_short,
    ended,
    exactly,
    head,
    too_long,
)
from xsc.node.build import Node
from xsc.node.jobs.modules import name_of
from xsc.node.routes.outputs import store_outputs

PATH = "/v1/jobs"


def _split(raw: bytes) -> tuple[JobRequest, bytes, bytes]:
    """Return the request, the module and the standard input of a whole body."""
    view = memoryview(raw)

    def take(size: int, what: str) -> memoryview:
        nonlocal view
        if len(view) < size:
            raise cut_short(what)
        taken, view = view[:size], view[size:]
        return taken

    size = int.from_bytes(take(LENGTH_BYTES, "its length"), "big")
    check_head(size)
    asked = parse(bytes(take(size, "its JSON")), JobRequest)
    module = bytes(take(asked.module_bytes, "the module"))
    stdin = bytes(take(asked.stdin_bytes, "the standard input"))
    if view:
        raise too_long()
    return asked, module, stdin


async def read_job(request: web.Request) -> tuple[JobRequest, bytes, bytes]:
    """Return the request, the module and the standard input of a body as it arrives."""
    asked = await head(request, JobRequest)
    module = await exactly(request, asked.module_bytes, "the module")
    stdin = await exactly(request, asked.stdin_bytes, "the standard input")
    await ended(request)
    return asked, module, stdin


async def run_job(
    node: Node, asked: JobRequest, module: bytes, stdin: bytes, output: OutputBuffer | None = None
) -> JobResult:
    """Run the job of a request; what a program writes goes to `output`, too."""
    limits = node.job_limits(asked.fuel, asked.memory_bytes, asked.timeout_ms)
    spec = asked.spec(
        await _module(node, asked.module, module),
        stdin,
        fuel=limits.fuel,
        memory_bytes=limits.memory_bytes,
        timeout_ms=limits.timeout_ms,
        on=None if asked.on is None else to_text(node.find(asked.on)),
    )
    objects = await node.job_inputs.find(spec.inputs) if spec.inputs else ()
    done = await node.compute.run(spec, objects=objects, output=output)
    if spec.store is not None and done.trap is None:
        return replace(done, objects=await store_outputs(node, spec.store, done.files))
    return done


async def _module(node: Node, name: str | None, brought: bytes) -> bytes:
    named = name_of(name, brought)
    if named is not None:
        return node.modules.get(named)
    if node.modules.wants(brought):
        executor = node.parts.executor
        node.modules.keep(await run_sized(executor, len(brought), _sha256, brought), brought)
    return brought


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def fast_path_handlers(node: Node) -> dict[str, FastPathHandler]:
    """Return the handler of jobs that are small requests."""

    async def handle(request: SmallRequest) -> tuple[int, dict[str, object]]:
        return 200, result_document(await run_job(node, *_split(request.body)))

    return {PATH: handle}


def routes(node: Node) -> list[web.RouteDef]:
    """Return the compute endpoint of a node."""

    async def handle(request: web.Request) -> web.Response:
        return reply(result_document(await run_job(node, *await read_job(request))))

    return [web.post(PATH, handle)]
