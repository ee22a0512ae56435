"""Small calls that share a request: each keeps its own answer, error and count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.settle import settle, turns
from tests.unit.net.nodes import Node, acquainted, part, quota_of
from xsc.base.clock import ManualClock
from xsc.base.encoding import encode
from xsc.base.errors import (
    CreditExceeded,
    FrameInvalid,
    NotFound,
    PeerBlocked,
    PeerError,
    PeerSilent,
    RateLimited,
    RecordInvalid,
    TooLarge,
)
from xsc.base.limits import (
    BATCH_BYTES_MAX,
    BATCH_CALL_BYTES_MAX,
    BATCH_CALL_PARTS_MAX,
    BATCH_CALLS_MAX,
    PEER_TIMEOUT_MS,
)
from xsc.net.calls import batch
from xsc.net.calls.frame import Reply
from xsc.net.calls.quota import Quota
from xsc.net.service import BATCH_WAITING_MAX, GATHER_MS_MAX, HALVED_LEAST, half_of
from xsc.net.transport.memory import MemoryNetwork


class Pair:
    """Anna calls Bert, who answers `test.hold` only once he may."""

    def __init__(self, quota: Quota | None = None) -> None:
        self.clock = ManualClock()
        self.memory = MemoryNetwork(self.clock)
        self.anna = Node(self.memory, "anna", clock=self.clock)
        self.bert = Node(self.memory, "bert", clock=self.clock, quota=quota)
        self.gate = asyncio.Event()
        self.seen: list[object] = []

    async def start(self) -> None:
        await acquainted(self.anna, self.bert)

        async def hold(caller, header, parts):
            self.seen.append(header["n"])
            await self.gate.wait()
            return await self.echo(caller, header, parts)

        async def refuse(caller, header, parts):
            raise CreditExceeded(f"no credit for {header['n']}")

        async def fail(caller, header, parts):
            raise ValueError("secret")

        async def large(caller, header, parts):
            return {}, [bytes(BATCH_CALL_BYTES_MAX + 1)]

        self.bert.net.server.register(
            {
                "test.hold": hold,
                "test.half": hold,
                "test.refuse": refuse,
                "test.fail": fail,
                "test.large": large,
            }
        )
        self.share(
            "test.hold", "test.refuse", "test.fail", "test.echo", "test.large", "test.nothing",
            "peers.batch", "peers.join",
        )  # fmt: skip
        self.share("test.half", halves=True)

    def share(self, *methods: str, **how: Any) -> None:
        """As in real nodes, both ends share the same methods."""
        for node in (self.anna, self.bert):
            node.net.share(*methods, **how)

    @staticmethod
    async def echo(caller, header, parts):
        return header, [item.data for item in parts]

    def call(self, number: object, method: str = "test.hold", parts=()) -> asyncio.Task[Reply]:
        return asyncio.create_task(
            self.anna.net.call(self.bert.id, method, {"n": number}, [part(data) for data in parts])
        )

    def requests(self) -> list[str]:
        return [
            event.path.removeprefix("/peer/v1/")
            for event in self.memory.trace
            if event.source == "anna" and event.what == "sent" and "/peers." not in event.path
        ] + [
            "batch"
            for event in self.memory.trace
            if event.source == "anna" and event.what == "sent" and "peers.batch" in event.path
        ]

    async def stop(self) -> None:
        await self.anna.net.stop()
        await self.bert.net.stop()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    await made.start()
    yield made
    made.gate.set()
    await made.stop()


async def test_a_call_that_stays_alone_leaves_at_once_and_as_it_is(pair):
    pair.gate.set()
    for number in range(3):
        assert (await pair.call(number)).header == {"n": number}
    assert pair.requests() == ["test.hold"] * 3


async def test_calls_that_gather_while_one_is_under_way_leave_together(pair):
    first = pair.call(0)
    await settle()
    others = [pair.call(number, parts=[bytes([number])] * (number % 3)) for number in range(1, 9)]
    await settle()
    assert pair.seen == [0]
    pair.gate.set()
    replies = await asyncio.gather(first, *others)
    assert [reply.header["n"] for reply in replies] == list(range(9))
    assert [[bytes(item) for item in reply.parts] for reply in replies] == [
        [bytes([number])] * (number % 3) for number in range(9)
    ]
    assert pair.requests() == ["test.hold", "batch"]


@pytest.mark.parametrize(("took_ms", "wait_ms"), [(3, 0), (4, 1), (9, 2), (1_000, GATHER_MS_MAX)])
async def test_calls_wait_for_others_as_long_as_a_quarter_of_the_last_request(
    pair, took_ms, wait_ms
):
    first = pair.call(0)
    await settle()
    pair.clock.advance_to(pair.clock.now_ms() + took_ms)
    pair.gate.set()
    await first
    # For those that come after the answer.
    later = [pair.call(1)]
    for number in range(wait_ms):
        later.append(pair.call(2 + number))
        await settle()
        assert pair.seen == [0]
        pair.clock.advance_to(pair.clock.now_ms() + 1)
    await asyncio.gather(*later)
    assert pair.requests() == ["test.hold"] + (["batch"] if wait_ms else ["test.hold"])


async def test_where_halves_leave_one_is_under_way_while_the_other_is_prepared(pair):
    count = 16
    calls = [pair.call(number, "test.half") for number in range(count)]
    for later in range(count, 6 * count, count // 2):
        await settle()
        # One half is with Bert, one request at a time; the other waits here.
        assert len(pair.seen) == later - count // 2
        gate, pair.gate = pair.gate, asyncio.Event()
        gate.set()
        # Each that was answered is followed by another.
        await asyncio.gather(*calls[later - count : later - count // 2])
        calls += [pair.call(number, "test.half") for number in range(later, later + count // 2)]
    pair.gate.set()
    replies = await asyncio.gather(*calls)
    assert [reply.header["n"] for reply in replies] == list(range(len(calls)))
    assert set(pair.requests()) == {"batch"}
    assert len(pair.requests()) <= 2 * len(calls) // count + 2


async def test_where_halves_leave_one_call_leaves_as_it_is_and_two_leave_together(pair):
    pair.gate.set()
    await pair.call(0, "test.half")
    await asyncio.gather(pair.call(1, "test.half"), pair.call(2, "test.half"))
    assert pair.requests() == ["test.half", "batch"]


@given(st.integers(1, 2 * BATCH_WAITING_MAX), st.integers(0, BATCH_CALLS_MAX))
def test_half_of_what_is_about_leaves_but_no_fewer_than_two_and_no_more_than_a_batch(wait, come):
    most = half_of(wait, come)
    assert HALVED_LEAST <= most <= BATCH_CALLS_MAX
    if HALVED_LEAST < most < BATCH_CALLS_MAX:
        assert 2 * most - (wait + come) in (0, 1)


@pytest.mark.parametrize("count", range(8))
async def test_a_stop_at_any_turn_ends_a_call_that_gathers(pair, count):
    call = pair.call(0)
    await turns(count)
    await pair.anna.net.stop()
    with pytest.raises(PeerSilent):
        await call


async def test_each_call_keeps_its_own_error(pair):
    first = pair.call(0)
    await settle()
    methods = ["test.echo", "test.refuse", "test.fail", "test.nothing", "test.large", "test.echo"]
    others = [pair.call(number, method) for number, method in enumerate(methods, 1)]
    # Neither a batch nor a join may hide in a batch.
    others += [pair.call(7, "peers.batch"), pair.call(8, "peers.join")]
    await settle()
    pair.gate.set()
    await first
    got = await asyncio.gather(*others, return_exceptions=True)
    assert [type(item) for item in got] == [
        Reply, CreditExceeded, PeerError, NotFound, Reply, Reply, NotFound, NotFound,
    ]  # fmt: skip
    assert str(got[1]) == "no credit for 2"
    assert "secret" not in str(got[2])
    assert len(got[4].parts[0]) == BATCH_CALL_BYTES_MAX + 1, "it was asked for again, alone"
    assert pair.bert.log.names().count("net.request_failed") == 1
    assert pair.requests().count("batch") == 1


async def test_a_call_whose_answer_may_be_large_goes_by_itself(pair):
    for node in (pair.anna, pair.bert):
        node.net.server.register({"test.much": pair.echo})
        node.net.server.bound_answers({"test.much": lambda header: header["n"]})
    pair.share("test.much")
    sizes = [1, BATCH_CALL_BYTES_MAX, BATCH_CALL_BYTES_MAX + 1, 2]
    await asyncio.gather(*(pair.call(size, "test.much") for size in sizes))
    assert sorted(pair.requests()) == ["batch", "test.much"]


async def test_a_batch_that_asks_for_more_than_it_may_is_refused_before_anything_is_done(pair):
    pair.bert.net.server.register({"test.much": pair.echo})
    pair.bert.net.server.bound_answers({"test.much": lambda header: header["n"]})
    pair.share("test.much")
    calls = [pair.call(size, "test.much") for size in (1, BATCH_CALL_BYTES_MAX + 1)]
    small, large = await asyncio.gather(*calls, return_exceptions=True)
    assert small.header == {"n": 1}
    assert isinstance(large, TooLarge)


async def test_calls_of_a_method_that_is_answered_together_keep_their_own_answers(pair):
    groups = []

    async def one(caller, header, parts):
        raise AssertionError("a call that is alone")

    async def together(caller, calls):
        groups.append((caller, [header["n"] for header, _ in calls]))
        return [
            CreditExceeded(f"no credit for {header['n']}")
            if header["n"] == 3
            else (header, [item.data for item in parts])
            for header, parts in calls
        ]

    pair.bert.net.server.register({"test.many": one})
    pair.bert.net.server.register_groups({"test.many": together})
    pair.share("test.many")
    calls = [pair.call(number, "test.many", [bytes([number])]) for number in range(5)]
    got = await asyncio.gather(*calls, return_exceptions=True)
    assert str(got.pop(3)) == "no credit for 3"
    assert [reply.header["n"] for reply in got] == [0, 1, 2, 4]
    assert [[bytes(item) for item in reply.parts] for reply in got] == [
        [bytes([number])] for number in (0, 1, 2, 4)
    ]
    assert groups == [(pair.anna.id, [0, 1, 2, 3, 4])]


async def test_what_is_answered_together_fails_for_itself_and_ends_nobody_else(pair):
    faults = [ValueError("secret"), NotFound("nothing of that")]

    async def one(caller, header, parts):
        raise AssertionError("a call that is alone")

    async def together(caller, calls):
        raise faults.pop(0)

    pair.gate.set()
    pair.bert.net.server.register({"test.many": one})
    pair.bert.net.server.register_groups({"test.many": together})
    pair.share("test.many")
    for expected in (PeerError, NotFound):
        header, parts = batch.pack_calls(
            [
                batch.Call("test.many", encode({"n": 1}), []),
                batch.Call("test.hold", encode({"n": 2}), []),
                batch.Call("test.many", encode([]), []),
                batch.Call("test.many", encode({"n": 4}), []),
            ]
        )
        reply = await pair.anna.net.call(pair.bert.id, "peers.batch", header, parts, timeout_ms=100)
        answers = batch.unpack_answers(reply, 4)
        assert answers[1].status == batch.OK
        for number, error in ((0, expected), (2, FrameInvalid), (3, expected)):
            assert isinstance(batch.outcome_of(answers[number], "bert"), error)
    assert pair.bert.log.names().count("net.request_failed") == 1


async def test_an_answer_that_cannot_be_sent_is_the_error_of_its_call(pair):
    def answer(header):
        return ({"n": 1.5 if header["n"] == 1 else header["n"]}, [])

    async def one(caller, header, parts):
        return answer(header)

    async def together(caller, calls):
        return [answer(header) for header, _ in calls]

    async def too_few(caller, calls):
        return [answer(header) for header, _ in calls[1:]]

    pair.bert.net.server.register(dict.fromkeys(("test.one", "test.many", "test.few"), one))
    pair.bert.net.server.register_groups({"test.many": together, "test.few": too_few})
    pair.share("test.one", "test.many", "test.few")
    calls = [
        pair.call(number, method)
        for method in ("test.one", "test.many", "test.few")
        for number in range(3)
    ]
    got = await asyncio.gather(*calls, return_exceptions=True)
    each = [Reply, RecordInvalid, Reply]
    assert [type(item) for item in got] == [*each, *each, *[PeerError] * 3]
    assert pair.requests().count("batch") == 1


async def test_what_the_quota_refuses_of_a_batch_is_not_asked_for():
    pair = Pair(quota_of(share=3))
    await pair.start()
    seen = []

    async def one(caller, header, parts):
        raise AssertionError("a call that is alone")

    async def together(caller, calls):
        seen.append([header["n"] for header, _ in calls])
        return [(header, []) for header, _ in calls]

    pair.bert.net.server.register({"test.many": one})
    pair.bert.net.server.register_groups({"test.many": together})
    pair.share("test.many")
    for _ in range(2):  # what the first time took of the quota was given back
        calls = [pair.call(number, "test.many") for number in range(5)]
        got = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in got] == [Reply, Reply, Reply, RateLimited, RateLimited]
    assert seen == [[0, 1, 2]] * 2
    await pair.stop()


async def test_every_call_of_a_batch_counts_against_the_quota():
    pair = Pair(quota_of(rate=6))
    await pair.start()
    pair.gate.set()
    first = pair.call(0)
    others = [pair.call(number) for number in range(1, 12)]
    got = await asyncio.gather(first, *others, return_exceptions=True)
    refused = [item for item in got if isinstance(item, RateLimited)]
    # Bert counted the greeting, too, and the batch as its first call.
    assert 6 <= len(refused) <= 7
    assert len(pair.seen) == 12 - len(refused)
    await pair.stop()


async def test_a_call_costs_as_much_in_a_batch_as_alone(pair):
    async def stat(caller, header, parts):
        return {}, []

    server = pair.bert.net.server
    server.register({"storage.stat": stat})
    server.allow_in_batches(["storage.stat"])

    async def cost(method, header, parts):
        now_ms = pair.bert.clock.monotonic_ms()
        before = server.quota.spending.of(pair.anna.id, now_ms).units.total()
        await pair.anna.net.call_alone(pair.bert.id, method, header, parts, 5_000)
        return server.quota.spending.of(pair.anna.id, now_ms).units.total() - before

    alone = await cost("storage.stat", {}, ())
    for many in (1, 2):
        calls = [batch.Call("storage.stat", encode({}), [])] * many
        assert await cost(batch.METHOD, *batch.pack_calls(calls)) == many * alone


async def test_requests_in_flight_count_each_call_of_a_batch():
    pair = Pair(quota_of(share=4))
    await pair.start()
    pair.gate.set()
    await pair.call(0)
    pair.gate.clear()
    first = pair.call(1)
    await settle()
    others = [pair.call(number) for number in range(2, 9)]
    await settle()
    pair.gate.set()
    await first
    pair.gate.clear()
    await settle()
    pair.gate.set()
    got = await asyncio.gather(*others, return_exceptions=True)
    assert [isinstance(item, RateLimited) for item in got] == [False] * 4 + [True] * 3
    await pair.stop()


async def test_a_silent_peer_is_the_error_of_every_call_at_its_own_deadline(pair):
    pair.memory.partition("anna", "bert")
    first = pair.call(0)
    await settle()
    pair.clock.advance_to(pair.clock.now_ms() + 5_000)
    second = pair.call(1)
    third = pair.call(2)
    await settle()
    pair.clock.advance_to(pair.clock.now_ms() + PEER_TIMEOUT_MS - 5_000)
    with pytest.raises(PeerSilent):
        await first
    await settle()
    pair.clock.advance_to(pair.clock.now_ms() + 4_999)
    await settle()
    assert not second.done()
    pair.clock.advance_to(pair.clock.now_ms() + 1)
    for call in (second, third):
        with pytest.raises(PeerSilent):
            await call
    pair.memory.heal()
    pair.gate.set()
    assert (await pair.call(3)).header == {"n": 3}


async def test_methods_have_the_time_that_they_share_by(pair):
    pair.share("test.half", timeout_ms=2_000)
    pair.memory.partition("anna", "bert")
    call = pair.call(0, "test.half")
    await settle()
    pair.clock.advance_to(pair.clock.now_ms() + 1_999)
    await settle()
    assert not call.done()
    pair.clock.advance_to(pair.clock.now_ms() + 1)
    with pytest.raises(PeerSilent):
        await call


async def test_a_caller_that_gives_up_takes_nobody_along(pair):
    first = pair.call(0)
    await settle()
    others = [pair.call(number) for number in range(1, 5)]
    await settle()
    others[1].cancel()
    first.cancel()
    await settle()
    pair.gate.set()
    got = await asyncio.gather(*others, return_exceptions=True)
    assert [isinstance(item, asyncio.CancelledError) for item in got] == [
        False, True, False, False,
    ]  # fmt: skip
    assert pair.seen == [0, 1, 3, 4]


async def test_a_stop_ends_those_under_way_and_those_that_wait(pair):
    first = pair.call(0)
    await settle()
    second = pair.call(1)
    await settle()
    first.cancel()
    await settle()
    third = pair.call(2)
    await settle()
    sent = len(pair.requests())
    await pair.anna.net.stop()
    for call in (second, third):
        with pytest.raises(PeerSilent):
            await call
    assert len(pair.requests()) == sent


async def test_no_more_than_so_many_calls_and_bytes_travel_together(pair):
    first = pair.call(0)
    await settle()
    quarter = bytes(BATCH_BYTES_MAX // 16)
    calls = [pair.call(number, "test.echo") for number in range(1, BATCH_CALLS_MAX + 2)]
    calls += [pair.call(number, "test.echo", [quarter]) for number in range(20)]
    await settle()
    pair.gate.set()
    await asyncio.gather(first, *calls)
    # 32, then one and 15 large ones, then five.
    assert pair.requests().count("batch") == 3


@pytest.mark.parametrize(
    "parts", [[bytes(BATCH_CALL_BYTES_MAX)], [b""] * (BATCH_CALL_PARTS_MAX + 1)]
)
async def test_a_call_over_the_bounds_goes_by_itself_and_does_not_wait(pair, parts):
    first = pair.call(0)
    await settle()
    second = pair.call(1, parts=parts)
    await settle()
    assert pair.seen == [0, 1]
    pair.gate.set()
    await asyncio.gather(first, second)
    assert pair.requests() == ["test.hold", "test.hold"]


async def test_so_many_wait_and_the_next_goes_by_itself():
    pair = Pair(quota_of(rate=10**6))
    await pair.start()
    first = pair.call(0)
    await settle()
    waiting = [pair.call(number) for number in range(1, BATCH_WAITING_MAX + 1)]
    await settle()
    alone = pair.call(-1)
    await settle()
    assert pair.seen == [0, -1]
    pair.gate.set()
    await asyncio.gather(first, alone, *waiting)
    await pair.stop()


async def test_a_blocked_peer_is_not_called(pair):
    pair.anna.net.roster.block(pair.bert.id)
    with pytest.raises(PeerBlocked):
        await pair.call(0)


CALL = {"method": "test.echo", "header": encode({}), "parts": 0}


@pytest.mark.parametrize(
    ("header", "parts", "error"),
    [
        ({}, 0, RecordInvalid),
        ({"calls": []}, 0, FrameInvalid),
        ({"calls": [1]}, 0, FrameInvalid),
        ({"calls": [{**CALL, "parts": 1}]}, 0, FrameInvalid),
        ({"calls": [CALL]}, 1, FrameInvalid),
        ({"calls": [{**CALL, "parts": -1}]}, 0, RecordInvalid),
        ({"calls": [{**CALL, "header": 7}]}, 0, RecordInvalid),
        ({"calls": [{**CALL, "header": bytes(BATCH_CALL_BYTES_MAX + 1)}]}, 0, FrameInvalid),
        ({"calls": [CALL] * (BATCH_CALLS_MAX + 1)}, 0, (TooLarge, RecordInvalid)),
    ],
)
async def test_a_malformed_batch_carries_out_nothing(pair, header, parts, error):
    with pytest.raises(error):
        await pair.anna.net.call_alone(
            pair.bert.id, batch.METHOD, header, [part(b"x")] * parts, 1_000
        )
    assert not pair.bert.calls


@pytest.mark.parametrize("raw", [b"", b"\xff", encode([1]), encode("x")])
async def test_a_call_whose_header_is_no_map_is_refused_alone(pair, raw):
    calls = [{**CALL, "header": raw}, CALL]
    reply = await pair.anna.net.call_alone(pair.bert.id, batch.METHOD, {"calls": calls}, [], 1_000)
    answers = batch.unpack_answers(reply, 2)
    assert answers[0].status >= 400
    assert answers[1].status == 200


@given(
    st.lists(
        st.tuples(st.binary(max_size=40), st.lists(st.binary(max_size=20), max_size=8)),
        min_size=1,
        max_size=BATCH_CALLS_MAX,
    )
)
def test_what_is_packed_comes_out_again_both_ways(items):
    calls = [
        batch.Call(f"test.m{i}", raw, [part(d) for d in p]) for i, (raw, p) in enumerate(items)
    ]
    header, parts = batch.pack_calls(calls)
    assert batch.unpack_calls(header, parts) == calls
    answers = [batch.Answer(200 + i, raw, p) for i, (raw, p) in enumerate(items)]
    header, bodies = batch.pack_answers(answers)
    reply = Reply(header, [memoryview(body) for body in bodies])
    assert batch.unpack_answers(reply, len(items)) == [
        batch.Answer(a.status, a.header, [memoryview(b) for b in a.parts]) for a in answers
    ]
    for wrong in (len(items) - 1, len(items) + 1):
        with pytest.raises(FrameInvalid):
            batch.unpack_answers(reply, wrong)


async def test_a_batch_carries_only_what_answers_little():
    """A method that is not shared may answer megabytes: not thirty-two times before one is sent."""
    pair = Pair()
    await pair.start()
    called = []

    async def heavy(caller, header, parts):
        called.append(caller)
        return {}, [bytes(2**20)]

    pair.bert.net.server.register({"test.heavy": heavy})
    calls = [batch.Call("test.heavy", encode({}), []) for _ in range(4)]
    header, parts = batch.pack_calls(calls)
    reply = await pair.anna.net.call(pair.bert.id, "peers.batch", header, parts, timeout_ms=100)
    for answer in batch.unpack_answers(reply, 4):
        assert isinstance(batch.outcome_of(answer, "bert"), NotFound)
    assert not called
    await pair.stop()
