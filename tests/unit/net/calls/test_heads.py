"""Bounds of heads: what each method may have, and what a head above it costs its sender."""

from __future__ import annotations

import asyncio

import pytest

from tests.settle import settle
from tests.sim.adversary.messages import HEADERS
from tests.unit.net.nodes import Node, acquainted, quota_of
from tests.unit.net.test_service import Outsider
from xsc.base.clock import InlineExecutor, ManualClock
from xsc.base.encoding import encode
from xsc.base.errors import FrameInvalid, RateLimited, TooLarge
from xsc.base.limits import (
    FRAME_HEADER_BYTES_MAX,
    HEAD_BYTES_MAX,
    KIB,
    PEER_REQUESTS_IN_FLIGHT_MAX,
    REQUEST_UNITS,
)
from xsc.base.turns import WORK_INLINE_BYTES, PeerWork
from xsc.net.calls.costs import COSTS, HEAD_KIB_UNITS, OTHER
from xsc.net.calls.frame import LENGTH_BYTES, pack_head
from xsc.net.calls.server import JOIN
from xsc.net.transport.memory import MemoryNetwork
from xsc.net.transport.port import Arrival

METHODS = sorted(set(HEADERS) - {JOIN})


def header_of(size_bytes: int) -> dict[str, bytes]:
    """Return a header whose frame's has that size."""
    around = len(encode({"v": 1, "h": {"x": bytes(size_bytes // 2)}, "p": []})) - size_bytes // 2
    header = {"x": bytes(size_bytes - around)}
    assert len(pack_head(header, [])) == LENGTH_BYTES + size_bytes
    return header


@pytest.fixture
async def pair():
    memory = MemoryNetwork(ManualClock())
    anna, bert = Node(memory, "anna"), Node(memory, "bert")
    bert.heard = []
    bert.answer = {}

    async def answer(caller, header, parts):
        bert.heard.append(header)
        return bert.answer, []

    others = {method: answer for method in METHODS if method not in bert.net.server.handlers}
    bert.net.server.register(others)
    bert.net.server.handlers["peers.batch"] = answer
    await acquainted(anna, bert)
    yield anna, bert
    for node in (anna, bert):
        await node.net.stop()


@pytest.mark.parametrize("method", METHODS)
async def test_a_head_is_taken_up_to_the_bound_of_its_method_and_not_beyond(pair, method):
    anna, bert = pair
    bound = COSTS.get(method, OTHER)
    wire = Outsider(bert, anna.key)
    for size, taken in ((bound.asked, True), (bound.asked + 1, False)):
        if size <= FRAME_HEADER_BYTES_MAX:
            answer = await wire.send(wire.request(method, header=header_of(size)))
            assert (answer.status == 200) == taken
            assert len(bert.heard) == 1
    assert (
        await wire.error(wire.request(method, head=(bound.asked + 1).to_bytes(LENGTH_BYTES, "big")))
        is TooLarge
    )
    # Nor does the own node send one, or take a larger one as the answer.
    with pytest.raises(TooLarge):
        await anna.net.call_alone(bert.id, method, header_of(bound.asked + 1), (), 1_000)
    bert.answer = header_of(bound.answered)
    assert (await anna.net.call_alone(bert.id, method, {}, (), 1_000)).header == bert.answer
    assert bert.net.server._framed(bert.answer, (), bound.answered)
    with pytest.raises(TooLarge):
        bert.net.server._framed(header_of(bound.answered + 1), (), bound.answered)


async def test_of_a_head_above_the_bound_only_the_beginning_is_read(pair):
    anna, bert = pair
    wire = Outsider(bert, anna.key)
    request = wire.request("storage.find", header=header_of(HEAD_BYTES_MAX))
    whole, shown = b"".join(request.body), []

    async def read(take):
        for start in range(0, len(whole), 3):
            shown.append(start)
            take(whole[start : start + 3])
        return memoryview(whole)

    arrival = Arrival("POST", request.path, dict(request.headers), len(whole), read)
    answer = await bert.net.server.answer(arrival)
    assert answer.status == 413
    assert shown == [0, 3]
    answer.sent()
    assert bert.net.server.quota.bodies.held(anna.id) == 0


async def test_a_head_that_was_not_held_against_its_signature_is_not_carried_out(pair):
    anna, bert = pair
    wire = Outsider(bert, anna.key)
    request = wire.request("storage.find", header=header_of(KIB))

    async def read(_):
        return memoryview(b"".join(request.body))

    arrival = Arrival("POST", request.path, dict(request.headers), KIB, read)
    assert (await bert.net.server.answer(arrival)).status == FrameInvalid("").http_status
    assert not bert.heard


def test_a_head_counts_as_the_requests_that_it_takes_as_long_as():
    quota = quota_of(rate=100)
    ticket = quota.enter(b"a" * 32, 0)
    for _ in range(99):
        ticket.charge_content(KIB - 1, 0, 0)
    most = (100 - 1) * REQUEST_UNITS // HEAD_KIB_UNITS
    ticket.charge_content(most * KIB, 0, 0)
    with pytest.raises(RateLimited):
        ticket.charge_content(16 * KIB, 0, 0)
    other = quota.enter(b"b" * 32, 0)
    other.charge_content(16 * KIB, 0, 0)
    ticket.charge_content(16 * KIB, 0, 16 * HEAD_KIB_UNITS * 1000 // (100 * REQUEST_UNITS))


class SlowExecutor(InlineExecutor):
    """Runs work when it is let."""

    def __init__(self):
        self.waiting = []

    async def run(self, function, *args, **kwargs):
        let = asyncio.get_running_loop().create_future()
        self.waiting.append(let)
        await let
        return function(*args, **kwargs)


async def test_large_work_of_one_peer_is_done_one_by_one_and_small_work_at_once():
    executor = SlowExecutor()
    work = PeerWork(executor)
    large = [
        asyncio.create_task(work.run(peer, HEAD_BYTES_MAX + 1, bytes, 3))
        for peer in (b"a", b"a", b"a", b"b")
    ]
    await settle()
    assert len(executor.waiting) == 2
    assert await work.run(b"a", WORK_INLINE_BYTES, bytes, 1) == b"\0"
    for done in (2, 3, 4):
        executor.waiting.pop(0).set_result(None)
        await settle()
        assert sum(one.done() for one in large) == done - 1
    executor.waiting.pop(0).set_result(None)
    assert await asyncio.gather(*large) == [bytes(3)] * 4


async def test_heads_of_one_peer_leave_others_a_turn_between_each_two():
    done: list[bytes] = []
    work = PeerWork(InlineExecutor())
    all_of_them = [
        asyncio.create_task(work.run(peer, HEAD_BYTES_MAX, done.append, peer))
        for peer in [b"a"] * PEER_REQUESTS_IN_FLIGHT_MAX + [b"b"]
    ]
    await asyncio.gather(*all_of_them)
    assert done.index(b"b") == 1


async def test_sixty_four_requests_with_the_largest_heads_leave_an_honest_peer_its_answers():
    """Only one head is decoded at a time, and the others are bytes until then."""
    memory = MemoryNetwork(ManualClock())
    anna, bert, mallory = (Node(memory, name) for name in ("anna", "bert", "mallory"))
    executor = SlowExecutor()
    bert.net.work._executor = executor
    bert.net.server.register({"space.next": bert._echo})
    await acquainted(anna, bert)
    await mallory.net.start()
    await mallory.net.join(bert.net.invite(3_600_000))
    wire = Outsider(bert, mallory.key)
    head = pack_head({"x": [0] * (FRAME_HEADER_BYTES_MAX - 64)}, [])
    requests = [wire.request("space.next", head=head) for _ in range(PEER_REQUESTS_IN_FLIGHT_MAX)]
    sent = [asyncio.create_task(wire.send(request)) for request in requests]
    await settle()
    assert len(executor.waiting) == 1
    statuses = [one.result().status for one in sent if one.done()]
    # What is above its quota is refused before it is decoded.
    assert set(statuses) == {429}
    for _ in range(10):
        assert (await anna.net.call(bert.id, "test.echo", {"a": 1})).header == {"a": 1}
    assert len(executor.waiting) == 1
    assert [caller for caller, _, _ in bert.calls] == [anna.id] * 10
    for one in sent:
        one.cancel()
    await asyncio.gather(*sent, return_exceptions=True)
    for node in (anna, bert, mallory):
        await node.net.stop()
