"""Kept connections to peers, and other ends that do not keep to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from tests.settle import until
from xsc.base.errors import PeerSilent, RateLimited
from xsc.base.limits import PEER_BODY_BYTES_MAX
from xsc.base.room import Room
from xsc.identity.keys import KeyPair
from xsc.net.transport import bounds, http
from xsc.net.transport.http import REPLIES_A_PEER_BYTES_MAX, REPLIES_BYTES_MAX, HttpTransport
from xsc.net.transport.port import Dropped, RawRequest, RawResponse

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


def asker(**options) -> HttpTransport:
    return HttpTransport(listen="127.0.0.1:0", key=KeyPair(b"\2" * 32), **options)


@pytest.fixture
async def ours() -> AsyncIterator[HttpTransport]:
    made = asker(progress_ms=100)
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
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
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
        (ANSWER + b"d", "malformed"),
        (ANSWER[:-1], "broke off"),
        (ANSWER[:20], "broke off"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 4_000, "malformed"),
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
    with pytest.raises(PeerSilent, match="too slow: 2 bytes in 100 ms"):
        await ask(ours, there)
    await there.ended.wait()


async def test_an_answer_that_dribbles_is_given_up(ours, serve, monkeypatch):
    monkeypatch.setattr(bounds, "BODY_BYTES_A_SECOND_MIN", 10_000)

    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        gone = asyncio.create_task(reader.read())
        while not gone.done():
            writer.write(b"x")
            await asyncio.wait([gone], timeout=0.02)

    there = await serve(talk)
    with pytest.raises(PeerSilent, match="too slow"):
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


@pytest.mark.parametrize("code", [100, 101, 103])
async def test_a_head_that_only_informs_ends_the_connection(ours, serve, code):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        # An answer is late: all these heads would be kept until one comes.
        writer.write(b"HTTP/1.1 %d x\r\n\r\n" % code)
        ended.append(await reader.read())

    ended: list[bytes] = []
    there = await serve(talk)
    with pytest.raises(PeerSilent, match="malformed"):
        await ask(ours, there)
    await there.ended.wait()


@pytest.mark.parametrize(("first", "head"), [(b"", b"HTTP/1.1 100 C\r\n\r\n"), (ANSWER, ANSWER)])
async def test_heads_without_end_are_not_kept(ours, serve, first, head):
    """Those that inform before an answer, and answers that nobody waits for any more."""
    sent, most = 0, 8 << 20

    async def talk(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(first)
        if first:
            await answered.wait()
        while sent < most:
            writer.write(head * 1_000)
            await writer.drain()
            sent += len(head) * 1_000

    answered = asyncio.Event()
    there = await serve(talk)
    with suppress(PeerSilent):
        await ask(ours, there)
    answered.set()
    await there.ended.wait()
    assert sent < most


async def test_a_head_that_does_not_end_is_not_kept(ours, serve):
    """Each field is within its bound, and so is their number."""

    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + b"A: %s\r\n" % (b"b" * 8_000) * 5)
        await reader.read()

    there = await serve(talk)
    with pytest.raises(PeerSilent, match="malformed"):
        await ask(ours, there)
    await there.ended.wait()


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


async def test_no_more_than_so_many_connections_to_one_end(ours, serve, monkeypatch):
    monkeypatch.setattr(http, "CONNECTIONS_TO_A_PEER_MAX", 3)
    there = await serve(answering)
    answers = await asyncio.gather(*(ask(ours, there) for _ in range(20)))
    assert [answer.status for answer in answers] == [200] * 20
    assert there.connections <= 3


async def test_what_is_idle_for_too_long_is_closed(ours, serve, monkeypatch):
    monkeypatch.setattr(http, "KEEP_ALIVE_MS", 40)
    there = await serve(answering)
    assert (await ask(ours, there)).status == 200
    await there.ended.wait()
    assert (await ask(ours, there)).status == 200
    assert there.connections == 2


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


# What the other end announces is not believed


async def test_an_announced_answer_takes_room_only_as_it_comes(serve):
    sent = 0
    go_on = asyncio.Event()

    async def talk(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % PEER_BODY_BYTES_MAX)
        while sent < PEER_BODY_BYTES_MAX:
            size = min(700_001, PEER_BODY_BYTES_MAX - sent)
            sent += size
            writer.write(bytes([sent % 251]) * size)
            await writer.drain()
            if sent > 5_000_000:
                await go_on.wait()
        await reader.read()

    there = await serve(talk)
    room = Room(REPLIES_BYTES_MAX, REPLIES_A_PEER_BYTES_MAX)
    ours = asker(progress_ms=60_000, replies=room)
    asking = asyncio.create_task(ask(ours, there))
    while room.held(there.address) < 5_000_000:
        await asyncio.sleep(0)
        assert room.held(there.address) <= sent
    go_on.set()
    answer = await asking
    assert len(answer.body[0]) == PEER_BODY_BYTES_MAX
    whole, start = bytes(answer.body[0]), 0
    while start < PEER_BODY_BYTES_MAX:
        size = min(700_001, PEER_BODY_BYTES_MAX - start)
        start += size
        assert whole[start - size : start] == bytes([start % 251]) * size
    assert room.held(there.address) == 0
    await ours.close()


async def test_answers_of_one_peer_have_a_share_and_others_theirs(serve):
    async def half(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(900))
        await reader.read()

    greedy, other = await serve(half), await serve(answering_late)
    room = Room(5_000, 2_000)
    ours = asker(progress_ms=60_000, replies=room)
    asked = [asyncio.create_task(ask(ours, greedy)) for _ in range(3)]
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    assert [type(task.exception()) for task in done] == [RateLimited]
    answer = await ask(ours, other)
    assert bytes(answer.body[0]) == b"abc"
    await ours.close()
    await asyncio.gather(*asked, return_exceptions=True)
    assert room.held(greedy.address) == 0


async def answering_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with head and body apart, so that the body has to be waited for."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ANSWER[:-3])
    await writer.drain()
    await asyncio.sleep(0)
    writer.write(ANSWER[-3:])


async def test_connections_to_all_peers_are_bounded_and_idle_ones_go_first(serve):
    async def never(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await reader.read()

    kept = [await serve(answering) for _ in range(2)]
    silent = [await serve(never) for _ in range(2)]
    ours = asker(progress_ms=60_000, connections_max=2)
    for there in kept:
        await ask(ours, there)
    asking = [asyncio.create_task(ask(ours, there)) for there in silent]
    for there in kept:
        await there.ended.wait()
    await until(lambda: sum(there.connections for there in silent) >= 2)
    with pytest.raises(PeerSilent, match="within 20 ms"):
        await ours.send(kept[0].address, None, RawRequest("POST", "/", {}), 20)
    assert kept[0].connections == 1
    await ours.close()
    await asyncio.gather(*asking, return_exceptions=True)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"]
)
async def test_a_peer_is_not_looked_for_on_this_machine(serve, host):
    there = await serve(answering)
    ours = asker()
    ours._host = "192.0.2.1"
    place = f"{host}:{there.address.rpartition(':')[2]}"
    with pytest.raises(PeerSilent, match="no place for a peer"):
        await ours.send(place, bytes(32), RawRequest("POST", "/", {}), 5_000)
    assert there.connections == 0
    await ours.close()


@pytest.mark.parametrize(("listen", "found"), [("127.0.0.1:0", True), ("0.0.0.0:0", False)])
async def test_only_a_node_on_loopback_looks_for_peers_there(serve, listen, found):
    """An address record may say what it likes: nothing is sent to services of this machine."""
    there = await serve(answering)
    ours = HttpTransport(listen=listen, key=KeyPair(b"\2" * 32), stop_ms=20)

    async def handler(_):
        return RawResponse(200)

    await ours.serve(handler)
    if not found and all(address.startswith("127.") for address in ours.addresses()):
        pytest.skip("this machine has no address but loopback")
    for fingerprint in (None, bytes(32)):
        request = RawRequest("POST", "/", {}, [b"body"])
        try:
            answer = await ours.send(there.address, fingerprint, request, 5_000)
        except PeerSilent:
            assert fingerprint is not None or not found
        else:
            assert (found, answer.status) == (True, 200)
    assert bool(there.connections) == found
    await ours.close()
