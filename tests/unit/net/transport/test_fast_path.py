"""A connection with two readers: none of its bytes is lost, and none is read twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.settle import until
from tests.unit.net.nodes import take_all
from xsc.api import proof
from xsc.api.endpoint import Endpoint, Nothing
from xsc.base.limits import FAST_PATH_BYTES_MAX, NONCE_BYTES
from xsc.client.core import Core
from xsc.identity.keys import KeyPair
from xsc.net.calls.signing import STAMP_BYTES, sign_request
from xsc.net.transport import fast_path
from xsc.net.transport.fast_path import FastPath
from xsc.net.transport.gate import Gate
from xsc.net.transport.http import HttpTransport
from xsc.net.transport.parser import SmallRequest
from xsc.net.transport.port import Arrival, RawRequest, RawResponse


def request(body: bytes, path: str = "/small") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (
        path.encode(),
        len(body),
        body,
    )


class Behind(asyncio.Protocol):
    """The server behind: says how many bytes it got, and closes at "!"."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.got = b""

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.server.made += 1

    def data_received(self, data: bytes) -> None:
        self.server.handed_over.set()
        self.got += data
        if self.got.endswith(b"!"):
            self.transport.write(b"behind " + self.got)
            self.transport.close()

    def connection_lost(self, exc) -> None:
        self.server.lost.set()


class Server:
    """A fast path before `Behind`, on a port."""

    def __init__(self, idle_ms: int, progress_ms: int) -> None:
        self.made = 0
        self.lost = asyncio.Event()
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.seen: list[bytes] = []
        self.handed_over = asyncio.Event()
        self.gate = Gate(most=100, share=100, idle_ms=idle_ms)
        self.path = FastPath(
            lambda: Behind(self),
            self.answer,
            self.gate,
            progress_ms=progress_ms,
            paths=["/small", "/wait", "/big", "/bug", proof.PATH],
        )
        self.sent = 0

    def _sent(self) -> None:
        self.sent += 1

    async def answer(self, request: SmallRequest) -> RawResponse:
        self.seen.append(request.body)
        if request.path == "/wait":
            self.begun.set()
            await self.go_on.wait()
        if request.path == "/bug":
            raise KeyError("slip")
        if request.path == proof.PATH:
            port = self.listening.sockets[0].getsockname()[1]
            told = {"proof": proof.proof_of("a" * 52, port, request.body)}
            return RawResponse(200, {}, [json.dumps(told).encode()])
        body = bytes(32 * 2**20) if request.path == "/big" else request.body
        return RawResponse(200, {}, [body], self._sent)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.listening.sockets[0].getsockname()
        return await asyncio.open_connection(host, port, limit=1024)


@asynccontextmanager
async def serving(idle_ms: int, progress_ms: int) -> AsyncIterator[Server]:
    server = Server(idle_ms, progress_ms)
    loop = asyncio.get_running_loop()
    server.listening = await loop.create_server(server.path, "127.0.0.1", 0)
    yield server
    server.go_on.set()
    server.listening.close()
    await server.path.ended(1)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(60_000, 60_000) as server:
        yield server


@pytest.fixture
async def hasty() -> AsyncIterator[Server]:
    async with serving(200, 100) as server:
        yield server


async def answered(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return await reader.readexactly(size)


async def test_requests_one_after_the_other_are_answered(server):
    reader, writer = await server.open()
    for number in range(3):
        writer.write(request(b"%d" % number))
        assert await answered(reader) == b"%d" % number
    writer.close()
    await server.lost.wait()
    assert server.made == 1
    assert not server.handed_over.is_set()


async def test_a_request_in_pieces_is_answered(server):
    reader, writer = await server.open()
    for byte in request(b"abc"):
        writer.write(bytes([byte]))
        await writer.drain()
    assert await answered(reader) == b"abc"
    writer.close()


async def test_what_comes_during_an_answer_is_read_after_it(server):
    reader, writer = await server.open()
    writer.write(request(b"first", "/wait"))
    await server.begun.wait()
    writer.write(request(b"second"))
    server.go_on.set()
    assert await answered(reader) == b"first"
    assert await answered(reader) == b"second"
    writer.close()


async def test_each_answer_is_told_of_once_whatever_becomes_of_its_reader(server):
    reader, writer = await server.open()
    for number in range(3):
        writer.write(request(b"%d" % number))
        await answered(reader)
    writer.write(request(b"gone", "/wait"))
    await server.begun.wait()
    writer.transport.abort()
    await server.lost.wait()
    server.go_on.set()
    await until(lambda: server.sent >= 4)
    assert server.sent == 4
    assert len(server.gate) == 0


async def test_two_requests_at_once_are_the_servers(server):
    reader, writer = await server.open()
    writer.write(request(b"1") + request(b"!"))
    assert await reader.read() == b"behind " + request(b"1") + request(b"!")
    assert not server.seen
    writer.close()


async def test_after_the_first_other_request_all_are_the_servers(server):
    reader, writer = await server.open()
    writer.write(request(b"mine"))
    assert await answered(reader) == b"mine"
    writer.write(request(b"other", "/other"))
    writer.write(request(b"!"))
    assert await reader.read() == b"behind " + request(b"other", "/other") + request(b"!")
    assert server.seen == [b"mine"]
    assert server.handed_over.is_set()
    writer.close()


async def test_what_floods_during_an_answer_is_not_held_without_bound(server):
    reader, writer = await server.open()
    writer.write(request(b"first", "/wait"))
    await server.begun.wait()
    flood = b"x" * (192 * FAST_PATH_BYTES_MAX)
    writer.write(flood)
    writer.write(b"!")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(writer.drain(), 0.2)
    server.go_on.set()
    assert await answered(reader) == b"first"
    rest = b""
    while chunk := await reader.read(2**20):
        rest += chunk
    assert rest == b"behind " + flood + b"!"
    writer.close()


async def test_a_request_that_stops_half_way_is_the_servers_after_a_while(hasty):
    reader, writer = await hasty.open()
    half = request(b"abcdef")[:-3]
    writer.write(half)
    await writer.drain()
    await hasty.handed_over.wait()
    writer.write(b"!")
    assert await reader.read() == b"behind " + half + b"!"
    assert not hasty.seen
    writer.close()


async def test_a_quiet_connection_is_cut_off_and_a_busy_one_is_not(hasty):
    reader, writer = await hasty.open()
    busy_reader, busy_writer = await hasty.open()
    busy_writer.write(request(b"busy", "/wait"))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    hasty.go_on.set()
    assert await answered(busy_reader) == b"busy"
    writer.close()
    busy_writer.close()


async def test_a_reader_that_does_not_read_is_cut_off(hasty):
    _, writer = await hasty.open()
    writer.write(request(b"", "/big"))
    await asyncio.wait_for(hasty.lost.wait(), 10)
    writer.close()


async def test_a_caller_that_goes_away_takes_nothing_along(server):
    _, writer = await server.open()
    writer.write(request(b"gone", "/wait"))
    await server.begun.wait()
    writer.transport.abort()
    await server.lost.wait()
    server.go_on.set()
    reader, writer = await server.open()
    writer.write(request(b"here"))
    assert await answered(reader) == b"here"
    writer.close()


async def test_an_answer_that_fails_ends_its_connection(server):
    loop = asyncio.get_running_loop()
    faults: list[object] = []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    reader, writer = await server.open()
    writer.write(request(b"", "/bug"))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()


async def test_the_end_waits_for_answers_but_not_for_ever(server):
    reader, writer = await server.open()
    writer.write(request(b"last", "/wait"))
    await server.begun.wait()
    ending = asyncio.create_task(server.path.ended(10))
    server.go_on.set()
    await ending
    assert await answered(reader) == b"last"
    server.go_on.clear()
    server.begun.clear()
    writer.write(request(b"late", "/wait"))
    await server.begun.wait()
    await server.path.ended(0.01)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()


async def test_what_our_own_peers_send_is_a_small_request(monkeypatch):
    key, to = KeyPair(b"\1" * 32), KeyPair(b"\2" * 32)
    near = HttpTransport(listen="127.0.0.1:0", key=key)
    far = HttpTransport(listen="127.0.0.1:0", key=to)

    async def handler(arrival: Arrival) -> RawResponse:
        return RawResponse(200, {}, [await arrival.read(take_all)])

    await far.serve(handler)
    handed_over: list[object] = []
    monkeypatch.setattr(fast_path.FastPathConnection, "_hand_over", handed_over.append)
    headers = sign_request(
        key,
        network=bytes(32),
        to=to.node_id,
        method="POST",
        path="/peer/v1/a.b_c",
        head=b"head",
        created_ms=1,
        entropy=bytes(NONCE_BYTES - STAMP_BYTES),
    )
    try:
        asked = RawRequest("POST", "/peer/v1/a.b_c", headers, [b"head", b"part"])
        for _ in range(2):
            answer = await near.send(far.addresses()[0], None, asked, 10_000)
            assert bytes(answer.body[0]) == b"headpart"
    finally:
        await near.close()
        await far.close()
    assert not handed_over


async def test_what_our_own_client_sends_is_a_small_request(server, tmp_path):
    host, port = server.listening.sockets[0].getsockname()
    (tmp_path / "api.json").write_text(json.dumps({"url": f"http://{host}:{port}"}))
    (tmp_path / "api.token").write_text("a" * 52)
    small = Endpoint("POST", "/small", Nothing, dict, "Say it again.", takes="bytes")
    told = await asyncio.to_thread(Core(tmp_path).ask, small, Nothing(), b'{"a": ', b"1}")
    assert told == {"a": 1}
    assert not server.handed_over.is_set()
