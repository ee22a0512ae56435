"""Calls between peers, and what becomes of everything that is not a proper call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.settle import settle, until
from tests.unit.net.nodes import HOUR_MS, Node, acquainted, part, quota_of
from xsc.base import limits
from xsc.base.clock import ManualClock
from xsc.base.errors import (
    ArgumentInvalid,
    ClockSkewed,
    CreditExceeded,
    FrameInvalid,
    NotFound,
    PeerBlocked,
    PeerError,
    PeerSilent,
    PeerUnknown,
    RateLimited,
    ReplayRefused,
    ShardMismatch,
    SignatureInvalid,
    StoreDamaged,
    TooLarge,
    Unauthorized,
    XscError,
)
from xsc.base.ids import to_text
from xsc.base.limits import JOIN_BYTES_MAX, KIB, MIB, REQUEST_WINDOW_MS, SYNC_BYTES
from xsc.base.merkle import Part
from xsc.base.room import Room
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair, network_id
from xsc.net.calls.frame import pack_head
from xsc.net.calls.problems import answer_of, error_of
from xsc.net.calls.quota import UNKNOWN_AN_ADDRESS_A_SECOND_MAX
from xsc.net.calls.server import UNKNOWN
from xsc.net.calls.signing import sign_request
from xsc.net.peers.introductions import ADDRESSES_A_PEER_MAX, ADDRESSES_MS
from xsc.net.peers.invitation import from_string
from xsc.net.peers.roster import AddressRecord
from xsc.net.transport.memory import MemoryNetwork
from xsc.net.transport.port import RawRequest, RawResponse


@pytest.fixture
def memory() -> MemoryNetwork:
    return MemoryNetwork(ManualClock())


@pytest.fixture
async def nodes(memory) -> AsyncIterator[tuple[Node, Node]]:
    pair = Node(memory, "anna"), Node(memory, "bert")
    await acquainted(*pair)
    yield pair
    for node in pair:
        await node.net.stop()


class Outsider:
    """Sends what it likes to a node, signed by whom it likes."""

    def __init__(self, target: Node, key: KeyPair | None = None) -> None:
        self.target = target
        self.key = key or KeyPair(b"outsider".ljust(32, b"\0"))
        self.wire = target.memory.transport("outsider")
        self._count = 0

    def request(
        self,
        method: str = "test.echo",
        *,
        header=None,
        parts=(),
        to=None,
        network="test",
        created_ms=None,
        head=None,
    ) -> RawRequest:
        self._count += 1
        head = pack_head(header or {}, parts) if head is None else head
        path = f"/peer/v1/{method}"
        signed = sign_request(
            self.key,
            network=network_id(network),
            to=self.target.id if to is None else to,
            method="POST",
            path=path,
            head=head,
            created_ms=self.target.clock.now_ms() if created_ms is None else created_ms,
            entropy=self._count.to_bytes(10, "big"),
        )
        return RawRequest("POST", path, signed, [head, *(part.data for part in parts)])

    async def send(self, request: RawRequest) -> RawResponse:
        return await self.wire.send(f"{self.target.name}:1", None, request, 1_000)

    async def error(self, request: RawRequest) -> type[XscError]:
        response = await self.send(request)
        assert response.status != 200
        return type(error_of(response.status, response.body[0], "x"))


def same(one: RawResponse, other: RawResponse) -> bool:
    return (one.status, one.headers, b"".join(one.body)) == (
        other.status,
        other.headers,
        b"".join(other.body),
    )


# Calls


async def test_a_call_carries_header_and_parts_both_ways_and_names_its_caller(nodes):
    anna, bert = nodes
    reply = await anna.net.call(bert.id, "test.echo", {"a": 1}, [part(b"x"), part(b"")])
    assert reply.header == {"a": 1}
    assert [bytes(data) for data in reply.parts] == [b"x", b""]
    assert bert.calls == [(anna.id, {"a": 1}, [b"x", b""])]


async def test_a_node_answers_itself_in_process(nodes):
    anna, _ = nodes
    reply = await anna.net.call(anna.id, "test.echo", {"a": 1}, [part(b"x")])
    assert (reply.header, [bytes(data) for data in reply.parts]) == ({"a": 1}, [b"x"])
    assert anna.calls == [(anna.id, {"a": 1}, [b"x"])]


async def test_large_parts_are_checked_and_carried(nodes):
    anna, bert = nodes
    data = bytes(range(256)) * 4096
    reply = await anna.net.call(bert.id, "test.echo", {}, [part(data), part(data)])
    assert [bytes(body) for body in reply.parts] == [data, data]


async def test_what_one_node_has_sent_the_other_has_received(nodes, memory):
    anna, bert = nodes
    before = [(node.net.traffic.sent_bytes, node.net.traffic.received_bytes) for node in nodes]
    await anna.net.call(bert.id, "test.echo", {}, [part(bytes(1_000))])
    (sent, received), (sent_there, received_there) = [
        (node.net.traffic.sent_bytes - begun[0], node.net.traffic.received_bytes - begun[1])
        for node, begun in zip(nodes, before, strict=True)
    ]
    assert 1_000 < received == sent_there
    assert 1_000 < sent == received_there
    memory.kill("bert")
    with pytest.raises(PeerSilent):
        await anna.net.call(bert.id, "test.echo", {})
    assert anna.net.traffic.sent_bytes > before[0][0] + sent
    assert anna.net.traffic.received_bytes == before[0][1] + received


async def test_an_error_of_the_handler_arrives_as_itself(nodes):
    anna, bert = nodes

    async def refuse(caller, header, parts):
        raise CreditExceeded("no credit", hint="pay")

    bert.net.server.register({"test.refuse": refuse})
    with pytest.raises(CreditExceeded, match="no credit") as error:
        await anna.net.call(bert.id, "test.refuse", {})
    assert error.value.hint == "pay"


@pytest.mark.parametrize("fault", [StoreDamaged("/home/anna/secret"), ValueError("secret")])
async def test_damage_and_bugs_over_there_are_a_failed_peer_here_without_details(nodes, fault):
    anna, bert = nodes

    async def fail(caller, header, parts):
        raise fault

    bert.net.server.register({"test.fail": fail})
    with pytest.raises(PeerError) as error:
        await anna.net.call(bert.id, "test.fail", {})
    assert type(error.value) is PeerError
    assert "secret" not in error.value.message
    if isinstance(fault, ValueError):
        assert "net.request_failed" in bert.log.names()


async def test_a_method_nobody_has_is_not_found(nodes):
    anna, bert = nodes
    with pytest.raises(NotFound):
        await anna.net.call(bert.id, "test.nothing", {})


async def test_a_stranger_or_blocked_peer_is_not_called(nodes, memory):
    anna, bert = nodes
    with pytest.raises(PeerUnknown):
        await anna.net.call(bytes(32), "test.echo", {})
    anna.net.roster.block(bert.id)
    before = len(memory.trace)
    with pytest.raises(PeerBlocked):
        await anna.net.call(bert.id, "test.echo", {})
    assert len(memory.trace) == before


async def test_a_dead_peer_is_silent(nodes, memory):
    anna, bert = nodes
    memory.kill("bert")
    with pytest.raises(PeerSilent, match="bert"):
        await anna.net.call(bert.id, "test.echo", {})


async def test_no_answer_within_the_timeout_is_silence(nodes, memory):
    anna, bert = nodes
    memory.partition("anna", "bert")
    call = asyncio.create_task(anna.net.call(bert.id, "test.echo", {}, timeout_ms=500))
    await settle()
    memory._clock.advance_to(memory._clock.now_ms() + 500)
    with pytest.raises(PeerSilent, match="500 ms"):
        await call
    assert not bert.calls


async def test_a_dropped_connection_is_tried_once_more_with_a_new_signature(nodes, memory):
    anna, bert = nodes
    tries = []

    async def drop_once(caller, header, parts):
        tries.append(caller)
        if len(tries) == 1:
            # The node goes down within the request, and comes back.
            raise asyncio.CancelledError
        return {}, ()

    bert.net.server.register({"test.drop": drop_once})
    await anna.net.call(bert.id, "test.drop", {})
    assert len(tries) == 2


async def test_the_next_address_is_tried_and_the_good_one_remembered(nodes, memory):
    anna, bert = nodes
    info = anna.net.roster.info(bert.id).model_copy(update={"addresses": ("gone:1", "bert:1")})
    anna.net.roster.put(info)
    anna.net.sender.answered_at.clear()
    await anna.net.call(bert.id, "test.echo", {})
    before = len(memory.trace)
    await anna.net.call(bert.id, "test.echo", {})
    assert {event.target for event in memory.trace[before:]} == {"anna", "bert"}


async def test_a_cancelled_call_disturbs_no_other(nodes):
    anna, bert = nodes
    entered, gate = asyncio.Event(), asyncio.Event()

    async def wait(caller, header, parts):
        entered.set()
        await gate.wait()
        bert.calls.append((caller, header, []))
        return {}, ()

    bert.net.server.register({"test.wait": wait})
    call = asyncio.create_task(anna.net.call(bert.id, "test.wait", {}))
    await entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await anna.net.call(bert.id, "test.echo", {})
    gate.set()
    await until(lambda: len(bert.calls) >= 2)
    # The answer that nobody waits for takes its place along.
    await until(lambda: not bert.net.server.quota.places.held(anna.id))


async def test_a_corrupted_answer_is_the_peers_fault(nodes, memory):
    anna, bert = nodes
    good = []

    def change(source, target, request, response):
        body = b"".join(response.body)
        good.append(body)
        return RawResponse(response.status, response.headers, [body[:-1]])

    memory.corrupt = change
    with pytest.raises(FrameInvalid):
        await anna.net.call(bert.id, "test.echo", {"a": 1})


@pytest.mark.parametrize(
    "body",
    [b"", b"x", b"[]", b"{}", b'{"code": 1}', b'{"code":"nonsense"}', b"[" * 20_000, b"{" * 900],
)
async def test_an_error_that_is_none_is_a_failed_peer(nodes, memory, body):
    anna, bert = nodes
    memory.corrupt = lambda *_: RawResponse(500, {}, [body] if body else [])
    with pytest.raises(PeerError) as error:
        await anna.net.call(bert.id, "test.echo", {})
    assert type(error.value) is PeerError


def test_what_a_peer_writes_is_shown_on_one_line_and_bounded():
    document = json.dumps({"code": "not_found", "detail": "a\x1b[2J\nb" + "c" * 5000, "hint": 7})
    error = error_of(404, document.encode(), "x")
    assert isinstance(error, NotFound)
    assert error.message.startswith("a [2J b")
    assert len(error.message) == 1000
    assert error.hint == ""


@pytest.mark.parametrize(
    ("said", "believed"), [(7, 7), (60, 60), (61, 1), (-1, 1), ("7", 1), (None, 1), (10**30, 1)]
)
def test_a_peer_says_when_to_come_again_within_bounds(said, believed):
    document = json.dumps({"code": "rate_limited", "detail": "busy", "retry_after_s": said})
    assert error_of(429, document.encode(), "x").retry_after_s == believed


def test_an_answer_says_when_to_come_again():
    answer = answer_of(RateLimited("busy", retry_after_s=9))
    assert answer.headers["retry-after"] == "9"
    assert "retry-after" not in answer_of(NotFound("nothing")).headers
    assert answer_of(RateLimited("busy")).headers["retry-after"] == "1"


# Who is not a peer learns nothing


async def test_health_is_open_and_says_nothing_more(nodes):
    _, bert = nodes
    response = await Outsider(bert).send(RawRequest("GET", "/health", {}))
    assert (response.status, json.loads(bytes(response.body[0]))) == (200, {"status": "ok"})


async def test_every_improper_request_of_an_unknown_caller_gets_the_same_answer(nodes):
    anna, bert = nodes
    stranger = Outsider(bert)
    forged = stranger.request()
    forged_headers = dict(forged.headers)
    forged_headers["signature-input"] = forged_headers["signature-input"].replace(
        to_text(stranger.key.node_id), to_text(anna.id)
    )
    old = bert.clock.now_ms() - 10 * REQUEST_WINDOW_MS
    requests = [
        RawRequest("GET", "/", {}),
        RawRequest("POST", "/peer/v1/test.echo", {}, [b"body"]),
        RawRequest("POST", "/health", {}),
        RawRequest("GET", "/health?x", {}),
        RawRequest("GET", "/../etc/passwd", {}),
        stranger.request(),
        stranger.request("test.nothing"),
        stranger.request(network="elsewhere"),
        stranger.request(to=bytes(32)),
        stranger.request(created_ms=old),
        stranger.request("peers.batch"),
        stranger.request("peers.join"),
        stranger.request("peers.join", header={"secret": b"short"}),
        stranger.request("peers.join", header={"secret": bytes(JOIN_BYTES_MAX)}),
        stranger.request("peers.join", head=b"\0\0\0\1x"),
        RawRequest("POST", forged.path, forged_headers, forged.body),
    ]
    answers = [await stranger.send(request) for request in requests]
    assert all(same(answer, answer_of(Unauthorized(UNKNOWN))) for answer in answers)
    assert not bert.calls


async def test_a_blocked_or_removed_peer_is_unknown(nodes):
    anna, bert = nodes
    bert.net.roster.block(anna.id)
    with pytest.raises(Unauthorized, match="bert"):
        await anna.net.call(bert.id, "test.echo", {})
    bert.net.roster.remove(anna.id)
    with pytest.raises(Unauthorized):
        await anna.net.call(bert.id, "test.echo", {})
    assert not bert.calls


async def test_one_stranger_leaves_room_for_others_to_join(memory):
    """As fast as one asks from one place, an invitation from another still works."""
    bert = Node(memory, "bert")
    await bert.net.start()
    flood = Outsider(bert)
    invited = bert.net.invite(HOUR_MS)
    for _ in range(2 * UNKNOWN_AN_ADDRESS_A_SECOND_MAX):
        await flood.send(flood.request("peers.join"))
    anna = Node(memory, "anna")
    await anna.net.start()
    assert await anna.net.join(invited) == bert.id
    await anna.net.stop()
    await bert.net.stop()


async def test_unknown_callers_share_one_small_bucket_and_peers_do_not_feel_it(memory):
    anna = Node(memory, "anna")
    bert = Node(memory, "bert", quota=quota_of(unknown=5))
    await acquainted(anna, bert)
    bert.clock.advance_to(bert.clock.now_ms() + 1_000)
    anna.clock.advance_to(anna.clock.now_ms() + 1_000)
    stranger = Outsider(bert)
    statuses = [(await stranger.send(stranger.request())).status for _ in range(8)]
    assert statuses == [401] * 5 + [429] * 3
    busy = await stranger.send(RawRequest("GET", "/", {}))
    assert busy.headers["retry-after"] == "1"
    await anna.net.call(bert.id, "test.echo", {})


# Known callers are told what is wrong


async def test_a_known_peer_is_told_of_its_skewed_clock(nodes):
    anna, bert = nodes
    anna.clock.advance_to(bert.clock.now_ms() + 90_000)
    with pytest.raises(ClockSkewed, match=r"90\.0 s ahead"):
        await anna.net.call(bert.id, "test.echo", {})
    with pytest.raises(ClockSkewed, match=r"90\.0 s behind"):
        await bert.net.call(anna.id, "test.echo", {})


async def test_a_replayed_request_is_refused(nodes):
    anna, bert = nodes
    wire = Outsider(bert, anna.key)
    request = wire.request()
    assert (await wire.send(request)).status == 200
    assert await wire.error(request) is ReplayRefused
    assert len(bert.calls) == 1


@pytest.mark.parametrize("ahead_ms", [0, 1_500, 59_000])
async def test_a_replay_after_a_restart_is_refused(nodes, ahead_ms):
    anna, bert = nodes
    wire = Outsider(bert, anna.key)
    request = wire.request(created_ms=bert.clock.now_ms() + ahead_ms)
    assert (await wire.send(request)).status == 200
    for down_ms in (1, 700, 3_000):
        bert.clock.advance_to(bert.clock.now_ms() + down_ms)
        await bert.restart()
        assert await wire.error(request) is ReplayRefused
    assert len(bert.calls) == 1


async def test_a_peer_can_call_again_soon_after_a_restart(nodes):
    anna, bert = nodes
    await bert.restart()
    for clock in (anna.clock, bert.clock):
        clock.advance_to(clock.now_ms() + 1)
    await anna.net.call(bert.id, "test.echo", {})


async def test_every_flipped_byte_of_a_signed_request_is_refused(nodes):
    anna, bert = nodes
    bert.net.server.quota = quota_of(rate=10**6, unknown=10**6)
    wire = Outsider(bert, anna.key)
    whole = wire.request(header={"a": "b"}, parts=[part(b"part")])
    for name, value in whole.headers.items():
        for place in range(len(value)):
            other = value[:place] + chr(ord(value[place]) ^ 1) + value[place + 1 :]
            request = RawRequest("POST", whole.path, {**whole.headers, name: other}, whole.body)
            assert (await wire.send(request)).status == 401
    for place in range(len(whole.path)):
        other = whole.path[:place] + chr(ord(whole.path[place]) ^ 1) + whole.path[place + 1 :]
        assert (await wire.send(RawRequest("POST", other, whole.headers, whole.body))).status == 401
    assert not bert.calls


async def test_every_flipped_byte_of_the_body_is_refused(nodes):
    anna, bert = nodes
    wire = Outsider(bert, anna.key)
    size = sum(len(piece) for piece in wire.request(parts=[part(b"part")]).body)
    for place in range(size):
        request = wire.request(parts=[part(b"part")])
        body = bytearray(b"".join(request.body))
        body[place] ^= 1
        error = await wire.error(RawRequest("POST", request.path, request.headers, [body]))
        assert error in (SignatureInvalid, FrameInvalid, TooLarge, ShardMismatch)
    assert not bert.calls


async def test_truncated_and_lengthened_bodies_are_refused(nodes):
    anna, bert = nodes
    wire = Outsider(bert, anna.key)
    whole = b"".join(wire.request(parts=[part(b"part")]).body)
    for body in (b"", whole[:3], whole[:10], whole[:-1], whole + b"\0"):
        request = wire.request(parts=[part(b"part")])
        assert await wire.error(RawRequest("POST", request.path, request.headers, [body])) in (
            SignatureInvalid,
            FrameInvalid,
        )


async def test_parts_must_have_their_roots(nodes):
    anna, bert = nodes
    wire = Outsider(bert, anna.key)
    assert await wire.error(wire.request(parts=[Part(b"a", b"")])) is FrameInvalid
    assert await wire.error(wire.request(parts=[Part(b"a", bytes(32))])) is ShardMismatch
    large = [Part(bytes(300_000), part(bytes(299_999)).root)]
    assert await wire.error(wire.request(parts=large)) is ShardMismatch
    assert not bert.calls


async def test_a_peer_over_its_quota_is_told_and_others_are_not_touched(memory):
    anna, carl = Node(memory, "anna"), Node(memory, "carl")
    bert = Node(memory, "bert", quota=quota_of(rate=5))
    await acquainted(anna, carl, bert)
    for _ in range(5):
        await anna.net.call(bert.id, "test.echo", {})
    with pytest.raises(RateLimited, match="in so short a time"):
        await anna.net.call(bert.id, "test.echo", {})
    await carl.net.call(bert.id, "test.echo", {})


async def test_what_is_synced_and_not_paid_has_a_share_and_others_theirs(memory, monkeypatch):
    monkeypatch.setattr(limits, "SYNCED_A_PEER_BYTES_MAX", 3 * SYNC_BYTES)
    anna, bert, carl = (Node(memory, name) for name in ("anna", "bert", "carl"))
    written = []

    async def head(caller, _header, _parts):
        written.append(caller)
        return {}, []

    bert.net.server.register({"storage.head_put": head})
    await acquainted(anna, bert, carl)
    for _ in range(2):
        await anna.net.call(bert.id, "storage.head_put", {})
    for _ in range(2):
        with pytest.raises(RateLimited) as refused:
            await anna.net.call(bert.id, "storage.head_put", {})
    await carl.net.call(bert.id, "storage.head_put", {})
    await anna.net.call(bert.id, "test.echo", {})
    assert written == [anna.id, anna.id, carl.id]
    bert.clock.advance_to(bert.clock.now_ms() + 1000 * refused.value.retry_after_s)
    await anna.net.call(bert.id, "storage.head_put", {})


async def test_an_answer_counts_until_it_is_written(memory):
    """Whoever does not read gets no more made; others do, and all comes back in the end."""
    size = 1_000
    room = Room(5 * size, 2 * size)
    anna, bert = Node(memory, "anna"), Node(memory, "bert")
    bert.net.server.quota.answers = room
    carl = Node(memory, "carl")
    await acquainted(anna, bert, carl)
    made = []

    async def much(caller, header, parts):
        made.append(caller)
        return {}, [bytes(size - 200)]

    bert.net.server.register({"test.much": much})
    bert.net.server.bound_answers({"test.much": lambda header: size})
    memory.stall("bert", "test.much")
    calls = [asyncio.create_task(anna.net.call(bert.id, "test.much", {})) for _ in range(6)]
    await settle()
    assert made == [anna.id] * 2
    assert 2 * (size - 200) <= room.held(anna.id) <= 2 * size
    # One of the two that wait for their reader is given up, and the next is made.
    calls.pop(0).cancel()
    await settle()
    assert made == [anna.id] * 3
    other = asyncio.create_task(carl.net.call(bert.id, "test.much", {}))
    await settle()
    assert made == [anna.id] * 3 + [carl.id]
    for call in [*calls, other]:
        call.cancel()
    await until(lambda: not bert.net.server.quota.places.held(anna.id))
    assert (room.held(anna.id), room.held(carl.id)) == (0, 0)


async def test_an_answer_for_which_there_is_no_room_is_refused_and_not_kept(memory):
    room = Room(500, 400)
    anna, bert = Node(memory, "anna"), Node(memory, "bert")
    bert.net.server.quota.answers = room
    await acquainted(anna, bert)
    with pytest.raises(RateLimited, match="not read yet"):
        await anna.net.call(bert.id, "test.echo", {}, [part(bytes(500))])
    assert (await anna.net.call(bert.id, "test.echo", {"a": 1})).header == {"a": 1}
    assert room.held(anna.id) == bert.net.server.quota.places.held(anna.id) == 0


async def test_what_a_peer_says_of_its_address_costs_no_synced_write(memory):
    class Noting(MemoryKeyValue):
        def write(self, changes, *, sync):
            synced.append(sync)
            super().write(changes, sync=sync)

    synced: list[bool] = []
    anna, bert = Node(memory, "anna"), Node(memory, "bert", store=Noting())
    await acquainted(anna, bert)
    synced.clear()
    for number in range(1, 9):
        record = AddressRecord(
            name="anna",
            addresses=(f"anna:{number}",),
            fingerprint=None,
            introducible=False,
            seq=2**50 + number,
        )
        raw = sign(record, anna.key, anna.net.network).raw
        bert.net.introductions.learn(anna.id, raw)
    assert bert.net.roster.info(anna.id).addresses == ("anna:8",)
    assert synced == [False] * 8


async def test_requests_at_once_are_bounded(memory):
    anna, bert = Node(memory, "anna"), Node(memory, "bert", quota=quota_of(share=2))
    await acquainted(anna, bert)
    gate = asyncio.Event()

    async def wait(caller, header, parts):
        await gate.wait()
        return {}, ()

    bert.net.server.register({"test.wait": wait})
    calls = [asyncio.create_task(anna.net.call(bert.id, "test.wait", {})) for _ in range(3)]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert [type(call.exception()) for call in done] == [RateLimited]
    gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, RateLimited) for result in results) == 1


# Becoming and ceasing to be peers


async def test_by_an_invitation_both_know_each_other(memory):
    anna, bert = Node(memory, "anna"), Node(memory, "bert")
    await acquainted(anna, bert)
    assert anna.net.roster.info(bert.id).addresses == ("bert:1",)
    assert bert.net.roster.info(anna.id).addresses == ("anna:1",)
    assert anna.changes == [(bert.id, "added")]
    assert bert.changes == [(anna.id, "added")]
    assert (anna.net.peers(), bert.net.peers()) == ([bert.id], [anna.id])


async def test_peers_are_known_after_a_restart(nodes):
    anna, bert = nodes
    for node in nodes:
        await node.restart()
        node.clock.advance_to(node.clock.now_ms() + 1)
    await anna.net.call(bert.id, "test.echo", {})
    assert anna.net.roster.info(bert.id).name == "bert"


async def test_names_are_unique_here(memory):
    anna = Node(memory, "anna")
    others = [Node(memory, name) for name in ("bert", "bert2")]
    for node in others:
        node.net.own_address.name = "bert"
    await acquainted(anna, *others)
    assert sorted(anna.net.roster.info(node.id).name for node in others) == ["bert", "bert-2"]
    assert anna.net.roster.find("bert-2") == others[1].id


async def test_a_peer_can_be_given_a_name(memory):
    anna, bert, carl = (Node(memory, name) for name in ("anna", "bert", "carl"))
    await acquainted(anna, bert)
    await carl.net.start()
    with pytest.raises(ArgumentInvalid):
        await anna.net.join(carl.net.invite(HOUR_MS), "bert")
    await anna.net.join(carl.net.invite(HOUR_MS), "friend")
    assert anna.net.roster.find("friend") == carl.id
    assert carl.net.roster.info(anna.id).name == "anna"


async def test_a_peer_is_found_by_name_id_and_beginning_of_its_id(nodes):
    anna, bert = nodes
    text = to_text(bert.id)
    assert {anna.net.roster.find(it) for it in ("bert", text, text[:10], text[:4])} == {bert.id}
    for nobody in ("ber", text[:3], text + "a", "", to_text(anna.id)):
        with pytest.raises(PeerUnknown):
            anna.net.roster.find(nobody)


async def test_a_removed_peer_is_gone_and_can_be_invited_again(nodes):
    anna, bert = nodes
    wire = Outsider(bert, anna.key)
    before = wire.request()
    assert (await wire.send(before)).status == 200
    bert.net.roster.remove(anna.id)
    with pytest.raises(PeerUnknown):
        bert.net.roster.info(anna.id)
    await anna.net.join(bert.net.invite(HOUR_MS))
    await anna.net.call(bert.id, "test.echo", {})
    assert await wire.error(before) is ReplayRefused
    assert bert.changes == [(anna.id, "added"), (anna.id, "removed"), (anna.id, "added")]
    assert anna.changes == [(bert.id, "added")]


async def test_a_blocked_peer_does_not_come_back_by_an_invitation(nodes):
    anna, bert = nodes
    bert.net.roster.block(anna.id)
    with pytest.raises(PeerBlocked):
        await anna.net.join(bert.net.invite(HOUR_MS))
    assert bert.changes[-1] == (anna.id, "blocked")
    assert (bert.net.peers(), bert.net.roster.all_peers()) == ([], [anna.id])
    await bert.restart()
    assert bert.net.peers() == []


async def test_who_blocked_the_issuer_and_joins_it_after_all_unblocks_it(nodes):
    anna, bert = nodes
    anna.net.roster.block(bert.id)
    await anna.net.join(bert.net.invite(HOUR_MS))
    assert anna.net.peers() == [bert.id]
    assert anna.changes[-1] == (bert.id, "added")


async def test_an_older_address_record_changes_nothing(nodes):
    anna, bert = nodes
    old = bert.net.own_address.record().raw
    bert.name = "bert-moved"
    bert.clock.advance_to(bert.clock.now_ms() + 5)
    await bert.restart()
    for record in (bert.net.own_address.record().raw, old):
        anna.net.introductions.learn(bert.id, record)
    assert anna.net.roster.info(bert.id).addresses == ("bert-moved:1",)


def synced_writes(node: Node) -> list[int]:
    """Count what a node writes with a sync from now on."""
    count = [0]
    write = node.store.write

    def counted(changes, *, sync):
        count[0] += sync
        write(changes, sync=sync)

    node.store.write = counted
    return count


async def test_address_records_without_end_are_not_written_without_end(nodes):
    anna, bert = nodes
    count = synced_writes(anna)
    kept = bert.net.own_address.record().record
    refused = 0
    for number in range(1, 3 * ADDRESSES_A_PEER_MAX):
        moved = kept.model_copy(update={"seq": kept.seq + number})
        signed = sign(moved, bert.key, network_id("test")).raw
        try:
            anna.net.introductions.learn(bert.id, signed)
        except RateLimited:
            refused += 1
    assert count[0] <= ADDRESSES_A_PEER_MAX
    assert refused >= ADDRESSES_A_PEER_MAX
    # Later there is room for more.
    anna.clock.advance_to(anna.clock.now_ms() + ADDRESSES_MS)
    anna.net.introductions.learn(bert.id, signed)
    assert anna.net.roster.info(bert.id).seq == moved.seq


async def test_an_invitation_that_is_used_again_and_again_is_not_written_without_end(nodes):
    anna, bert = nodes
    secret = from_string(anna.net.invite(HOUR_MS)).secret
    wire, count = Outsider(anna, bert.key), synced_writes(anna)
    header = {"secret": secret, "record": bert.net.own_address.record().raw}
    statuses = [
        (await wire.send(wire.request("peers.join", header=header))).status
        for _ in range(3 * ADDRESSES_A_PEER_MAX)
    ]
    assert count[0] <= ADDRESSES_A_PEER_MAX
    assert set(statuses) == {200, 429}


async def test_what_handlers_read_is_charged_to_peers_by_the_table_and_never_to_the_own_node(nodes):
    anna, bert = nodes
    server, now_ms = bert.net.server, bert.clock.monotonic_ms()
    before, _ = server.quota.left(anna.id, now_ms)
    server.charge_read(anna.id, "storage.get", 32 * MIB)
    server.charge_read(anna.id, "storage.keep", MIB)
    assert before - server.quota.left(anna.id, now_ms)[0] == 16 * KIB + 2 * KIB
    for _ in range(29):
        server.charge_read(anna.id, "storage.stat", 64 * MIB)
    with pytest.raises(RateLimited):
        server.charge_read(anna.id, "storage.stat", 64 * MIB)
    for _ in range(100):
        server.charge_read(bert.id, "storage.stat", 64 * MIB)
