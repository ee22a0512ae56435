"""Requests of the table of endpoints: how they are read, refused and answered."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Annotated

import pytest
from aiohttp import ClientSession, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from annotated_types import Ge, Le, MaxLen

from tests.settle import turns
from xsc.api.endpoint import Endpoint, Model, header, written
from xsc.base.errors import ArgumentInvalid, NotFound, TooLarge
from xsc.base.ids import short
from xsc.base.log import SilentLog
from xsc.node.api import serving
from xsc.node.api.app import PATH, application
from xsc.node.api.serving import JSON_BYTES_MAX, Server

TOKEN = "a" * 52
NODE = SimpleNamespace(log=SilentLog(), name_of=short)


class Asked(Model):
    """Of all places but the body."""

    who: str
    secret: str = header("XSC-Secret", default="")
    count: Annotated[int, Ge(0), Le(9)] = 0
    deep: bool = False


class Sent(Model):
    """Of the path and the body."""

    who: str
    count: Annotated[int, Ge(0), Le(9)] = 0
    names: Annotated[tuple[Annotated[str, MaxLen(3)], ...], MaxLen(2)] = ()


class Heard(Model):
    """What was understood."""

    asked: str


LOOK = Endpoint("GET", "/v1/look/{who}", Asked, Heard, "Look.")
SEND = Endpoint("POST", "/v1/send/{who}", Sent, Heard, "Send.")
BRING = Endpoint("POST", "/v1/bring/{who}", Sent, Heard, "Bring.", takes="framed", status=201)
WATCH = Endpoint("GET", "/v1/watch/{who}", Asked, Heard, "Watch.", gives="events")


async def heard(_, asked):
    return Heard(asked=repr(asked))


async def brought(_, asked, body):
    rest = await body.exactly(asked.count, "what is counted")
    await body.ended()
    return Heard(asked=repr((asked, rest)))


async def watch(_, asked):
    if asked.who == "nobody":
        await turns(3)
        raise NotFound("nobody")
    yield None
    yield Heard(asked="ä")


def served():
    answers = {LOOK: heard, SEND: heard, BRING: brought, WATCH: watch}
    return Server(NODE, answers).routes()


async def ask(endpoint, path, *, query="", raw=b"", **headers):
    """Return what a request was understood as, and the status."""
    (handler,) = [each.handler for each in served() if each.path == endpoint.path]
    stream = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2 * JSON_BYTES_MAX)
    stream.feed_data(raw)
    stream.feed_eof()
    place = endpoint.path.partition("{")[0] + "who" + query
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = make_mocked_request(endpoint.method, place, headers=named, payload=stream)
    request[PATH] = {"who": path}
    answer = await handler(request)
    return answer.status, json.loads(answer.text)["asked"]


def framed(document, rest=b""):
    raw = json.dumps(document).encode()
    return len(raw).to_bytes(4, "big") + raw + rest


async def test_a_request_is_read_from_path_header_query_and_json():
    given = {"query": "?count=7&deep=1", "XSC_Secret": "a%20%C3%A4"}
    expected = Asked(who="anna b", secret="a ä", count=7, deep=True)
    assert await ask(LOOK, "anna b", **given) == (200, repr(expected))
    assert await ask(LOOK, "anna") == (200, repr(Asked(who="anna")))
    sent = Sent(who="anna", count=3, names=("x", "y"))
    raw = b'{"count": 3, "names": ["x", "y"]}'
    assert await ask(SEND, "anna", raw=raw) == (200, repr(sent))
    assert await ask(SEND, "anna") == (200, repr(Sent(who="anna")))
    raw = framed({"count": 3}, b"abc")
    said = repr((replace(sent, names=()), b"abc"))
    assert await ask(BRING, "anna", raw=raw) == (201, said)


async def test_what_the_client_writes_is_what_the_node_reads():
    asked = Asked(who="anna", secret="ä,\n=%", count=9, deep=True)
    path, headers, _ = written(LOOK, asked)
    query = path[path.index("?") :]
    assert await ask(LOOK, "anna", query=query, **headers) == (200, repr(asked))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?limit=1", "the request is wrong at limit: there is no such field"),
        ("?count=1&count=2", "the same field more than once"),
        ("?count=x", "the request is wrong at count: "),
        ("?count=1.0", "the request is wrong at count: "),
        ("?count=%2B1", "the request is wrong at count: "),
        ("?count=0_1", "the request is wrong at count: "),
        ("?count=10", "count must be at most 9, not 10"),
        ("?count=-1", "count must be at least 0, not -1"),
        ("?deep=2", "the request is wrong at deep: "),
        ("?who=bert", "belongs elsewhere: who"),
        ("?secret=x", "belongs elsewhere: secret"),
    ],
)
async def test_a_query_that_does_not_fit_is_refused(query, said):
    with pytest.raises(ArgumentInvalid, match=said):
        await ask(LOOK, "anna", query=query)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"more": 1}', "the request is wrong at more: there is no such field"),
        (b'{"count": "1"}', "the request is wrong at count: "),
        (b'{"names": ["long"]}', "names.0 must have at most 3 characters"),
        (b'{"names": ["a", "b", "c"]}', "names must have at most 2 items"),
        (b'{"who": "bert"}', "says in its body what stands in its path"),
        (b'{"who": "anna"}', "says in its body what stands in its path"),
        (b"[]", "the request is wrong at the body: "),
        (b"{", "the request is wrong at the body: "),
    ],
)
async def test_json_that_does_not_fit_is_refused(raw, said):
    with pytest.raises(ArgumentInvalid, match=said):
        await ask(SEND, "anna", raw=raw)
    with pytest.raises(ArgumentInvalid, match=said):
        await ask(BRING, "anna", raw=len(raw).to_bytes(4, "big") + raw)


@pytest.mark.parametrize("endpoint", [SEND, BRING])
async def test_a_request_with_json_has_no_query(endpoint):
    with pytest.raises(ArgumentInvalid, match="takes no query"):
        await ask(endpoint, "anna", query="?count=1", raw=b"{}")


async def test_json_has_a_bound():
    most = b'{"count": 1}'.ljust(JSON_BYTES_MAX)
    assert (await ask(SEND, "anna", raw=most))[0] == 200
    with pytest.raises(TooLarge):
        await ask(SEND, "anna", raw=most + b" ")
    with pytest.raises(TooLarge):
        await ask(BRING, "anna", raw=(JSON_BYTES_MAX + 1).to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\0\0", "the request ends within its length"),
        (framed({"count": 2})[:-1], "the request ends within its JSON"),
        (framed({"count": 2}, b"a"), "the request ends within what is counted"),
        (framed({"count": 2}, b"abc"), "the request goes on after its end"),
    ],
)
async def test_a_framed_request_that_ends_early_or_goes_on_is_refused(raw, said):
    with pytest.raises(ArgumentInvalid, match=said) as refused:
        await ask(BRING, "anna", raw=raw)
    assert "the length of a JSON document in 4 bytes" in refused.value.hint


async def test_events_begin_with_a_comment_where_the_first_is_none(monkeypatch):
    app = application(served(), TOKEN, SilentLog(), dict)
    runner = web.ServerRunner(web.Server(app))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    monkeypatch.setattr(serving, "_LOOK_MS", 1)
    monkeypatch.setattr(serving, "BEAT_MS", 60_000)
    async with ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        async with session.get(f"http://{host}:{port}/v1/watch/anna") as answer:
            assert answer.content_type == "text/event-stream"
            assert await answer.text() == ':\n\ndata: {"asked": "ä"}\n\n'
        async with session.get(f"http://{host}:{port}/v1/watch/nobody") as answer:
            problem = await answer.json(content_type=None)
            assert (answer.status, problem["code"]) == (404, "not_found")
    await runner.cleanup()
