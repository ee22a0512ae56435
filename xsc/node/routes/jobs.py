"""Jobs: one a request, answered at its end or shown while it runs.

Instead of bringing its module a request may name one that came before; where the node does not
keep it any more, the answer is `module_unknown`, and nothing was run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace

from xsc.api import endpoint, problems
from xsc.api import jobs as api
from xsc.base import errors, ids
from xsc.base.jobs import JobResult, StoredOutput
from xsc.compute.jobs.output_buffer import OutputBuffer
from xsc.node.api.serving import Body
from xsc.node.build import Node


async def _brought(asked: api.Job, body: Body) -> tuple[bytes, bytes]:
    """Return the module and the standard input that follow a request."""
    module = await body.exactly(asked.module_bytes, "the module")
    stdin = await body.exactly(asked.stdin_bytes, "the standard input")
    await body.ended()
    return module, stdin


async def _run(
    node: Node, asked: api.Job, module: bytes, stdin: bytes, output: OutputBuffer | None = None
) -> JobResult:
    """Run the job of a request; what a program writes goes to `output`, too."""
    spec = asked.spec(
        await node.modules.find(asked.module, module),
        stdin,
        on=None if asked.on is None else ids.to_text(node.find(asked.on)),
    )
    objects = await node.job_inputs.find(spec.inputs) if spec.inputs else ()
    done = await node.compute.run(spec, objects=objects, output=output)
    if spec.store is not None and done.trap is None:
        return replace(done, objects=await _store_outputs(node, spec.store, done.files))
    return done


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _store_outputs(
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
        except errors.XscError as error:
            fault = error
        told.append(StoredOutput(path, name, capability, len(data), fault))
    return tuple(told)


async def run(node: Node, asked: api.Job, body: Body) -> api.Result:
    """Run a job."""
    return api.result_of(await _run(node, asked, *await _brought(asked, body)))


async def stream(node: Node, asked: api.Job, body: Body) -> AsyncGenerator[api.Line | None, None]:
    """Run a program, and yield what it writes; whoever hangs up cancels the run.

    None at first: the request is in order. The last line is its result, without what was shown, or
    why there is none.
    """
    brought = await _brought(asked, body)
    if asked.mode != "run" or asked.verify is not None:
        raise errors.ArgumentInvalid("only a program that one node runs is shown while it runs")
    output = OutputBuffer(node.clock)
    running = asyncio.create_task(_run(node, asked, *brought, output))
    running.add_done_callback(lambda _: output.close())
    try:
        yield None
        async for number, piece in output.pieces():
            yield api.Line(stdout=piece) if number == 1 else api.Line(stderr=piece)
        try:
            done = await running
        except errors.XscError as error:
            yield api.Line(problem=problems.problem(error))
        else:
            yield api.Line(result=api.result_of(replace(done, stdout=b"", stderr=b"")))
    finally:
        # The run itself goes to its end: what was used is paid, whoever listens.
        output.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def evidence(node: Node, _: endpoint.Nothing) -> list[api.Evidence]:
    """List contradictory receipts."""
    return node.evidence.list()


async def evidence_record(node: Node, asked: endpoint.Id) -> bytes:
    """Return one record of evidence."""
    return node.evidence.get(asked.id)
