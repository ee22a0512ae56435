from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from base64 import b64encode
from io import BytesIO
from urllib.parse import unquote

import pytest

from xsc import client
from xsc.base.errors import ArgumentInvalid, CapabilityInvalid, FuelExhausted, NodeUnreachable
from xsc.base.jobs import JobSpec
from xsc.base.limits import MODULE_NAMED_BYTES_LEAST
from xsc.client.calls import Calls

STORED = {
    "capability": "xsc:r:abc",
    "size_bytes": 3,
    "name": "photo.jpg",
    "hosts": [{"shard": 0, "node": "n0"}, {"shard": 1, "node": "n1"}],
    "survives_nodes": 1,
    "warnings": ["only two nodes are up"],
}
DONE = {
    "results": ["3"],
    "fuel_used": 5,
    "memory_peak_bytes": 65536,
    "wall_ms": 2,
    "provider": "n1",
    "trap": None,
    "receipt": b64encode(b"proof").decode(),
    "saved_bytes": 0,
    "compiled_bytes": 0,
}


@pytest.fixture
def there(stand_in):
    stand_in.answers("GET", "/v1/status", {"id": "n0"})
    return stand_in


def test_every_public_name_exists():
    for name in client.__all__:
        assert getattr(client, name).__doc__
    with pytest.raises(AttributeError):
        _ = client.nothing


async def test_a_node_that_does_not_run_is_unreachable(tmp_path):
    with pytest.raises(NodeUnreachable):
        async with client.connect(tmp_path):
            pass


async def test_put_and_get_a_file(there, tmp_path):
    there.answers("POST", "/v1/objects", STORED, 201)
    there.streams("/v1/object", b"abc")
    (tmp_path / "photo ü.jpg").write_bytes(b"abc")
    async with client.connect(str(there.home)) as node:
        assert node.id == "n0"
        capability = await node.put(tmp_path / "photo ü.jpg", survive="2nodes", code="1,2")
        assert capability == "xsc:r:abc"
        sent = there.last
        assert sent.body == b"abc"
        assert sent.headers["XSC-Name"] == "photo%20%C3%BC.jpg"
        assert sent.headers["XSC-Size"] == "3"
        assert sent.headers["XSC-Survive"] == "2nodes"
        assert sent.headers["XSC-Code"] == "1,2"
        assert await node.get(capability, tmp_path / "copy") == 3
        assert there.last.headers["XSC-Capability"] == "xsc:r:abc"
        assert await node.read(capability) == b"abc"
    assert (tmp_path / "copy").read_bytes() == b"abc"


async def test_bytes_are_stored_too(there):
    there.answers("POST", "/v1/objects", STORED, 201)
    async with client.connect(there.home) as node:
        stored = await node.store(b"abc", name="n")
    assert stored.hosts == ("n0", "n1")
    assert stored.warnings == ("only two nodes are up",)
    assert there.last.headers["XSC-Name"] == "n"


async def test_an_option_that_there_is_none_of_is_refused(there):
    async with client.connect(there.home) as node:
        for call in (node.put(b"", contract="1nodes"), node.deploy(b"", "a", memory=1)):
            with pytest.raises(TypeError):
                await call


async def test_a_file_that_is_not_there_is_named(there, tmp_path):
    async with client.connect(there.home) as node:
        with pytest.raises(ArgumentInvalid, match="there is no file"):
            await node.put(tmp_path / "nothing")


async def test_a_word_that_would_break_the_head_never_stands_in_it(there):
    there.refuses("GET", "/v1/object", "capability_invalid", "that is none")
    async with client.connect(there.home) as node:
        for word in ("a b", "a\r\nX: y", "é"):
            with pytest.raises(CapabilityInvalid):
                await node.read(word)
            assert unquote(there.last.headers["XSC-Capability"]) == word
        with pytest.raises(ArgumentInvalid, match="longer than any"):
            await node.read("a" * 9000)


async def test_objects_are_listed_and_removed(there):
    row = {"name": "a", "capability": "c", "size_bytes": 1, "created_ms": 2, "margin": 2}
    there.answers("GET", "/v1/objects", {"objects": [row]})
    there.answers("GET", "/v1/object/stat", {"readable": True})
    there.answers("DELETE", "/v1/object", {"confirmed": ["a"], "unconfirmed": ["b"]})
    async with client.connect(there.home) as node:
        assert await node.objects() == [client.ObjectRow("a", "c", 1, 2, 2)]
        assert await node.stat("c") == {"readable": True}
        assert await node.remove("c") == ["b"]


async def test_a_function_is_invoked(there, tmp_path):
    there.answers("POST", "/v1/jobs", DONE)
    async with client.connect(there.home) as node:
        done = await node.invoke(b"\0asm", "add", ["1", "2"], fuel=9, memory_bytes=65536, on="bob")
    assert done.results == ("3",)
    assert done.receipt == b"proof"
    order, rest = there.last.job()
    assert rest == b"\0asm"
    assert order == {
        "mode": "invoke",
        "function": "add",
        "arguments": ["1", "2"],
        "fuel": 9,
        "memory_bytes": 65536,
        "on": "bob",
        "module_bytes": 4,
    }


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_large_module_is_named_first_and_sent_once(there, streamed):
    module = b"\0asm" + bytes(MODULE_NAMED_BYTES_LEAST)
    path = "/v1/jobs/stream" if streamed else "/v1/jobs"
    known, ran, shown = set(), {**DONE, "exit_code": 0, "stdout": "", "stderr": "", "files": {}}, []

    def route(request):
        order, rest = request.job()
        digest = order.get("module") or hashlib.sha256(rest).hexdigest()
        problem = {"code": "module_unknown", "detail": "not here", "hint": ""}
        if order["module_bytes"]:
            assert rest == module
            known.add(digest)
        elif streamed and digest not in known:
            body = json.dumps({"problem": problem}).encode() + b"\n"
            return request.answer.raw(200, {"Content-Length": str(len(body))}, body)
        elif digest not in known:
            return request.answer.document(problem, 404)
        if streamed:
            body = json.dumps({"result": ran}).encode() + b"\n"
            return request.answer.raw(200, {"Content-Length": str(len(body))}, body)
        return request.answer.document(ran)

    there.routes["POST", path] = route
    calls = Calls(there.home)
    for _ in range(3):
        if streamed:
            calls.job(JobSpec.run(module), lambda *each: shown.append(each))
        else:
            calls.job(JobSpec.invoke(module, "add", ["1", "2"]))
    sizes = [request.job()[0]["module_bytes"] for request in there.requests]
    assert sizes == [0, len(module), 0, 0]
    assert shown == []


async def test_a_service_is_deployed_by_the_name_of_its_module(there):
    module, known = b"\0asm" + bytes(MODULE_NAMED_BYTES_LEAST), set()

    def route(request):
        order, rest = request.job()
        if order["module_bytes"]:
            known.add(hashlib.sha256(rest).hexdigest())
        elif order["module"] not in known:
            return request.answer.document(
                {"code": "module_unknown", "detail": "", "hint": ""}, 404
            )
        return request.answer.document(
            {"name": order["name"], "version": order.get("version")}, 201
        )

    there.routes["POST", "/v1/services"] = route
    calls = Calls(there.home)
    for version in ("1", "2"):
        assert calls.deploy(module, "web", version=version)["version"] == version
    calls.deploy(b"\0asm", "web")
    sizes = [request.job()[0]["module_bytes"] for request in there.requests]
    assert sizes == [0, len(module), 0, 4]


async def test_a_trap_is_raised_and_its_receipt_kept(there, tmp_path):
    trap = {"code": "fuel_exhausted", "detail": "all of 9 was used", "hint": "give more"}
    there.answers("POST", "/v1/jobs", {**DONE, "results": [], "trap": trap})
    (tmp_path / "spin.wasm").write_bytes(b"\0asm")
    async with client.connect(there.home) as node:
        with pytest.raises(FuelExhausted, match="all of 9"):
            await node.invoke(tmp_path / "spin.wasm", "spin", receipt=tmp_path / "r")
    assert (tmp_path / "r").read_bytes() == b"proof"


async def test_a_program_is_run(there):
    ran = {
        **{key: value for key, value in DONE.items() if key != "results"},
        "exit_code": 7,
        "stdout": b64encode(b"out").decode(),
        "stderr": b64encode(b"err").decode(),
        "files": {"f": b64encode(b"file").decode()},
    }
    there.answers("POST", "/v1/jobs", ran)
    async with client.connect(there.home) as node:
        done = await node.run(b"\0asm", ["a"], env={"K": "V"}, stdin=b"in", inputs={"n": "cap"})
    assert (done.exit_code, done.stdout, done.stderr) == (7, b"out", b"err")
    assert done.files == {"f": b"file"}
    order, rest = there.last.job()
    assert rest == b"\0asmin"
    assert order["stdin_bytes"] == 2
    assert order["inputs"] == {"n": "cap"}


async def test_peers_and_balances(there):
    there.answers("GET", "/v1/peers", {"peers": [{"id": "n1"}]})
    there.answers("GET", "/v1/ledger/balance", {"balances": [{"peer": "n1", "balance_micro": -4}]})
    async with client.connect(there.home) as node:
        assert await node.peers() == [{"id": "n1"}]
        assert await node.balances() == {"n1": -4}


async def test_calls_run_side_by_side(there):
    """Sixty-four calls that each wait for all others to have begun."""
    meet = threading.Barrier(64, timeout=30)

    def route(request):
        meet.wait()
        request.answer.document({"peers": []})

    there.routes["GET", "/v1/peers"] = route
    async with client.connect(there.home) as node:
        await asyncio.gather(*(node.peers() for _ in range(64)))


async def test_a_cancelled_put_stops_sending(there, tmp_path):
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()
    ended = threading.Event()

    def route(request):
        loop.call_soon_threadsafe(arrived.set)
        while request.answer.rfile.read1(65536):
            pass
        ended.set()

    there.early["POST", "/v1/objects"] = route
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    async with client.connect(there.home) as node:
        task = asyncio.create_task(node.put(tmp_path / "large"))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 10)


def _answers_batches(there, trapped=()):
    """Give back each line of a batch as its results."""

    def route(request):
        order, rest = request.job()
        lines = rest[order["module_bytes"] :].decode().splitlines()
        trap = {"code": "fuel_exhausted", "detail": "all was used", "hint": ""}
        items = [
            {"results": line.split(), "fuel_used": 1, "trap": trap if line in trapped else None}
            for line in lines
        ]
        request.answer.document({**DONE, "items": items})

    there.routes["POST", "/v1/jobs"] = route


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 100])
@pytest.mark.parametrize("lazily", [False, True])
async def test_many_calls_go_in_batches_and_come_back_in_order(there, count, lazily):
    _answers_batches(there, trapped={"1 -1"})
    calls = [[str(n), str(-n)] for n in range(count)]

    async def given():
        for each in calls:
            yield each

    async with client.connect(there.home) as node:
        many = node.invoke_many(
            b"\0asm", "f", given() if lazily else calls, batch=3, item_fuel=9, on="bob"
        )
        items = [item async for item in many]
    assert [list(item.results) for item in items] == calls
    assert [isinstance(item.trap, FuelExhausted) for item in items] == [
        n == 1 for n in range(count)
    ]
    assert all(item.receipt == b"proof" for item in items)
    jobs = [request for request in there.requests if request.method == "POST"]
    assert len(jobs) == -(-count // 3)
    for request in jobs:
        order, _ = request.job()
        assert (order["mode"], order["item_fuel"], order["on"]) == ("batch", 9, "bob")


async def test_only_what_is_wanted_is_taken_of_many_calls(there):
    _answers_batches(there)
    taken = []

    def given():
        for number in range(10**9):
            taken.append(number)
            yield [str(number)]

    async with client.connect(there.home) as node:
        many = node.invoke_many(b"\0asm", "f", given(), batch=10)
        assert (await anext(many)).results == ("0",)
        await many.aclose()
    assert len(taken) <= 20


async def test_what_is_wrong_about_many_calls_is_said(there):
    _answers_batches(there)
    async with client.connect(there.home) as node:
        for call in (["1 2"], [""], ["1", "2\n3"]):
            with pytest.raises(ArgumentInvalid):
                [item async for item in node.invoke_many(b"", "f", [call])]
        for batch in (0, 65_537):
            with pytest.raises(ArgumentInvalid):
                [item async for item in node.invoke_many(b"", "f", [], batch=batch)]
        there.refuses("POST", "/v1/jobs", "fuel_exhausted", "no")
        with pytest.raises(FuelExhausted):
            [item async for item in node.invoke_many(b"", "f", [["1"]] * 9, batch=2)]


async def test_a_service_is_deployed_listed_rolled_back_and_removed(there, tmp_path):
    view = {"name": "greet", "version": "2"}
    there.answers("POST", "/v1/services", view, 201)
    there.answers("GET", "/v1/services", {"services": [view]})
    there.answers("POST", "/v1/services/greet/rollback", {"name": "greet", "version": "1"})
    there.answers("DELETE", "/v1/services/greet", {"name": "greet", "warning": ""})
    (tmp_path / "greet.wasm").write_bytes(b"\0asm")
    async with client.connect(there.home) as node:
        assert (
            await node.deploy(
                tmp_path / "greet.wasm", "greet", env={"A": "b"}, fuel=9, concurrency=2
            )
            == view
        )
        asked, module = there.last.job()
        assert (asked["env"], asked["fuel"], asked["concurrency"]) == ({"A": "b"}, 9, 2)
        assert module == b"\0asm"
        assert await node.services() == [view]
        assert (await node.rollback("greet", "1"))["version"] == "1"
        assert there.last.json() == {"to": "1"}
        await node.undeploy("greet")
    assert there.last.method == "DELETE"


@pytest.mark.parametrize("newest", [0, 1, 2])
async def test_a_log_is_followed_from_its_end(there, newest):
    rows = [{"number": number} for number in (1, 2)]
    coming = iter([[], [{"number": 3}, {"number": 4}], [{"number": 5}]])
    there.routes["GET", f"/v1/services/greet/log?n={max(newest, 1)}"] = lambda request: (
        request.answer.document({"requests": rows[-max(newest, 1) :]})
    )

    def more(request):
        request.answer.document({"requests": next(coming)})

    for after in (2, 4):
        there.routes["GET", f"/v1/services/greet/log?after={after}&wait_ms=1000"] = more
    async with client.connect(there.home) as node:
        seen = []
        async for row in node.follow("greet", newest):
            seen.append(row["number"])
            if seen[-1] == 5:
                break
    assert seen == [*range(3 - newest, 3), 3, 4, 5]


async def test_a_name_that_is_no_text_is_said_to_be_one(there):
    calls = Calls(there.home)
    for call in (
        lambda: calls.put(BytesIO(b"a"), name="\udcff"),
        lambda: calls.objects("\udcff"),
        lambda: calls.named("\udcff"),
        lambda: calls.named("\udcff", 1),
    ):
        with pytest.raises(ArgumentInvalid, match="not Unicode text"):
            call()
    assert there.requests == []


async def test_a_concurrency_of_none_at_all_is_left_to_the_node(there):
    there.answers("POST", "/v1/services", {}, 201)
    calls = Calls(there.home)
    for given, told in ((0, {"concurrency": 0}), (2, {"concurrency": 2}), (None, {}), (4, {})):
        calls.deploy(b"\0asm", "web", concurrency=given)
        order, _ = there.last.job()
        assert order == {"name": "web", "module_bytes": 4, **told}
