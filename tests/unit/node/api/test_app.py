"""The API's guard, and what it does with those who do not keep to HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

import pytest
from aiohttp import web
from annotated_types import Ge, Le

from tests.settle import until
from xsc.api.endpoint import Model
from xsc.api.ledger import Limit
from xsc.api.peers import Invite, Rename
from xsc.base.errors import ArgumentInvalid, PeerSilent, RateLimited
from xsc.net.transport.bounds import Gate
from xsc.net.transport.http import Server
from xsc.node.api import app
from xsc.node.api.app import OPEN, Reports, application
from xsc.node.api.serving import parse

TOKEN = "a" * 52
ANNA = "annaannaan"


def names() -> dict[str, str]:
    return {ANNA: "anna", "b" * 10: "b" * 10}


class RecordingLog:
    """Keeps the names and fields of events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    warning = error = info


class Api:
    """An API with one path that takes a body, and what became of it."""

    def __init__(self) -> None:
        self.log = RecordingLog()
        self.began = asyncio.Event()
        routes = [
            web.post("/v1/body", self._body),
            web.post("/v1/bug", self._bug),
            web.post("/v1/busy", self._busy),
            web.post("/v1/silent", self._silent),
        ]
        self.gate = Gate(most=9, share=9, idle_ms=60_000)
        answer = application(routes, TOKEN, self.log, names)
        self.server = Server(answer, self.gate, open_paths=OPEN)
        self.port = 0

    async def _body(self, request: web.Request) -> web.Response:
        self.began.set()
        return web.Response(body=b"".join([piece async for piece in request.content.iter_any()]))

    async def _bug(self, request: web.Request) -> web.Response:
        raise KeyError("slip")

    async def _busy(self, request: web.Request) -> web.Response:
        raise RateLimited("too many", retry_after_s=7)

    async def _silent(self, request: web.Request) -> web.Response:
        raise PeerSilent(f"silent: {ANNA}, {'b' * 10}, {'c' * 10}, x{ANNA}; bert ({ANNA})")

    async def raw(self, sent: bytes, *, hang_up: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        if hang_up:
            await self.began.wait()
            writer.transport.abort()
            return b""
        try:
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api = Api()
    api.port = await api.server.start("127.0.0.1", 0, "api_listen")
    reports = Reports(api.log)
    logging.getLogger().addHandler(reports)
    yield api
    logging.getLogger().removeHandler(reports)
    await api.server.stop(20)


def request(path: str = "/v1/body", *, token: bytes = TOKEN.encode(), size: int = 0) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {size}\r\n"
    ).encode() + b"Authorization: Bearer %b\r\n\r\n" % token


@pytest.mark.parametrize("token", [b"", b"wrong", b"\xff\xfe", "ä".encode(), b"a" * 51, b"a" * 53])
async def test_every_wrong_token_gets_the_same_answer(api, token):
    answer = await api.raw(request(token=token))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "unauthorized"
    assert (await api.raw(request())).startswith(b"HTTP/1.1 200 ")
    assert not api.log.events


async def test_what_callers_do_wrong_is_not_logged(api):
    assert (await api.raw(b"nonsense\r\n\r\n")).startswith(b"HTTP/1.0 400 ")
    assert (await api.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")).startswith(b"HTTP/1.0 400 ")
    await api.raw(request(size=100) + b"half", hang_up=True)
    await api.server.answered(10_000)
    assert not api.log.events


@pytest.mark.parametrize("how", ["abort", "close", "silent"])
@pytest.mark.parametrize("size", [100, 5_000_000])
async def test_a_client_that_cuts_a_body_off_leaves_nothing_in_the_log(api, how, size):
    """Silent: the system gives the connection up."""
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(request(size=size) + bytes(size // 2))
    await api.began.wait()
    if how == "silent":
        (transport,) = api.gate._sources
        transport._force_close(TimeoutError(110, "Connection timed out"))
    elif how == "abort":
        writer.transport.abort()
    writer.close()
    await api.server.answered(10_000)
    assert not api.log.events


async def test_who_is_refused_for_now_is_told_when_to_come_again(api):
    head = f"POST /v1/busy HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    answer = await api.raw(f"{head}Connection: close\r\nContent-Length: 0\r\n\r\n".encode())
    top, _, body = answer.partition(b"\r\n\r\n")
    assert b" 429 " in top.splitlines()[0]
    assert b"\r\nRetry-After: 7\r\n" in top
    assert json.loads(body)["retry_after_s"] == 7


async def test_an_error_names_the_peers_that_are_known(api):
    answer = await api.raw(request("/v1/silent"))
    expected = f"silent: anna ({ANNA}), {'b' * 10}, {'c' * 10}, x{ANNA}; bert ({ANNA})"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"] == expected


@pytest.mark.parametrize(
    ("kind", "body", "complaint"),
    [
        (Invite, b'{"ttl_ms": 5}', "ttl must be at least 1s, not 5ms"),
        (
            Rename,
            b'{"who": "anna", "name": "%s"}' % (b"n" * 65),
            "name must have at most 64 characters",
        ),
        (
            Limit,
            b'{"peer": "anna", "limit_micro": -1500000}',
            "limit must be at least 0.000000 credits, not -1.500000 credits",
        ),
    ],
)
def test_a_bound_is_told_in_units_for_people(kind, body, complaint):
    with pytest.raises(ArgumentInvalid) as caught:
        parse(body, kind)
    assert caught.value.message == complaint
    assert "must have" in complaint or caught.value.hint


async def test_bugs_and_what_libraries_report_are(api):
    assert (await api.raw(request("/v1/bug"))).startswith(b"HTTP/1.1 500 ")
    logging.getLogger("some.library").warning("out of %s", "luck")
    (bug, said), (report, fields) = api.log.events
    assert bug == "api.request_bug"
    assert "KeyError" in said["trace"]
    assert report == "node.library_report"
    assert (fields["source"], fields["message"]) == ("some.library", "out of luck")


async def test_what_is_said_of_writing_to_who_has_gone_is_dropped(api):
    for said in ("SSL connection is closed", "socket.send() raised exception."):
        logging.getLogger("asyncio").warning(said)
    assert not api.log.events


PROOF = b"POST /v1/proof HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"


async def test_who_shows_no_token_and_sends_no_body_goes_for_a_newcomer(api):
    held = []
    for _ in range(9):
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(PROOF % 64 + b"half")
        held.append((reader, writer))
    await until(lambda: api.server._answering == 9)
    assert (await api.raw(request())).startswith(b"HTTP/1.1 200 ")
    first, *_ = held
    with suppress(ConnectionError):
        assert await first[0].read() == b""
    for _, writer in held:
        writer.close()


async def test_a_challenge_whose_body_does_not_come_is_given_up(api, monkeypatch):
    monkeypatch.setattr(app, "NO_PROGRESS_MS", 50)
    assert (await api.raw(PROOF % 64)).startswith(b"HTTP/1.1 400 ")
    assert not api.log.events


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (PROOF % 64 + b"a" * 64, 200),
        (PROOF % 65 + b"a" * 65, 400),
        (PROOF % 0, 400),
        (PROOF % 200_000 + b"a" * 200_000, 400),
    ],
)
async def test_a_challenge_has_one_length(api, sent, status):
    assert (await api.raw(sent)).startswith(b"HTTP/1.1 %d " % status)
    assert not api.log.events


async def test_requests_that_are_answered_are_waited_for_but_not_for_ever(api):
    await api.server.answered(10_000)
    _, first = await asyncio.open_connection("127.0.0.1", api.port)
    first.write(request(size=1))
    await api.began.wait()
    await api.server.answered(10)
    waiting = asyncio.create_task(api.server.answered(10_000))
    assert (await api.raw(request())).startswith(b"HTTP/1.1 200 ")
    assert not waiting.done()
    first.write(b"x")
    await waiting
    first.close()


class Bounded(Model):
    size: Annotated[int, Ge(1), Le(32)] = 1


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"size": 33}', "size must be at most 32, not 33"),
        (b'{"size": 0}', "size must be at least 1, not 0"),
        (b'{"size": %s}' % (b"9" * 4300), f"size must be at most 32, not {'9' * 40}"),
        (b'{"size": %s}' % (b"9" * 5000), "the request is wrong at the body: "),
        (b'{"size": "x"}', "the request is wrong at size: "),
        (b"[]", "the request is wrong at the body: "),
        (b"{", "the request is wrong at the body: "),
    ],
)
def test_a_request_that_does_not_fit_is_refused_in_one_sentence(raw, said):
    with pytest.raises(ArgumentInvalid) as refused:
        parse(raw, Bounded)
    assert refused.value.message.startswith(said)
