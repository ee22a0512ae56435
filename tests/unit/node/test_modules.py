"""Modules that jobs name instead of bringing them."""

from __future__ import annotations

import hashlib
import json
from functools import partial

import pytest

from tests.sim.network import run
from tests.unit.compute.programs import wasm
from tests.unit.node.test_routes import Api
from xsc.api.jobs import RUN
from xsc.base.clock import InlineExecutor
from xsc.base.errors import ArgumentInvalid, ExportUnknown, ModuleUnknown
from xsc.base.limits import MIB, MODULE_BYTES_MAX, MODULE_NAMED_BYTES_LEAST
from xsc.node.jobs import MODULES_NAMED_BYTES_MAX, Modules

LARGE = wasm("add") + b"\0" + bytes([0x82, 0x80, 0x04, 1]) + b"x" + bytes(MODULE_NAMED_BYTES_LEAST)


class NoService:
    async def module(self, digest: bytes) -> bytes | None:
        return None


async def test_a_node_keeps_the_modules_that_came_last():
    modules = Modules(InlineExecutor(), NoService())
    count = MODULES_NAMED_BYTES_MAX // MODULE_BYTES_MAX
    large = [bytes([number]) + bytes(MODULE_BYTES_MAX - 1) for number in range(count)]
    names = [hashlib.sha256(module).hexdigest() for module in large]
    for module in large:
        assert await modules.find(None, module) is module
    assert await modules.find(names[0], b"") is large[0]
    await modules.find(None, bytes(MIB))
    assert modules._kept.size <= MODULES_NAMED_BYTES_MAX
    assert await modules.find(names[0], b"") is large[0]
    with pytest.raises(ModuleUnknown):
        await modules.find(names[1], b"")
    small = bytes(MODULE_NAMED_BYTES_LEAST - 1)
    await modules.find(None, small)
    with pytest.raises(ModuleUnknown):
        await modules.find(hashlib.sha256(small).hexdigest(), b"")


def body(brought=b"", named=None):
    order = {"mode": "invoke", "function": "add", "arguments": ["2", "3"], "local": True}
    raw = json.dumps({**order, "module": named, "module_bytes": len(brought)}).encode()
    return len(raw).to_bytes(4, "big") + raw + brought


async def answer(node, raw: bytes) -> dict[str, object]:
    """Return what a job is answered."""
    return await Api(node).call(RUN.method, RUN.path, body=raw)


def test_a_job_names_a_module_that_came_before():
    small, digest = wasm("add"), hashlib.sha256(LARGE).hexdigest()

    async def play(world):
        job = partial(answer, world.nodes[0])
        with pytest.raises(ModuleUnknown):
            await job(body(named=digest))
        assert (await job(body(LARGE)))["results"] == ["5"]
        for _ in range(2):
            assert (await job(body(named=digest)))["results"] == ["5"]
        assert (await job(body(small)))["results"] == ["5"]
        with pytest.raises(ModuleUnknown):
            await job(body(named=hashlib.sha256(small).hexdigest()))

    run(1, 1, play)


@pytest.mark.parametrize("digest", ["", "x" * 64, "A" * 64, "0" * 63, "0" * 65, 7])
def test_what_is_no_hash_is_refused(digest):
    async def play(world):
        with pytest.raises(ArgumentInvalid):
            await answer(world.nodes[0], body(named=digest))

    run(2, 1, play)


def test_a_module_is_not_both_named_and_brought():
    async def play(world):
        with pytest.raises(ArgumentInvalid, match="either"):
            await answer(world.nodes[0], body(LARGE, "0" * 64))

    run(3, 1, play)


async def deployed(node, name, brought=b"", named=None):
    """Return what a deployment at the API is answered."""
    head = json.dumps({"name": name, "module": named, "module_bytes": len(brought)}).encode()
    raw = len(head).to_bytes(4, "big") + head + brought
    return await Api(node).call("POST", "/v1/services", body=raw)


def test_a_deployment_names_a_module_that_a_service_has_or_that_a_job_brought():
    greet, digest = wasm("greet"), hashlib.sha256(wasm("greet")).hexdigest()

    async def play(world):
        node = world.nodes[0]
        with pytest.raises(ModuleUnknown):
            await deployed(node, "one", named=digest)
        assert node.services.views() == []
        with pytest.raises(ArgumentInvalid, match="either"):
            await deployed(node, "one", greet, "0" * 64)
        await deployed(node, "one", greet)
        assert (await deployed(node, "one", named=digest))["versions"] == ["2", "1"]
        assert (await deployed(node, "two", named=digest))["version"] == "1"
        for name in ("one", "two"):
            await node.services.owner.undeploy(name)
        with pytest.raises(ModuleUnknown):
            await deployed(node, "one", named=digest)
        # What a job brought is no program, but found.
        large = hashlib.sha256(LARGE).hexdigest()
        await answer(node, body(LARGE))
        with pytest.raises(ExportUnknown):
            await deployed(node, "one", named=large)

    run(4, 1, play)


@pytest.mark.parametrize("value", [None, b"other"])
def test_a_module_that_a_service_has_no_more_is_brought_and_written_again(value):
    greet, digest = wasm("greet"), hashlib.sha256(wasm("greet")).digest()

    async def play(world):
        node = world.nodes[0]
        await deployed(node, "one", greet)
        state = node.services.registry.store._state
        ((key, whole),) = [item for item in state.scan(b"") if item[1] == greet]
        state.write([(key, value)], sync=True)
        node.services.registry._modules.clear()
        with pytest.raises(ModuleUnknown):
            await deployed(node, "one", named=digest.hex())
        await deployed(node, "one", greet)
        assert state.get(key) == whole
        node.services.registry._modules.clear()
        assert (await deployed(node, "two", named=digest.hex()))["version"] == "1"

    run(5, 1, play)
