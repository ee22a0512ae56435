"""Kept connections to peers, and other ends that do not keep to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from xsc.base.errors import PeerSilent
from xsc.base.limits import PLAIN_BYTES_MAX
from xsc.identity.keys import KeyPair
from xsc.net import lines
from xsc.net.http import HttpTransport
from xsc.net.lines import Lines
from xsc.net.port import Dropped, RawRequest, RawResponse

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class There:
    """A server that does what a test says with each connection."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.connections = 0
        self.ended = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            await self.talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.ended.set()
            writer.close()

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        for writer in self._writers:
            writer.close()
        self._server.close()


@pytest.fixture
async def ours() -> AsyncIterator[HttpTransport]:
    made = HttpTransport(listen="127.0.0.1:0", key=KeyPair(b"\2" * 32), progress_ms=100)
    yield made
    await made.close()


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Talk], Awaitable[There]]]:
    """Start servers, and close them in the end."""
    made: list[There] = []

    async def start(talk: Talk) -> There:
        made.append(There(talk))
        await made[-1].start()
        return made[-1]

    yield start
    for there in made:
        await there.stop()


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every small request."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        await reader.readexactly(size)
        writer.write(ANSWER)


async def ask(ours: HttpTransport, there: There, body: bytes = b"", path: str = "/") -> RawResponse:
    request = RawRequest("POST", path, {}, [body] if body else [])
    return await ours.send(there.address, None, request, 10_000)


async def test_an_answer_may_come_in_any_two_pieces(ours, serve):
    place = 0

    async def talk(reader, writer):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER[:place])
            await asyncio.sleep(0)
            writer.write(ANSWER[place:])

    there = await serve(talk)
    for place in range(1, len(ANSWER)):  # noqa: B007 (the talk reads it)
        answer = await ask(ours, there)
        assert (answer.status, bytes(answer.body[0])) == (200, b"abc")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (ANSWER + b"d", "longer than announced"),
        (ANSWER[:-1], "broke off"),
        (ANSWER[:20], "broke off"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 4_000, "over its bound"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "no length"),
    ],
)
async def test_what_is_no_answer_is_named(ours, serve, said, reason):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)

    there = await serve(talk)
    with pytest.raises(PeerSilent, match=reason):
        await ask(ours, there)


async def test_an_answer_that_stops_is_given_up(ours, serve):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER[:-1])
        await reader.read()

    there = await serve(talk)
    with pytest.raises(PeerSilent, match="it stopped"):
        await ask(ours, there)
    await there.ended.wait()


async def test_an_answer_that_dribbles_is_given_up(ours, serve, monkeypatch):
    monkeypatch.setattr(lines, "BODY_BYTES_A_SECOND_MIN", 10_000)

    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        gone = asyncio.create_task(reader.read())
        while not gone.done():
            writer.write(b"x")
            await asyncio.wait([gone], timeout=0.02)

    there = await serve(talk)
    with pytest.raises(PeerSilent, match="too slowly"):
        await ask(ours, there)


async def test_bytes_that_nobody_asked_for_end_a_connection(ours, serve):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        if not answered.is_set():
            await answered.wait()
            writer.write(ANSWER)
        await reader.read()

    answered = asyncio.Event()
    there = await serve(talk)
    assert (await ask(ours, there)).status == 200
    answered.set()
    await there.ended.wait()
    assert (await ask(ours, there)).status == 200
    assert there.connections == 2


async def test_a_connection_that_the_other_end_closes_is_not_used_again(ours, serve):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))
        await reader.read()

    there = await serve(talk)
    for _ in range(3):
        assert (await ask(ours, there)).status == 200
    assert there.connections == 3


async def test_after_a_drop_no_other_kept_connection_is_tried(ours, serve):
    gate = asyncio.Event()
    asked = 0

    async def talk(reader, writer):
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        if asked == 5:
            gate.set()
        await gate.wait()
        writer.write(ANSWER)
        # The second request on a connection is dropped.
        await reader.readuntil(b"\r\n\r\n")

    there = await serve(talk)
    await asyncio.gather(*(ask(ours, there) for _ in range(5)))
    with pytest.raises(Dropped):
        await ask(ours, there)
    assert (await ask(ours, there)).status == 200
    assert there.connections == 6


async def test_a_request_that_is_refused_on_the_way_ends_its_connection(ours, serve):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Refused\r\nContent-Length: 0\r\n\r\n")
        # What comes still is not read: the sender must not wait for that.
        await reader.read(1)
        await ended.wait()

    ended = asyncio.Event()
    there = await serve(talk)
    assert (await ask(ours, there, bytes(20_000_000))).status == 413
    ended.set()


async def test_a_request_that_is_given_up_ends_its_connection(ours, serve):
    came = asyncio.Event()

    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        came.set()
        await reader.read()

    there = await serve(talk)
    waiting = asyncio.create_task(ask(ours, there))
    await came.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await there.ended.wait()


async def test_small_requests_and_large_ones_have_connections_of_their_own(ours, serve):
    there = await serve(answering)
    for _ in range(3):
        await ask(ours, there, b"small")
        await ask(ours, there, bytes(PLAIN_BYTES_MAX))
    assert there.connections == 2


async def test_no_more_than_so_many_connections_to_one_end(ours, serve, monkeypatch):
    monkeypatch.setattr(lines, "CONNECTIONS_TO_A_PEER_MAX", 3)
    there = await serve(answering)
    answers = await asyncio.gather(*(ask(ours, there) for _ in range(20)))
    assert [answer.status for answer in answers] == [200] * 20
    assert there.connections <= 3


async def test_what_is_idle_for_too_long_is_closed(serve):
    kept = Lines(idle_ms=20, progress_ms=1_000)
    there = await serve(answering)
    host, _, port = there.address.partition(":")
    head = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    await kept.ask((host, int(port)), None, head, (), lambda: None)
    await there.ended.wait()
    assert not kept._all
    assert not kept._peers


async def test_closing_drops_what_is_under_way_and_what_is_kept(ours, serve):
    came = asyncio.Event()

    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        came.set()
        await reader.read()

    there, other = await serve(talk), await serve(answering)
    await ask(ours, other)
    waiting = asyncio.create_task(ask(ours, there))
    await came.wait()
    await ours.close()
    with pytest.raises(Dropped):
        await waiting
    await there.ended.wait()
    await other.ended.wait()
