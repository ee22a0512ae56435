"""The listener of services: what strangers may send, how slowly, and what they are told."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager

import pytest

from tests.settle import until
from xsc.base.errors import ArgumentInvalid, ConfigInvalid, PeerUnknown
from xsc.base.limits import STDIN_BYTES_MAX
from xsc.base.room import Room
from xsc.compute.deployments.holder import Served
from xsc.compute.deployments.wagi import Request, Response
from xsc.net.transport import bounds, http
from xsc.node.api import deployments
from xsc.node.api.deployments import (
    SERVICE_HEADER_BYTES_MAX,
    SERVICE_REQUESTS_AN_ADDRESS_MAX,
    ServiceListener,
)

OWNER = b"o" * 32


class Node:
    """Holds one service, which answers with what `answer` is."""

    def __init__(self) -> None:
        self.services = self.holder = self
        self.requests: list[Request] = []
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.response = Response(200, (("Content-Type", "a/b"), ("X-A", "1"), ("X-A", "2")), b"hi")

    def find(self, text: str) -> bytes:
        if text in ("alice", "älice"):
            return OWNER
        if text == "both":
            raise ArgumentInvalid("that could mean 2 peers", hint="give more of the id")
        raise PeerUnknown("no")

    def holds(self, owner: bytes, name: str) -> bool:
        return (owner, name) == (OWNER, "echo")

    async def answer(self, owner: bytes, name: str, request: Request, *, done) -> Served:
        self.requests.append(request)
        self.arrived.set()
        # As in a node, it goes on where the caller goes away.
        work = asyncio.ensure_future(self.goes_on.wait())
        work.add_done_callback(lambda _: done())
        try:
            await asyncio.shield(work)
        finally:
            self.left.set()
        return Served(self.response, "id")


class End:
    def __init__(self, node: Node, port: int) -> None:
        self.node = node
        self.port = port

    async def raw(self, sent: bytes) -> bytes:
        """Send bytes and return all that comes until the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def ask(self, line: bytes = b"GET /fn/alice/echo", rest: bytes = b"") -> bytes:
        return await self.raw(
            line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + rest + b"\r\n"
        )


@asynccontextmanager
async def listening(**options):
    node = Node()
    listener = ServiceListener(node, **{"progress_ms": 5_000, **options})
    port = await listener.start("127.0.0.1", 0, "services_listen")
    try:
        yield End(node, port)
    finally:
        node.goes_on.set()
        await listener.stop(10_000)


@pytest.fixture
async def end():
    async with listening() as made:
        yield made


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_a_request_is_handed_on_and_answered(end):
    answer = await end.ask(b"GET /fn/alice/echo/a%20b/c?x=1&y=%20", b"X-Y: z\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert body == b"hi"
    assert [line for line in lines if line.startswith(b"X-A")] == [b"X-A: 1", b"X-A: 2"]
    assert b"Server: xsc" in lines
    assert b"XSC-Request-Id: id" in lines
    assert b"X-Content-Type-Options: nosniff" in lines
    (asked,) = end.node.requests
    assert (asked.route, asked.raw_path, asked.path) == ("/fn/alice/echo", "/a%20b/c", "/a b/c")
    assert (asked.query, asked.method, asked.remote) == ("x=1&y=%20", "GET", "127.0.0.1")
    assert ("X-Y", "z") in asked.headers


async def test_a_program_says_itself_what_it_allows(end):
    end.node.response = Response(405, (("Allow", "GET"), ("Content-Type", "a/b")), b"")
    head = (await end.ask(b"POST /fn/alice/echo")).partition(b"\r\n\r\n")[0]
    assert [line for line in head.split(b"\r\n") if line.startswith(b"Allow")] == [b"Allow: GET"]


async def test_an_owner_that_could_be_two_is_none(end):
    answer = await end.ask(b"GET /fn/both/echo")
    assert status(answer) == 404
    assert answer.endswith(b"that could mean 2 peers: give more of the id\n")
    assert not end.node.requests


@pytest.mark.parametrize("path", [b"/fn/alice/echo", b"/fn/alice/none", b"/", b"/fn/both/echo"])
async def test_every_answer_is_contained(end, path):
    """All services are one origin to a browser; no page may get at another's."""
    own = (b"Content-Security-Policy", b"default-src 'none'")
    end.node.response = Response(200, tuple((a.decode(), b.decode()) for a, b in [own]), b"")
    head = (await end.ask(b"GET " + path)).partition(b"\r\n\r\n")[0]
    fields = [tuple(line.split(b": ", 1)) for line in head.split(b"\r\n")[1:]]
    policies = [value for name, value in fields if name == own[0]]
    assert policies[:-1] == ([own[1]] if status(head) == 200 else [])
    first, *allowed = policies[-1].split()
    assert first == b"sandbox"
    assert b"allow-same-origin" not in allowed
    assert (b"X-Content-Type-Options", b"nosniff") in fields


async def test_an_owner_may_be_percent_encoded(end):
    assert status(await end.ask(b"GET /fn/%C3%A4lice/echo")) == 200


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD"])
async def test_the_methods_of_a_service(end, method):
    answer = await end.ask(method + b" /fn/alice/echo")
    assert status(answer) == 200
    assert b"Content-Length: 2" in answer
    assert answer.endswith(b"\r\n\r\n" if method == b"HEAD" else b"hi")


@pytest.mark.parametrize("method", [b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"BREW"])
async def test_other_methods_are_refused(end, method):
    answer = await end.ask(method + b" /fn/alice/echo")
    assert status(answer) in (400, 404, 405)
    if status(answer) == 405:
        assert b"Allow: GET, HEAD, POST, PUT, DELETE" in answer
    assert not end.node.requests


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"/v1/status",
        b"/health",
        b"/fn",
        b"/fn/",
        b"/fn/alice",
        b"/fn/alice/",
        b"/fn//echo",
        b"/fn/bob/echo",
        b"/fn/alice/other",
        b"/fn/alice/echo%2f",
        b"/FN/alice/echo",
        b"//fn/alice/echo",
        b"/x/../fn/alice/echo",
        b"/fn/alice/../alice/echo",
        b"/fn/%ff/echo",
    ],
)
async def test_nothing_else_is_there(end, path):
    assert status(await end.ask(b"GET " + path)) == 404
    assert not end.node.requests


async def test_a_body_comes_with_a_length_or_in_pieces(end):
    await end.ask(b"POST /fn/alice/echo", b"Content-Length: 3\r\n\r\nabc")
    chunked = b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n"
    await end.ask(b"POST /fn/alice/echo", chunked)
    assert [request.body for request in end.node.requests] == [b"abc", b"abc"]


async def test_who_asks_before_sending_is_told_to_go_on(end):
    reader, writer = await asyncio.open_connection("127.0.0.1", end.port)
    writer.write(
        b"POST /fn/alice/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n"
        b"Connection: close\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert status(await reader.read()) == 200
    writer.close()


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (b"X: " + b"y" * SERVICE_HEADER_BYTES_MAX + b"\r\n", 431),
        (b"".join(b"X-%d: %s\r\n" % (n, b"y" * 400) for n in range(60)), 431),
        (b"X: y\r\n" * 200, 400),
        (b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Content-Length: -1\r\n", 400),
        (b"no field\r\n", 400),
    ],
)
async def test_what_is_too_much_or_malformed_is_refused(end, rest, expected):
    answer = await end.ask(b"POST /fn/alice/echo", rest)
    assert status(answer) == expected
    assert b"Traceback" not in answer
    assert not end.node.requests


async def test_a_head_that_does_not_end_is_not_held(end):
    """Each field is within its bound, and so is their number."""
    fields = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 16_000) for n in range(3))
    answer = await end.raw(b"GET /fn/alice/echo HTTP/1.1\r\nHost: x\r\n" + fields)
    assert status(answer) == 400


@pytest.mark.parametrize(
    "end_of_body",
    [
        b"0\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 16_000) for n in range(60)),
        b"0" + b";y" * 400_000 + b"\r\n",
    ],
)
async def test_what_follows_a_body_in_pieces_is_bounded(end_of_body):
    """Trailers, and what may stand beside the size of a chunk."""
    async with listening(progress_ms=100) as end:
        chunked = b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
        assert status(await end.ask(b"POST /fn/alice/echo", chunked + end_of_body)) != 200
        assert not end.node.requests


async def test_a_body_that_is_announced_too_long_is_refused_before_it_comes(end):
    reader, writer = await asyncio.open_connection("127.0.0.1", end.port)
    announced = b"Content-Length: %d\r\n\r\n" % (STDIN_BYTES_MAX + 1)
    writer.write(b"POST /fn/alice/echo HTTP/1.1\r\nHost: x\r\n" + announced)
    assert status(await reader.readuntil(b"\r\n\r\n")) == 413
    writer.close()
    assert not end.node.requests


async def test_a_body_in_pieces_is_bounded_too(end, monkeypatch):
    monkeypatch.setattr(deployments.limits, "STDIN_BYTES_MAX", 10)
    chunked = b"Transfer-Encoding: chunked\r\n\r\n" + b"5\r\nabcde\r\n" * 3 + b"0\r\n"
    assert status(await end.ask(b"POST /fn/alice/echo", chunked)) == 413
    assert not end.node.requests


WHOLE = (
    b"POST /fn/alice/echo/a?b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n"
    b"X-Y: z\r\n\r\nabc"
)


async def test_no_bytes_end_the_listener_or_get_more_than_a_status():
    """Random bytes, and a request with some of its bytes changed, cut or doubled."""
    chance = random.Random(7)  # a seed: the same bytes each time
    async with listening(progress_ms=50) as end:
        for number in range(150):
            raw = bytearray(WHOLE)
            for _ in range(chance.randrange(1, 6)):
                place = chance.randrange(len(raw))
                match number % 3:
                    case 0:
                        raw[place] = chance.randrange(256)
                    case 1:
                        del raw[place : place + chance.randrange(20)]
                    case _:
                        raw[place:place] = chance.randbytes(chance.randrange(1, 20))
            answer = await end.raw(bytes(raw))
            assert answer == b"" or answer.startswith(b"HTTP/"), raw
            assert b"Traceback" not in answer
        for size in (1, 10, 1000, 100_000):
            await end.raw(chance.randbytes(size))
        assert status(await end.ask()) == 200
        assert end.node.requests[-1].body == b""


async def test_bodies_have_so_much_room_together():
    async with listening(room=Room(5, 5)) as end:
        end.node.goes_on.clear()
        first = asyncio.create_task(
            end.ask(b"POST /fn/alice/echo", b"Content-Length: 4\r\n\r\nabcd")
        )
        await end.node.arrived.wait()
        answer = await end.ask(b"POST /fn/alice/echo", b"Content-Length: 2\r\n\r\nab")
        assert status(answer) == 503
        assert b"Retry-After: 1" in answer
        chunked = b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n"
        assert status(await end.ask(b"POST /fn/alice/echo", chunked)) == 503
        end.node.goes_on.set()
        assert status(await first) == 200
        # All of it is given back, also what the answer took.
        answer = await end.ask(b"POST /fn/alice/echo", b"Content-Length: 5\r\n\r\nabcde")
        assert status(answer) == 200
        end.node.response = Response(200, (), b"x" * 6)
        assert status(await end.ask()) == 503
        end.node.response = Response(200, (), b"x" * 5)
        assert status(await end.ask()) == 200


async def test_a_body_keeps_its_room_while_its_request_runs_for_nobody():
    async with listening(room=Room(5, 5)) as end:
        end.node.goes_on.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", end.port)
        head = b"POST /fn/alice/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
        writer.write(head + b"abcd")
        await end.node.arrived.wait()
        writer.transport.abort()
        await end.node.left.wait()
        rest = b"Content-Length: 2\r\n\r\nab"
        assert status(await end.ask(b"POST /fn/alice/echo", rest)) == 503
        end.node.goes_on.set()
        assert status(await end.ask(b"POST /fn/alice/echo", rest)) == 200


async def test_a_head_that_dribbles_is_cut_off():
    async with listening(progress_ms=100) as end:
        reader, writer = await asyncio.open_connection("127.0.0.1", end.port)
        closed = asyncio.create_task(reader.read())
        for byte in b"GET /fn/alice/echo HTTP/1.1\r\n" + b"X-Y: z\r\n" * 1000:
            if closed.done():
                break
            writer.write(bytes([byte]))
            await asyncio.wait([closed], timeout=0.01)
        assert closed.done()
        assert not end.node.requests
        await asyncio.gather(closed, return_exceptions=True)
        writer.close()


async def test_a_connection_that_says_nothing_is_cut_off():
    async with listening(progress_ms=100) as end:
        assert await end.raw(b"") == b""


@pytest.mark.parametrize(
    "rest", [b"Content-Length: 9\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"]
)
async def test_a_body_that_stops_is_given_up_and_its_room_given_back(rest):
    async with listening(progress_ms=100, room=Room(9, 9)) as end:
        answer = await end.raw(b"POST /fn/alice/echo HTTP/1.1\r\nHost: x\r\n" + rest)
        assert answer == b"" or status(answer) == 408
        assert not end.node.requests
        answer = await end.ask(b"POST /fn/alice/echo", b"Content-Length: 9\r\n\r\nabcdefghi")
        assert status(answer) == 200


async def test_a_body_that_dribbles_is_given_up(monkeypatch):
    monkeypatch.setattr(bounds, "BODY_BYTES_A_SECOND_MIN", 1_000)
    async with listening(progress_ms=100) as end:
        reader, writer = await asyncio.open_connection("127.0.0.1", end.port)
        writer.write(b"POST /fn/alice/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        closed = asyncio.create_task(reader.read())
        for _ in range(1000):
            if closed.done():
                break
            writer.write(b"x")
            await asyncio.wait([closed], timeout=0.02)
        assert closed.done()
        await asyncio.gather(closed, return_exceptions=True)
        writer.close()
        assert not end.node.requests


async def test_a_body_that_breaks_off_is_no_trouble(end):
    for abort in (True, False):
        _, writer = await asyncio.open_connection("127.0.0.1", end.port)
        writer.write(b"POST /fn/alice/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        await writer.drain()
        if abort:
            writer.transport.abort()
        else:
            writer.close()
    assert status(await end.ask()) == 200


async def test_a_reader_that_does_not_read_is_cut_off():
    async with listening(progress_ms=100, room=Room(16 << 20, 16 << 20)) as end:
        end.node.response = Response(200, (), bytes(16 << 20))
        _, writer = await asyncio.open_connection("127.0.0.1", end.port, limit=1024)
        writer.write(b"GET /fn/alice/echo HTTP/1.1\r\nHost: x\r\n\r\n")
        await end.node.arrived.wait()
        # It never reads; once it was cut off, its room is another one's.
        answers = [b"HTTP/1.1 503"]
        while status(answers[-1]) == 503:
            answers.append(await end.ask(b"HEAD /fn/alice/echo"))
        assert status(answers[-1]) == 200
        writer.close()


async def test_announced_bodies_take_nothing_from_others():
    """Eight strangers announce all that there is room for, and bring a byte of it each."""
    room = Room(64, 32, small=8)
    async with listening(room=room) as end:
        held = []
        for _ in range(8):
            _, writer = await asyncio.open_connection("127.0.0.1", end.port)
            announced = b"Content-Length: %d\r\n\r\nx" % STDIN_BYTES_MAX
            writer.write(b"POST /fn/alice/echo HTTP/1.1\r\nHost: x\r\n" + announced)
            held.append(writer)
        await until(lambda: room.held("127.0.0.1") >= 8)
        for _ in range(20):
            answer = await end.ask(
                b"POST /fn/alice/echo", b"Content-Length: 16\r\n\r\n" + b"y" * 16
            )
            assert status(answer) == 200
        for writer in held:
            writer.close()


async def test_requests_of_one_source_leave_turns_for_others():
    async with listening() as end:
        end.node.goes_on.clear()
        kept = [asyncio.create_task(end.ask()) for _ in range(SERVICE_REQUESTS_AN_ADDRESS_MAX + 1)]
        done, _ = await asyncio.wait(kept, return_when=asyncio.FIRST_COMPLETED)
        assert [status(task.result()) for task in done] == [503]
        end.node.goes_on.set()
        answers = [status(answer) for answer in await asyncio.gather(*kept)]
        assert sorted(answers) == [200] * SERVICE_REQUESTS_AN_ADDRESS_MAX + [503]
        assert status(await end.ask()) == 200


async def test_an_idle_connection_goes_for_a_newcomer():
    async with listening(connections_max=2) as end:
        idle = [await asyncio.open_connection("127.0.0.1", end.port) for _ in range(5)]
        assert status(await end.ask()) == 200
        for _, writer in idle:
            writer.close()


async def test_connections_are_bounded():
    async with listening(connections_max=2) as end:
        end.node.goes_on.clear()
        kept = [asyncio.create_task(end.ask()) for _ in range(2)]
        while len(end.node.requests) < 2:
            end.node.arrived.clear()
            await end.node.arrived.wait()
        assert await end.ask() == b""
        end.node.goes_on.set()
        assert [status(answer) for answer in await asyncio.gather(*kept)] == [200, 200]


async def test_who_goes_away_while_it_waits_gives_up_its_place(end):
    end.node.goes_on.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", end.port)
    writer.write(b"GET /fn/alice/echo HTTP/1.1\r\nHost: x\r\n\r\n")
    await end.node.arrived.wait()
    writer.transport.abort()
    await end.node.left.wait()


async def test_a_port_that_is_taken_is_named(end, monkeypatch):
    monkeypatch.setattr(http, "PORT_WAIT_MS", 100)
    with pytest.raises(ConfigInvalid, match="cannot be listened on"):
        await ServiceListener(Node()).start("127.0.0.1", end.port, "services_listen")
