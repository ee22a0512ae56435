"""What every transport keeps; run on the memory network and on HTTP, plain and with TLS."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tests.settle import turns
from tests.unit.net.nodes import take_all
from xsc.base.clock import ManualClock
from xsc.base.errors import PeerSilent, TooLarge
from xsc.base.limits import PEER_BODY_BYTES_MAX
from xsc.identity.keys import KeyPair
from xsc.net.transport.http import HttpTransport
from xsc.net.transport.memory import MemoryNetwork
from xsc.net.transport.port import Arrival, RawRequest, RawResponse, Transport


class RunningClock(ManualClock):
    """Moves on by itself once the others have had many turns."""

    async def sleep_ms(self, duration_ms: int) -> None:
        until = self.now_ms() + duration_ms
        await turns(1000 if duration_ms else 1)
        self.advance_to(until)


@dataclass
class Pair:
    here: Transport
    there: Transport
    seen: list[Arrival] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    forgotten: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, path: str, *body: bytes, timeout_ms: int = 10_000) -> RawResponse:
        request = RawRequest("POST", path, {"X-Kind": "a"}, body)
        return await self.here.send(
            self.there.addresses()[0], self.there.fingerprint, request, timeout_ms
        )


@pytest.fixture(params=["memory", "http", "tls"])
async def pair(request) -> AsyncIterator[Pair]:
    if request.param == "memory":
        network = MemoryNetwork(RunningClock())
        pair = Pair(network.transport("here"), network.transport("there"))
    else:
        there = HttpTransport(listen="127.0.0.1:0", key=KeyPair(b"\1" * 32), stop_ms=20)
        if request.param == "tls":
            from xsc.net.transport.tls import certificate_of

            there._certificate = certificate_of(KeyPair(b"\1" * 32))
        pair = Pair(HttpTransport(listen="127.0.0.1:0", key=KeyPair(b"\2" * 32)), there)

    async def handler(arrival: Arrival) -> RawResponse:
        pair.seen.append(arrival)
        pair.arrived.set()
        if arrival.path == "/echo":
            return RawResponse(200, {"x-answer": "b"}, [b"<", await arrival.read(take_all), b">"])
        if arrival.path == "/unread":
            return RawResponse(401)
        if arrival.path == "/once":
            body = memoryview(bytes(2_000_000))
            weakref.finalize(body, pair.forgotten.set)
            return RawResponse(200, {}, [body])
        if arrival.path == "/large":
            return RawResponse(200, {}, [bytes(PEER_BODY_BYTES_MAX), b"1"])
        if arrival.path == "/never":
            await asyncio.get_running_loop().create_future()
        return RawResponse(404)

    await pair.there.serve(handler)
    yield pair
    await pair.here.close()
    await pair.there.close()


async def test_carries_method_path_headers_and_body_both_ways(pair):
    response = await pair.ask("/echo", b"one", b"", b"two")
    (arrival,) = pair.seen
    assert (arrival.method, arrival.path, arrival.size_bytes) == ("POST", "/echo", 6)
    assert arrival.headers["x-kind"] == "a"
    assert response.status == 200
    assert response.headers["x-answer"] == "b"
    assert bytes(response.body[0]) == b"<onetwo>"


async def test_carries_megabytes_in_many_buffers(pair):
    buffers = [bytes([index]) * 700_001 for index in range(7)]
    response = await pair.ask("/echo", *buffers)
    assert bytes(response.body[0]) == b"<" + b"".join(buffers) + b">"


async def test_an_empty_answer_has_no_body(pair):
    response = await pair.ask("/nowhere")
    assert (response.status, response.body) == (404, [])


async def test_nothing_keeps_an_answer_that_was_sent(pair):
    """A connection that waits for its next request kept it: a megabyte each, at every host."""
    await pair.ask("/once")
    async with asyncio.timeout(10):
        await pair.forgotten.wait()


async def test_a_request_can_be_refused_before_its_body_is_read(pair):
    response = await pair.ask("/unread", bytes(5_000_000))
    assert response.status == 401
    assert (await pair.ask("/echo")).status == 200


async def test_requests_side_by_side_do_not_mix(pair):
    answers = await asyncio.gather(*(pair.ask("/echo", b"%d" % count) for count in range(40)))
    assert [bytes(answer.body[0]) for answer in answers] == [b"<%d>" % n for n in range(40)]


async def test_a_body_over_the_bound_never_reaches_the_handler(pair):
    response = await pair.ask("/echo", bytes(PEER_BODY_BYTES_MAX), b"1")
    assert response.status == 413
    assert not pair.seen


async def test_an_answer_over_the_bound_is_refused(pair):
    with pytest.raises(TooLarge):
        await pair.ask("/large")


async def test_no_answer_in_time_is_silence(pair):
    with pytest.raises(PeerSilent):
        await pair.ask("/never", timeout_ms=50)


async def test_nobody_there_is_silence(pair):
    await pair.there.close()
    with pytest.raises(PeerSilent):
        await pair.here.send("127.0.0.1:1", None, RawRequest("GET", "/", {}), 5_000)


async def test_after_a_cancelled_request_others_pass(pair):
    waiting = asyncio.create_task(pair.ask("/never"))
    await pair.arrived.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await pair.ask("/echo")).status == 200
