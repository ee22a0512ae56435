"""Programs: register, list, activate, deactivate, set a variable, follow results, explain.

A program is named by its hash or the beginning of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from xsc.allocation.program import parts_of
from xsc.api import programs as api
from xsc.api.endpoint import Nothing
from xsc.base.errors import ArgumentInvalid, NotFound, TooLarge
from xsc.base.limits import PROGRAM_DOCUMENT_BYTES_MAX
from xsc.node.api.serving import Answer, Body
from xsc.node.build import Node
from xsc.programs.limits import PROGRAM_MODULES_BYTES_MAX
from xsc.programs.service import ComputeRuntimeManager
from xsc.programs.why import Why, shown
from xsc.space.paths import parse_address


async def register(node: Node, asked: api.Register, body: Body) -> api.Results:
    """Register a program, and activate it if asked."""
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
    document = await body.exactly(asked.document_bytes, "the document")
    modules = {
        module.name: await body.exactly(module.size_bytes, "a module") for module in asked.modules
    }
    await body.ended()
    begin = node.programs.start if asked.activate else node.programs.register
    return node.programs.get_results(await begin(document, asked.form, modules))


async def list_(node: Node, _: Nothing) -> list[api.Program]:
    """List the programs."""
    return node.programs.status()


async def show(node: Node, asked: api.Hash) -> api.Results:
    """Show what a program computed last."""
    return node.programs.get_results(node.programs.find(asked.hash))


def _after(act: Callable[[ComputeRuntimeManager, bytes], Awaitable[object]]) -> Answer:
    """Return what does something with a program, and shows it then."""

    async def answer(node: Node, asked: api.Hash) -> api.Results:
        program = node.programs.find(asked.hash)
        await act(node.programs, program)
        return node.programs.get_results(program)

    return answer


activate = _after(ComputeRuntimeManager.activate)
deactivate = _after(ComputeRuntimeManager.deactivate)
exec_ = _after(ComputeRuntimeManager.execute)
stop = _after(ComputeRuntimeManager.stop)


async def set_(node: Node, asked: api.Set) -> api.Results:
    """Give a variable a value."""
    program = node.programs.find(asked.hash)
    await node.programs.set_variable(program, asked.name, asked.value)
    return node.programs.get_results(program)


async def watch(node: Node, asked: api.Hash) -> AsyncGenerator[api.Results, None]:
    """Yield results, at once and where they change, until the program is active no more."""
    program = node.programs.find(asked.hash)
    told = None
    changed = asyncio.ensure_future(node.programs.changed(program))
    try:
        await asyncio.sleep(0)
        if changed.done():
            changed.result()  # it is not active
        while True:
            results = node.programs.get_results(program)
            if results != told:
                yield results
            told = results
            try:
                await changed
            except NotFound:
                return
            changed = asyncio.ensure_future(node.programs.changed(program))
    finally:
        changed.cancel()


async def why(node: Node, asked: api.Why) -> api.Provenance:
    """Show what is behind a value."""
    owner, path = parse_address(asked.at)
    if not path:
        raise ArgumentInvalid("the path is missing", hint="write [OWNER:]part/part")
    walk = Why(node.following.read, node.peers.network, parts_of, node.parts.executor)
    root = await walk.walk(node.key.node_id if owner is None else node.find(owner), path)
    if asked.replay:
        await node.programs.rerun(root)
    return shown(root)
