"""Compute endpoint: one job a request.

The body is a big-endian 32-bit length, that many bytes of JSON (`JobRequest`),
the module, and for a run its standard input; for a batch the lines of arguments. Instead
of bringing the module a request may name one that came before (`JobRequest.module`); where
it is not kept any more, the answer is `module_unknown`, and nothing was run.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from aiohttp import web

from xsc.api.schema import JobRequest
from xsc.base.clock import run_sized
from xsc.base.errors import ArgumentInvalid
from xsc.compute.jobs.output_buffer import Tape
from xsc.compute.jobs.quorum import read_quorum
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
from xsc.node.jobs.batch import read_lines
from xsc.node.jobs.modules import name_of
from xsc.node.jobs.results import batch_document, invoke_document, run_document
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


class Job(Protocol):
    """Carries a job out."""

    async def __call__(
        self, asked: JobRequest, module: bytes, stdin: bytes, tape: Tape | None = None
    ) -> dict[str, object]:
        """Return the document of what came of it; a program's output goes to the tape, too."""


async def read_job(request: web.Request) -> tuple[JobRequest, bytes, bytes]:
    """Return the request, the module and the standard input of a body as it arrives."""
    asked = await head(request, JobRequest)
    module = await exactly(request, asked.module_bytes, "the module")
    stdin = await exactly(request, asked.stdin_bytes, "the standard input")
    await ended(request)
    return asked, module, stdin


def jobs(node: Node) -> Job:
    """Return what carries out the jobs of a node."""

    async def module_of(asked: JobRequest, brought: bytes) -> bytes:
        named = name_of(asked.module, brought)
        if named is not None:
            return node.modules.get(named)
        if node.modules.wants(brought):
            executor = node.parts.executor
            node.modules.keep(await run_sized(executor, len(brought), _sha256, brought), brought)
        return brought

    async def job(
        asked: JobRequest, module: bytes, stdin: bytes, tape: Tape | None = None
    ) -> dict[str, object]:
        module = await module_of(asked, module)
        limits = node.job_limits(asked.fuel, asked.memory_bytes, asked.timeout_ms)
        on = None if asked.on is None else node.find(asked.on)
        quorum = None if asked.verify is None else read_quorum(asked.verify)
        if asked.store is not None and asked.mode != "run":
            raise ArgumentInvalid("a program leaves files, and a function none")
        if asked.mode == "invoke":
            done = await node.compute.invoke(
                module,
                asked.function,
                asked.arguments,
                limits,
                on=on,
                local=asked.local,
                grants=asked.grants,
                quorum=quorum,
            )
            return invoke_document(done)
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
                grants=asked.grants,
            )
            return batch_document(batch)
        ran = await node.compute.run(
            module,
            asked.arguments,
            asked.env,
            stdin,
            {},
            limits,
            on=on,
            local=asked.local,
            grants=asked.grants,
            quorum=quorum,
            tape=tape,
            objects=await node.job_inputs.find(asked.inputs),
        )
        document = run_document(ran)
        if asked.store is not None and ran.trap is None:
            document |= await store_outputs(node, asked.store, ran.files)
        return document

    return job


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def fast_path_handlers(node: Node) -> dict[str, FastPathHandler]:
    """Return the handler of jobs that are small requests."""
    job = jobs(node)

    async def handle(request: SmallRequest) -> tuple[int, dict[str, object]]:
        return 200, await job(*_split(request.body))

    return {PATH: handle}


def routes(node: Node) -> list[web.RouteDef]:
    """Return the compute endpoint of a node."""
    job = jobs(node)

    async def handle(request: web.Request) -> web.Response:
        return reply(await job(*await read_job(request)))

    return [web.post(PATH, handle)]
