"""HTTP under hands that do not keep to it: slow, oversized, malformed, wrongly certified."""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import socket
import ssl
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.settle import until
from tests.unit.net.nodes import HOUR_MS, Node, RecordingLog, acquainted, part, take_all
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.errors import ConfigInvalid, FrameInvalid, PeerSilent, RateLimited
from xsc.base.limits import KIB, MIB, PEER_BODY_BYTES_MAX, PEER_REQUESTS_A_SECOND_MAX, REQUEST_UNITS
from xsc.identity.keys import KeyPair
from xsc.net.peers.roster import AddressRecord
from xsc.net.service import PeerNet
from xsc.net.transport import bounds, http
from xsc.net.transport.addresses import split
from xsc.net.transport.http import CONNECTIONS_AN_ADDRESS_MAX, HttpTransport
from xsc.net.transport.memory import MemoryNetwork
from xsc.net.transport.port import Arrival, Dropped, RawRequest, RawResponse
from xsc.net.transport.tls import certificate_of
from xsc.node.api.app import Reports

KEY, OTHER = KeyPair(b"\1" * 32), KeyPair(b"\2" * 32)


class End:
    """A server that echoes bodies, and what reached its handler."""

    def __init__(self, **options) -> None:
        options = {"listen": "127.0.0.1:0", "key": KEY, "stop_ms": 20, **options}
        self.transport = HttpTransport(**options)
        self.arrivals: list[Arrival] = []
        self.faults: list[Exception] = []
        self.arrived = asyncio.Event()
        self.released = asyncio.Event()
        """Answers requests for `/held`."""

    async def handler(self, arrival: Arrival) -> RawResponse:
        self.arrivals.append(arrival)
        self.arrived.set()
        if arrival.path == "/held":
            await self.released.wait()
        if arrival.path == "/big":
            return RawResponse(200, {}, [bytes(PEER_BODY_BYTES_MAX)])
        try:
            return RawResponse(200, {}, [await arrival.read(take_all)])
        except Exception as fault:
            self.faults.append(fault)
            raise

    @property
    def port(self) -> int:
        return int(self.transport.addresses()[0].rsplit(":", 1)[1])

    async def raw(self, sent: bytes, *, answer: bool = True) -> bytes:
        """Send bytes on a connection of its own and return all that comes until its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        try:
            return await asyncio.wait_for(reader.read() if answer else reader.read(1), 10)
        except ConnectionError:
            return b""
        finally:
            writer.close()


@pytest.fixture
async def end() -> AsyncIterator[End]:
    end = End(progress_ms=100, idle_ms=200)
    await end.transport.serve(end.handler)
    yield end
    await end.transport.close()


POST = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n"


async def test_a_head_that_dribbles_is_cut_off(end):
    reader, writer = await asyncio.open_connection("127.0.0.1", end.port)
    closed = asyncio.create_task(reader.read())
    for byte in POST * 100:
        if closed.done():
            break
        writer.write(bytes([byte]))
        await asyncio.wait([closed], timeout=0.01)
    assert closed.done()
    assert isinstance(closed.exception(), ConnectionError) or closed.result() == b""
    writer.close()
    assert not end.arrivals


async def test_a_second_head_that_dribbles_is_cut_off_too(end):
    answer = await end.raw(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\nPOST /x HT")
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(end.arrivals) == 1


async def test_a_connection_that_says_nothing_is_cut_off(end):
    assert await end.raw(b"") == b""


@pytest.mark.parametrize("size", [0, 100_000])
async def test_a_request_that_takes_longer_than_a_connection_may_be_idle_is_answered(end, size):
    reader, writer = await asyncio.open_connection("127.0.0.1", end.port)
    writer.write(
        b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    )
    # A newer connection that says nothing is cut off meanwhile.
    assert await end.raw(b"") == b""
    end.released.set()
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_body_that_stops_is_given_up(end):
    await end.raw(POST + b"\r\nabc")
    assert "too slow: 3 bytes in 100 ms" in str(end.faults[0])


async def test_a_body_that_dribbles_is_given_up(end, monkeypatch):
    monkeypatch.setattr(bounds, "BODY_BYTES_A_SECOND_MIN", 1_000)
    size = 200
    reader, writer = await asyncio.open_connection("127.0.0.1", end.port)
    writer.write(POST.replace(b"10", b"%d" % size) + b"\r\n")
    closed = asyncio.create_task(reader.read())
    for _ in range(size):
        if end.faults:
            break
        writer.write(b"x")
        await asyncio.wait([closed], timeout=0.02)
    assert "too slow" in str(end.faults[0])
    closed.cancel()
    writer.close()


@pytest.mark.parametrize("abort", [False, True])
async def test_a_body_that_ends_early_is_a_fault_of_the_caller(end, abort):
    reader, writer = await asyncio.open_connection("127.0.0.1", end.port)
    writer.write(POST + b"\r\nabc")
    await end.arrived.wait()
    if abort:
        writer.transport.abort()
    else:
        writer.write_eof()
        await reader.read()
        writer.close()
    await end.transport.close()
    assert isinstance(end.faults[0], FrameInvalid)


async def test_a_reader_that_does_not_read_is_cut_off(end, monkeypatch):
    lost, server = asyncio.Event(), end.transport._server
    forget = server.connection_lost

    def connection_lost(*arguments) -> None:
        forget(*arguments)
        lost.set()

    monkeypatch.setattr(server, "connection_lost", connection_lost)
    _, writer = await asyncio.open_connection("127.0.0.1", end.port, limit=1024)
    writer.write(POST.replace(b"/x", b"/big").replace(b"10", b"0") + b"\r\n")
    await lost.wait()
    assert len(end.arrivals) == 1
    writer.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (
            b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (PEER_BODY_BYTES_MAX + 1),
            413,
        ),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n", 411),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n", 400),
        (b"POST /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n", 400),
        (b"nonsense\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400),
    ],
)
async def test_what_is_not_proper_http_never_reaches_the_handler(end, caplog, head, status):
    answer = await end.raw(head + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.")
    first, *fields = answer.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert b" %d " % status in first
    # Nothing of what came, nothing of what runs here, and nothing in the log: anybody can ask.
    assert b"Server: xsc" in fields
    assert {field.split(b":")[0].lower() for field in fields} <= {
        *(b"server", b"date", b"content-length", b"content-type", b"connection"),
    }
    assert not end.arrivals
    assert not caplog.records


async def test_a_head_that_does_not_end_is_not_held():
    """No time is up here, and no field is beyond its bound: the bytes of all are too many."""
    end = End()
    await end.transport.serve(end.handler)
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 8_000) for number in range(5))
    assert (await end.raw(POST + fields)).startswith(b"HTTP/1.0 400 ")
    assert not end.arrivals
    await end.transport.close()


async def test_heads_of_one_connection_are_bounded_each_for_itself(end):
    small = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nX: %s\r\n" % (b"a" * 8_000)
    sent = (small + b"\r\na") * 9 + small + b"Connection: close\r\n\r\na"
    assert (await end.raw(sent)).count(b"HTTP/1.1 200 ") == 10


async def test_who_is_cut_off_on_arrival_leaves_nothing_in_the_log(caplog):
    """A full gate cuts a connection off before it is served."""
    end = End(connections_max=1)
    await end.transport.serve(end.handler)
    held, writer = await asyncio.open_connection("127.0.0.1", end.port)
    writer.write(b"POST /held HTTP/1.1\r\nHost: x\r\n\r\n")
    await end.arrived.wait()
    for _ in range(3):
        assert await end.raw(b"") == b""
    end.released.set()
    assert (await held.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    await end.transport.close()
    gc.collect()
    assert not caplog.records


async def test_the_answer_to_head_has_no_body(end):
    answer = await end.raw(
        POST.replace(b"POST", b"HEAD") + b"\r\n0123456789" + b"GET /x HTTP/1.0\r\n\r\n"
    )
    first, second, rest = answer.split(b"\r\n\r\n")
    assert b"Content-Length: 10" in first
    assert second.startswith(b"HTTP/1.0 200")
    assert rest == b""


async def test_nothing_is_decompressed_on_either_side(end):
    bomb = gzip.compress(bytes(10_000_000))
    headers = {"content-encoding": "gzip"}
    response = await end.transport.send(
        end.transport.addresses()[0], None, RawRequest("POST", "/x", headers, [bomb]), 5_000
    )
    assert bytes(response.body[0]) == bomb
    assert end.arrivals[0].size_bytes == len(bomb)


async def test_fields_given_twice_are_joined(end):
    await end.raw(POST + b"Signature: a\r\nsignature: b\r\nConnection: close\r\n\r\n0123456789")
    assert end.arrivals[0].headers["signature"] == "a, b"


async def test_the_end_waits_for_requests_that_run_but_for_no_idle_connection():
    end = End(stop_ms=60_000)
    began, go_on = asyncio.Event(), asyncio.Event()

    async def handler(arrival: Arrival) -> RawResponse:
        if arrival.path == "/long":
            began.set()
            await go_on.wait()
        return RawResponse(200)

    await end.transport.serve(handler)
    ours = HttpTransport(listen="127.0.0.1:0", key=OTHER)
    address = end.transport.addresses()[0]
    await ours.send(address, None, RawRequest("GET", "/short", {}), 5_000)
    async with asyncio.timeout(10):
        running = asyncio.create_task(
            ours.send(address, None, RawRequest("GET", "/long", {}), 60_000)
        )
        await began.wait()
        idle, writer = await asyncio.open_connection("127.0.0.1", end.port)
        closing = asyncio.create_task(end.transport.close())
        assert await idle.read() == b""
        assert not closing.done()
        go_on.set()
        assert (await running).status == 200
        await closing
    writer.close()
    await ours.close()


async def test_a_large_body_has_the_line_to_its_peer_for_itself():
    end = End(stop_ms=60_000)
    came: list[str] = []
    began = asyncio.Event()
    go_on = {path: asyncio.Event() for path in ("/1", "/2", "/small")}
    go_on["/small"].set()

    async def handler(arrival: Arrival) -> RawResponse:
        came.append(arrival.path)
        began.set()
        await go_on[arrival.path].wait()
        await arrival.read(take_all)
        return RawResponse(200)

    await end.transport.serve(handler)
    ours = HttpTransport(listen="127.0.0.1:0", key=OTHER)
    address = end.transport.addresses()[0]
    # More than the buffers of both ends take.
    large = [bytes(PEER_BODY_BYTES_MAX)]

    def send(path: str, body: list[bytes]) -> asyncio.Task[RawResponse]:
        return asyncio.create_task(
            ours.send(address, None, RawRequest("POST", path, {}, body), 60_000)
        )

    async with asyncio.timeout(30):
        first = send("/1", large)
        await began.wait()
        second = send("/2", large)
        await send("/small", [b"small"])
        assert came == ["/1", "/small"]
        go_on["/1"].set()
        assert (await first).status == 200
        go_on["/2"].set()
        assert (await second).status == 200
    assert came == ["/1", "/small", "/2"]
    await ours.close()
    await end.transport.close()


async def test_connections_are_bounded_and_an_idle_one_goes_for_a_newcomer():
    end = End(connections_max=2)
    await end.transport.serve(end.handler)
    held = [await asyncio.open_connection("127.0.0.1", end.port) for _ in range(2)]
    answer = await end.raw(POST + b"Connection: close\r\n\r\n0123456789")
    assert answer.startswith(b"HTTP/1.1 200")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await held[0][0].readexactly(1)
    for _, writer in held:
        writer.close()
    await end.transport.close()


async def test_connections_in_use_do_not_go_for_a_newcomer():
    end = End(connections_max=2)
    await end.transport.serve(end.handler)
    held = []
    for number in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", end.port)
        # More than is read before the server: its body is waited for.
        writer.write(POST.replace(b"10", b"100000") + b"\r\n")
        held.append(writer)
        while len(end.arrivals) <= number:
            end.arrived.clear()
            await end.arrived.wait()
    assert await end.raw(POST + b"\r\n0123456789") == b""
    for writer in held:
        writer.close()
    await end.transport.close()


async def test_one_source_with_more_connections_than_its_share_leaves_others_theirs(end):
    held = []
    for _ in range(2 * CONNECTIONS_AN_ADDRESS_MAX + 100):
        _, writer = await asyncio.open_connection("127.0.0.1", end.port)
        # In use from here on: its body is waited for.
        writer.write(POST.replace(b"/x", b"/held") + b"\r\n")
        held.append(writer)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", end.port, local_addr=("127.0.0.2", 0)
    )
    writer.write(POST + b"Connection: close\r\n\r\n0123456789")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    assert len(end.arrivals) <= CONNECTIONS_AN_ADDRESS_MAX + 1
    assert len(end.transport._gate) <= CONNECTIONS_AN_ADDRESS_MAX + 1
    for one in [*held, writer]:
        one.transport.abort()


async def test_sixty_four_requests_to_one_peer_run_at_once():
    end, ours = End(), HttpTransport(listen="127.0.0.1:0", key=OTHER)
    await end.transport.serve(end.handler)
    asked = [
        asyncio.create_task(
            ours.send(end.transport.addresses()[0], None, RawRequest("GET", "/held", {}), 20_000)
        )
        for _ in range(64)
    ]
    await until(lambda: len(end.arrivals) == 64)
    end.released.set()
    assert {answer.status for answer in await asyncio.gather(*asked)} == {200}
    await ours.close()
    await end.transport.close()


async def serve_once(answer: bytes) -> asyncio.Server:
    """Serve a fixed answer to each connection, and close it."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", Dropped),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", PeerSilent),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", PeerSilent),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", PeerSilent),
        (b"nonsense\r\n\r\n", PeerSilent),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", PeerSilent),
    ],
)
async def test_what_is_no_proper_answer_is_silence(answer, error):
    server = await serve_once(answer)
    port = server.sockets[0].getsockname()[1]
    transport = HttpTransport(listen="127.0.0.1:0", key=KEY)
    with pytest.raises(error):
        await transport.send(f"127.0.0.1:{port}", None, RawRequest("GET", "/", {}), 5_000)
    await transport.close()
    server.close()


async def test_redirects_are_not_followed():
    server = await serve_once(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    )
    port = server.sockets[0].getsockname()[1]
    transport = HttpTransport(listen="127.0.0.1:0", key=KEY)
    response = await transport.send(f"127.0.0.1:{port}", None, RawRequest("GET", "/", {}), 5_000)
    assert response.status == 302
    await transport.close()
    server.close()


# TLS


@pytest.fixture
async def secure() -> AsyncIterator[End]:
    """A server on all interfaces."""
    end = End(listen="0.0.0.0:0")
    await end.transport.serve(end.handler)
    yield end
    await end.transport.close()


async def test_off_loopback_there_is_tls_and_the_pin_is_kept(secure):
    ours = HttpTransport(listen="127.0.0.1:0", key=OTHER)
    address, pin = f"127.0.0.1:{secure.port}", secure.transport.fingerprint
    request = RawRequest("POST", "/x", {}, [b"secret"])
    response = await ours.send(address, pin, request, 5_000)
    assert bytes(response.body[0]) == b"secret"
    assert len(secure.arrivals) == 1
    with pytest.raises(PeerSilent, match="another certificate"):
        await ours.send(address, certificate_of(OTHER).fingerprint, request, 5_000)
    assert len(secure.arrivals) == 1
    await ours.close()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0"])
async def test_connections_are_kept_and_used_again(listen):
    end, ours = End(listen=listen), HttpTransport(listen="127.0.0.1:0", key=OTHER)
    await end.transport.serve(end.handler)
    request = RawRequest("POST", "/x", {}, [b"body"])
    for _ in range(10):
        await ours.send(f"127.0.0.1:{end.port}", end.transport.fingerprint, request, 5_000)
    assert len(end.transport._server._connections) == 1
    await ours.close()
    await end.transport.close()


async def test_without_tls_nothing_is_said_to_or_by_it(secure):
    ours = HttpTransport(listen="127.0.0.1:0", key=OTHER)
    with pytest.raises((PeerSilent, Dropped)):
        await ours.send(f"127.0.0.1:{secure.port}", None, RawRequest("GET", "/", {}), 5_000)
    assert not secure.arrivals
    with pytest.raises(PeerSilent, match="not on this machine"):
        await ours.send("192.0.2.1:7412", None, RawRequest("GET", "/", {}), 5_000)
    await ours.close()


async def test_a_handshake_that_is_not_made_counts_as_an_idle_connection():
    end = End(listen="0.0.0.0:0", connections_max=2)
    await end.transport.serve(end.handler)
    silent = [await asyncio.open_connection("127.0.0.1", end.port) for _ in range(6)]
    ours = HttpTransport(listen="127.0.0.1:0", key=OTHER)
    request = RawRequest("POST", "/x", {}, [b"body"])
    response = await ours.send(f"127.0.0.1:{end.port}", end.transport.fingerprint, request, 5_000)
    assert bytes(response.body[0]) == b"body"
    assert len(end.transport._gate) <= 2
    await ours.close()
    for _, writer in silent:
        writer.close()
    await end.transport.close()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0"])
@pytest.mark.parametrize("size", [10, 500_000])
async def test_an_answer_is_sent_when_the_reader_has_it_or_is_given_up(listen, size):
    """Until then it counts: what the system does not take, this process still holds."""
    sent: list[str] = []
    big = bytes(32 * 2**20)

    async def handler(arrival: Arrival) -> RawResponse:
        await arrival.read(take_all)
        return RawResponse(200, {}, [big], lambda: sent.append(arrival.path))

    transport = HttpTransport(listen=listen, key=KEY, progress_ms=300, stop_ms=20)
    await transport.serve(handler)
    port = int(transport.addresses()[0].rsplit(":", 1)[1])
    ours = HttpTransport(listen="127.0.0.1:0", key=OTHER)
    request = RawRequest("POST", "/read", {}, [bytes(size)])
    response = await ours.send(f"127.0.0.1:{port}", transport.fingerprint, request, 20_000)
    assert len(response.body[0]) == len(big)
    await until(lambda: sent == ["/read"])
    context = None
    if transport.fingerprint is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024, ssl=context)
    writer.write(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
    writer.write(bytes(size))
    async with asyncio.timeout(20):
        await until(lambda: sent == ["/read", "/unread"])
    writer.close()
    await ours.close()
    await transport.close()


class Pieces:
    """A stream that brings a body in pieces."""

    total_bytes = 0

    def is_eof(self) -> bool:
        return False

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces[::-1]

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        return self.pieces.pop() if self.pieces else b""


SIZES = st.sampled_from([1, 2, 3, 16 * 1024 - 1, 16 * 1024, 100_000, 300_000])


@given(st.lists(SIZES, max_size=40))
async def test_a_body_is_what_came_in_any_pieces(sizes):
    whole = bytes(index % 251 for index in range(1_000)) * (sum(sizes) // 1_000 + 1)
    pieces, start = [], 0
    for size in sizes:
        pieces.append(whole[start : start + size])
        start += size
    taken: list[bytes] = []
    body = await bounds.read_body(Pieces(pieces), start, 10_000, taken.append)
    assert bytes(body) == whole[:start]
    assert taken == pieces
    for size in (start + 1, start - 1):
        if size > 0:
            stream = Pieces([whole[:start]] if start else [])
            with pytest.raises(FrameInvalid, match="another length"):
                await bounds.read_body(stream, size, 10_000, take_all)


async def test_a_body_in_tiny_pieces_takes_little_more_than_its_bytes():
    """Each kept by itself would take twenty times as much, and nobody would count it."""
    size = 40_000
    stream = Pieces([bytes([index % 251, 7]) for index in range(size // 2)])
    tracemalloc.start()
    try:
        most = 0

        def take(_: bytes) -> None:
            nonlocal most
            most = max(most, tracemalloc.get_traced_memory()[0])

        before = tracemalloc.get_traced_memory()[0]
        await bounds.read_body(stream, size, 60_000, take)
    finally:
        tracemalloc.stop()
    assert most - before < 6 * size


async def test_a_body_is_taken_as_it_comes(end):
    taken: list[int] = []
    began = asyncio.Event()

    async def handler(arrival: Arrival) -> RawResponse:
        def take(piece: bytes) -> None:
            taken.append(len(piece))
            began.set()
            if sum(taken) > 200_000:
                raise RateLimited("enough")

        try:
            return RawResponse(200, {}, [await arrival.read(take)])
        except RateLimited:
            return RawResponse(429)

    end.transport._handler = handler
    reader, writer = await asyncio.open_connection("127.0.0.1", end.port)
    writer.write(POST.replace(b"10", b"%d" % PEER_BODY_BYTES_MAX) + b"\r\n" + bytes(1_000))
    await began.wait()
    assert sum(taken) <= 1_000
    writer.write(bytes(300_000))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 429")
    writer.close()


async def test_older_tls_is_refused(secure):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", secure.port, ssl=context)


def test_the_certificate_follows_from_the_identity_alone():
    one, again, other = certificate_of(KEY), certificate_of(KEY), certificate_of(OTHER)
    assert one == again
    assert one.fingerprint != other.fingerprint
    # Peers have pinned it: it must not change from release to release.
    assert (
        one.fingerprint.hex() == "d341f59c48457617611254a933900c1a8a3858f320228306961d9e963b7e3ddd"
    )


async def test_a_taken_port_is_named(end, monkeypatch):
    monkeypatch.setattr(http, "PORT_WAIT_MS", 100)
    taken = HttpTransport(listen=end.transport.addresses()[0], key=OTHER)
    with pytest.raises(ConfigInvalid, match="cannot be listened on"):
        await taken.serve(end.handler)
    await taken.close()


async def test_an_address_of_no_machine_is_named_with_what_to_do(end):
    nowhere = HttpTransport(listen="no-such-host.invalid:0", key=OTHER)
    with pytest.raises(ConfigInvalid) as caught:
        await nowhere.serve(end.handler)
    assert caught.value.hint == "set peer_listen to an address of this machine"
    await nowhere.close()


def test_addresses():
    assert split("[::1]:80") == ("[::1]", 80)
    for text in ("", ":80", "host", "host:", "host:x", "host:70000"):
        with pytest.raises(ConfigInvalid):
            split(text)


async def test_the_address_of_a_server_on_all_interfaces_can_be_told_to_others(secure):
    AddressRecord(
        name="x",
        addresses=secure.transport.addresses(),
        fingerprint=None,
        introducible=False,
        seq=0,
    )
    assert not secure.transport.addresses()[0].startswith("0.0.0.0")


# Whole nodes


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0"])
async def test_peers_join_call_move_and_come_back_over_http(listen):
    memory = MemoryNetwork(ManualClock())

    def node(name: str) -> Node:
        key = KeyPair(name.encode().ljust(32, b"\0"))
        return Node(memory, name, transport=HttpTransport(listen=listen, key=key, stop_ms=20))

    anna, bert = node("anna"), node("bert")
    await anna.net.start()
    await bert.net.start()
    await anna.net.join(bert.net.invite(HOUR_MS))
    data = bytes(3_000_000)
    reply = await anna.net.call(bert.id, "test.echo", {"a": 1}, [part(data), part(b"x")])
    assert [bytes(body) for body in reply.parts] == [data, b"x"]

    # Bert comes back on another port: a stale connection and an old address are overcome.
    await bert.net.stop()
    moved = PeerNet(
        key=bert.key,
        network_name="test",
        clock=bert.clock,
        entropy=SeededEntropy(b"again"),
        executor=InlineExecutor(),
        transport=HttpTransport(listen=listen, key=bert.key, stop_ms=20),
        log=RecordingLog(),
        state=bert.store,
        commit=None,
        name="bert",
    )
    moved.server.register({"test.echo": bert._echo})
    with pytest.raises(PeerSilent):
        await anna.net.call(bert.id, "test.echo", {})
    await moved.start()
    # As the space brings it.
    anna.net.introductions.learn(bert.id, moved.own_address.record().raw)
    assert (await anna.net.call(bert.id, "test.echo", {"b": 2})).header == {"b": 2}
    await anna.net.stop()
    await moved.stop()


@pytest.mark.parametrize("host", ["x" * 70 + ".example", "a..b"])
async def test_who_names_a_place_that_no_name_is_like_is_silent(host):
    transport = HttpTransport(listen="127.0.0.1:0", key=KEY)
    with pytest.raises(PeerSilent, match="no name is like that"):
        await transport.send(f"{host}:7411", b"f" * 32, RawRequest("GET", "/", {}), 5_000)
    await transport.close()


async def test_a_silent_listener_times_out():
    ended = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = HttpTransport(listen="127.0.0.1:0", key=KEY)
    with pytest.raises(PeerSilent, match="within 50 ms"):
        await transport.send(f"127.0.0.1:{port}", None, RawRequest("GET", "/", {}), 50)
    await transport.close()
    await ended.wait()
    server.close()


@pytest.mark.parametrize(
    ("how", "listen"),
    [
        ("abort", "127.0.0.1:0"),
        ("close", "127.0.0.1:0"),
        ("close", "0.0.0.0:0"),
        ("break", "0.0.0.0:0"),
    ],
)
async def test_a_peer_that_cuts_a_body_off_leaves_nothing_in_the_log(how, listen):
    """Signed requests of a peer at a whole node; to break is to send what TLS cannot read."""
    memory = MemoryNetwork(ManualClock())

    def node(name: str) -> Node:
        key = KeyPair(name.encode().ljust(32, b"\0"))
        return Node(memory, name, transport=HttpTransport(listen=listen, key=key, stop_ms=20))

    anna, bert = node("anna"), node("bert")
    await acquainted(anna, bert)
    sent: list[RawRequest] = []

    async def keep(_: str, __: bytes | None, request: RawRequest, ___: int) -> RawResponse:
        sent.append(request)
        raise PeerSilent("the test sends it")

    anna.transport.send = keep
    with pytest.raises(PeerSilent):
        await anna.net.call(bert.id, "test.echo", {}, [part(bytes(1_000_000))])
    (request,) = sent
    body = b"".join(bytes(buffer) for buffer in request.body)
    fields = {"host": "x", **request.headers, "content-length": str(len(body))}
    lines = (f"{name}: {value}\r\n" for name, value in fields.items())
    head = f"POST {request.path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()
    handler, ended = bert.transport._handler, []

    async def answer(arrival: Arrival) -> RawResponse:
        answered = await handler(arrival)
        ended.append(answered.status)
        return answered

    bert.transport._handler = answer
    reports = Reports(bert.log)
    logging.getLogger().addHandler(reports)

    def cut(port: int) -> None:
        raw = link = socket.create_connection(("127.0.0.1", port))
        if listen.startswith("0"):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            link = context.wrap_socket(raw)
        link.sendall(head + body[: len(body) // 2])
        with socket.socket(fileno=link.detach()) as plain:
            if how == "abort":
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "break":
                plain.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
                # Until it is read: closed at once, it would be lost with the connection.
                with suppress(ConnectionError):
                    while plain.recv(4_096):
                        pass

    try:
        await asyncio.to_thread(cut, int(bert.transport.addresses()[0].rsplit(":", 1)[1]))
        async with asyncio.timeout(20):
            await until(lambda: ended)
        await bert.net.stop()
    finally:
        logging.getLogger().removeHandler(reports)
        await anna.net.stop()
    assert ended == [400]
    assert not bert.calls
    assert not [name for name in bert.log.names() if "failed" in name or "report" in name]


async def test_what_comes_of_a_body_is_charged_and_a_head_that_was_not_signed_is_its_end():
    memory = MemoryNetwork(ManualClock())

    def node(name: str) -> Node:
        key = KeyPair(name.encode().ljust(32, b"\0"))
        return Node(
            memory, name, transport=HttpTransport(listen="127.0.0.1:0", key=key, stop_ms=20)
        )

    anna, bert = node("anna"), node("bert")
    await acquainted(anna, bert)
    port = int(bert.transport.addresses()[0].rsplit(":", 1)[1])
    size = 8 * MIB
    halves: list[bytes] = []

    async def keep(_: str, __: bytes | None, request: RawRequest, ___: int) -> RawResponse:
        body = b"".join(bytes(buffer) for buffer in request.body)
        fields = {"host": "x", **request.headers, "content-length": str(len(body))}
        lines = (f"{name}: {value}\r\n" for name, value in fields.items())
        halves.append(f"POST {request.path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
        halves.append(body[: size // 2])
        raise PeerSilent("the test sends it")

    anna.transport.send = keep
    for _ in range(2):
        with pytest.raises(PeerSilent):
            await anna.net.call(bert.id, "test.echo", {}, [part(bytes(size))])

    def spent() -> int:
        left, _ = bert.net.server.quota.left(anna.id, bert.clock.monotonic_ms())
        return PEER_REQUESTS_A_SECOND_MAX * REQUEST_UNITS - left

    async with asyncio.timeout(20):
        # Another head than was signed is refused, although the rest never comes.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        other = halves[1][:8] + bytes([halves[1][8] ^ 1]) + halves[1][9:]
        writer.write(halves[0] + other)
        assert (await reader.readline()).split()[1] == b"401"
        writer.close()
        before = spent()
        # What has come costs what it costs, although the request never does.
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(halves[2] + halves[3])
        await until(lambda: spent() == before + REQUEST_UNITS + size // 2 // KIB)
        writer.close()
    await bert.net.stop()
    await anna.net.stop()
    assert not bert.calls
