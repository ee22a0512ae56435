import asyncio
from dataclasses import dataclass, field

import pytest

from tests.settle import settle
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import (
    ClockSkewed,
    PeerSilent,
    PeerUnknown,
    RateLimited,
    RecordInvalid,
    SignatureInvalid,
)
from xsc.db.memory import MemoryKeyValue
from xsc.health.detector import WINDOWS_TO_ABSENT
from xsc.health.messages import Ping, Pong
from xsc.health.scoring import Scores
from xsc.health.service import PING, PROBE_INTERVAL_MS, RESPONSE_EXPECTED_MS, HealthService
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair, network_id
from xsc.node.tasks import Tasks

NETWORK = network_id("test")


@dataclass(frozen=True, slots=True)
class Answer:
    header: dict[str, Value]
    parts: list[memoryview] = field(default_factory=list)


class Node:
    """One node with a clock of its own and a table of those it can reach."""

    def __init__(self, number: int, *, clock_ahead_ms: int = 0) -> None:
        self.key = KeyPair(bytes([number]) * 32)
        self.id = self.key.node_id
        self.name = f"node {number}"
        self.clock = ManualClock(1_700_000_000_000 + clock_ahead_ms)
        self.store = MemoryKeyValue()
        self.others: list[Node] = []
        self.silent: set[bytes] = set()
        self.takes_ms = 0
        self.forge = None
        self.lines: list[tuple[str, dict[str, object]]] = []
        self.changes: list[tuple[bytes, bool]] = []
        self.asked: list[bytes] = []
        self.health = self.start()

    def start(self) -> HealthService:
        context = Context(
            self.key,
            NETWORK,
            self.clock,
            SeededEntropy(self.key.node_id),
            InlineExecutor(),
            self,
            self,
            self.store,
            None,
        )
        scores = Scores(context, self, recognition_ppm=lambda _: 0, fork=lambda _: None)
        made = HealthService(
            context,
            scores=scores,
            peers=self,
            once=Tasks(self.clock, self).once,
            domain_of=lambda peer: peer,
        )
        made.on_change(lambda peer, up: self.changes.append((peer, up)))
        return made

    def peers(self) -> list[bytes]:
        return [other.id for other in self.others]

    def is_peer(self, node: bytes) -> bool:
        return node in self.peers()

    def info(self, event, **fields):
        self.lines.append((event, fields))

    warning = error = info

    def windows(self, peer):
        """Return how many windows count for and against a peer."""
        tally = self.health.scores.tally(peer, "availability")
        return tuple(round(each * 3_600 / PROBE_INTERVAL_MS / 1_000) for each in tally[:2])

    async def call(self, peer, method, header, parts=(), *, timeout_ms=None):
        if method == PING:
            self.asked.append(peer)
        other = next((other for other in self.others if other.id == peer), None)
        if other is None:
            raise PeerUnknown("no such peer")
        await asyncio.sleep(0)
        if peer in self.silent:
            raise PeerSilent("no answer in time")
        request = decode(encode(header))
        assert isinstance(request, dict)
        answer, _ = await other.health.handlers()[method](self.id, request, ())
        self.clock.advance_to(self.clock.now_ms() + self.takes_ms)
        reply = Answer(answer)
        return reply if self.forge is None else self.forge(reply)


@pytest.fixture
def a():
    return Node(1)


@pytest.fixture
def b(a):
    node = Node(2, clock_ahead_ms=700)
    a.others, node.others = [node], [a]
    return node


async def rounds(node: Node, count: int) -> None:
    """Let the loop of a node run for so many intervals."""
    task = asyncio.create_task(node.health.run())
    for _ in range(count):
        await settle()
        node.clock.advance_to(node.clock.now_ms() + PROBE_INTERVAL_MS)
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_probe_learns_time_skew_and_state(a, b):
    assert (a.health.is_up(b.id), a.health.state(b.id)) == (False, "unknown")
    assert a.health.response_ms(b.id) == RESPONSE_EXPECTED_MS
    a.takes_ms = 40
    result = await a.health.probe(b.id)
    assert (result.available, result.response_ms, result.reason) == (True, 40, "")
    (row,) = a.health.table()
    assert (row.node, row.state, row.response_ms) == (b.id, "up", 40)
    assert (a.windows(b.id), row.availability_ppm) == ((0, 0), 0), "no window counts it"
    assert row.last_seen_ms == a.clock.now_ms()
    assert row.skew_ms == 700 - 20
    assert row.quality_ppm == a.health.quality_ppm(b.id) == 500_000
    assert a.changes == [(b.id, True)]


async def test_this_node_is_always_up_and_answers_at_once(a):
    assert a.health.is_up(a.id)
    assert await a.health.is_there(a.id)
    assert a.health.response_ms(a.id) == 0


async def test_the_mean_time_is_that_of_the_answers(a, b):
    for silent, takes_ms in ((False, 100), (True, 0), (False, 150)):
        a.silent = {b.id} if silent else set()
        a.takes_ms = takes_ms
        await a.health.probe(b.id)
    assert a.health.table()[0].response_ms == a.health.response_ms(b.id) == 125


async def test_down_after_two_misses_and_up_again(a, b):
    await a.health.probe(b.id)
    a.silent = {b.id}
    await a.health.probe(b.id)
    assert (a.health.state(b.id), a.health.is_up(b.id)) == ("suspect", True)
    result = await a.health.probe(b.id)
    assert (result.available, result.reason) == (False, "no answer in time")
    assert (a.health.state(b.id), a.health.is_up(b.id)) == ("down", False)
    a.silent = set()
    await a.health.probe(b.id)
    assert a.changes == [(b.id, True), (b.id, False), (b.id, True)]
    events = [event for event, _ in a.lines]
    assert events == ["health.up", "health.down", "health.up"]


def forged(a, b, changes=None, *, by=None, network=NETWORK):
    def forge(reply):
        pong = open_signed(reply.header["pong"], Pong, network=NETWORK).record
        other = pong.model_copy(update=changes or {})
        return Answer({"v": 1, "pong": sign(other, by or b.key, network).raw})

    return forge


async def test_an_answer_that_does_not_hold_is_a_miss_and_is_logged(a, b):
    stranger = KeyPair(b"s" * 32)
    first = {}

    def replayed(reply):
        first.setdefault("reply", reply)
        return first["reply"]

    a.forge = replayed
    assert (await a.health.probe(b.id)).available
    cases = [
        (replayed, "record_invalid"),
        (forged(a, b, by=stranger), "signature_invalid"),
        (forged(a, b, {"nonce": b"n" * 16}), "record_invalid"),
        (forged(a, b, {"node": a.id}), "record_invalid"),
        (forged(a, b, network=network_id("other")), "record_invalid"),
        (lambda reply: Answer({}), "record_invalid"),
        (lambda reply: Answer({"pong": b"\xff"}), "record_invalid"),
    ]
    for forge, code in cases:
        a.forge, a.lines = forge, []
        assert not (await a.health.probe(b.id)).available
        event, fields = a.lines[0]
        assert (event, fields["code"]) == ("health.answer_refused", code)
    assert a.health.state(b.id) == "down"


async def test_a_peer_that_refuses_each_probe_is_logged_once_until_it_answers(a, b):
    def refuse(reply):
        raise RateLimited("too many")

    for forge, lines in ((refuse, 1), (refuse, 0), (None, 0), (refuse, 1)):
        a.forge, a.lines = forge, []
        await a.health.probe(b.id)
        assert [event for event, _ in a.lines].count("health.answer_refused") == lines


async def test_a_peer_that_refuses_to_answer_is_missed(a, b):
    def limited(reply):
        raise RateLimited("too many")

    def stranger(reply):
        raise PeerUnknown("who are you")

    for forge in (limited, stranger):
        a.forge = forge
        assert not (await a.health.probe(b.id)).available
    assert a.health.state(b.id) == "down"


async def test_who_refuses_a_probe_for_its_time_is_counted(a, b):
    def skewed(reply):
        raise ClockSkewed("the caller's clock is 90.0 s ahead of this node's")

    a.forge = skewed
    assert not (await a.health.probe(b.id)).available
    assert a.health.row(b.id).clock_refused
    a.forge = None
    assert (await a.health.probe(b.id)).available
    assert not a.health.row(b.id).clock_refused


async def test_a_peer_says_whether_it_reaches_who_asks(a, b):
    async def said():
        await a.health.probe(b.id)
        return a.health.row(b.id).reaches_us

    assert await said() is None
    await b.health.probe(a.id)
    assert await said() is True
    b.silent = {a.id}
    await b.health.probe(a.id)
    assert await said() is None, "one miss says nothing yet"
    await b.health.probe(a.id)
    assert await said() is False


async def test_only_pings_of_the_caller_for_this_node_are_answered(a, b):
    def ping(by, node):
        said = Ping(node=node, nonce=b"n" * 16, sent_ms=0)
        return {"v": 1, "ping": sign(said, by, NETWORK).raw}

    handler = b.health.handlers()[PING]
    with pytest.raises(SignatureInvalid):
        await handler(a.id, ping(b.key, b.id), ())
    with pytest.raises(RecordInvalid, match="another node"):
        await handler(a.id, ping(a.key, a.id), ())
    with pytest.raises(RecordInvalid):
        await handler(a.id, {}, ())
    answer, _ = await handler(a.id, ping(a.key, b.id), ())
    pong = open_signed(answer["pong"], Pong, network=NETWORK, author=b.id).record
    assert (pong.nonce, pong.now_ms) == (b"n" * 16, b.clock.now_ms())


async def test_results_survive_a_restart_and_the_state_is_learned_anew(a, b):
    c = Node(3)
    a.others.append(c)
    a.takes_ms = 30
    await a.health.round(a.peers())
    a.silent = {b.id}
    for _ in range(1 + WINDOWS_TO_ABSENT):
        await a.health.round(a.peers())
    before = a.health.row(b.id)
    a.store.close()
    a.store.reopen()
    a.health = a.start()
    after = a.health.row(b.id)
    assert (a.windows(b.id), after.availability_ppm) == ((1, 1), 500_000)
    assert after.last_seen_ms == before.last_seen_ms
    assert (a.health.response_ms(b.id), a.health.is_up(b.id)) == (RESPONSE_EXPECTED_MS, False)
    assert (a.health.state(b.id), a.health.is_absent(b.id)) == ("unknown", False)
    a.silent = set()
    await a.health.round(a.peers())
    assert a.health.is_up(b.id)
    assert a.windows(b.id) == (2, 1)


async def test_who_hears_nobody_counts_no_misses_of_theirs(a, b):
    c = Node(3)
    a.others.append(c)
    await rounds(a, 3)
    before = a.windows(b.id)
    a.silent = {b.id, c.id}
    await rounds(a, 100)
    assert (a.health.state(b.id), a.health.state(c.id)) == ("down", "down")
    assert not a.health.is_absent(b.id)
    assert not a.health.is_absent(c.id)
    assert a.windows(b.id) == before
    assert [event for event, _ in a.lines].count("health.void") == 1
    a.silent = {c.id}
    await rounds(a, 10)
    assert a.health.state(b.id) == "up"
    assert a.health.is_absent(c.id), "one that answers shows that the path is well"
    assert [row.state for row in map(a.health.row, (b.id, c.id))] == ["up", "absent"]
    assert a.windows(c.id) == (before[0], 10 - (WINDOWS_TO_ABSENT - 1))


async def test_silence_counts_only_while_others_answer(a, b):
    assert a.health.is_cut_off(b.id), "nobody was heard yet"
    a.others += [Node(number) for number in (3, 4, 5)]
    c, d, e = (each.id for each in a.others[1:])
    for silent, own in (
        ({b.id}, False),
        ({b.id, c}, False),
        ({b.id, c, d}, True),  # One of four answers: the window is void.
        ({b.id, c, d, e}, True),
        ({b.id}, False),
    ):
        a.silent = silent
        await rounds(a, 1)
        assert a.health.is_cut_off(b.id) == own, silent
    a.clock.advance_to(a.clock.now_ms() + 3 * PROBE_INTERVAL_MS)
    assert a.health.is_cut_off(b.id), "nobody was heard lately"


async def test_with_one_peer_nothing_is_scored(a, b):
    await rounds(a, 3)
    a.silent = {b.id}
    await rounds(a, 10)
    assert (a.health.state(b.id), a.health.is_absent(b.id)) == ("down", False)
    assert a.windows(b.id) == (0, 0)


async def test_who_is_no_peer_is_absent_and_this_node_never(a, b):
    assert a.health.is_absent(b"z" * 32)
    assert not a.health.is_absent(b.id)
    assert not a.health.is_absent(a.id)


async def test_the_loop_probes_every_peer_once_an_interval(a, b):
    c = Node(3)
    a.others.append(c)
    a.silent = {c.id}
    await rounds(a, 5)
    assert (a.asked.count(b.id), a.health.state(b.id)) == (5, "up")
    assert a.health.state(c.id) == "down"
    assert a.changes == [(b.id, True)]


async def test_the_loop_probes_who_is_watched_at_once(a, b):
    task = asyncio.create_task(a.health.run())
    a.health.watch(b.id)
    await settle()
    c = Node(3)
    a.others.append(c)
    a.health.watch(c.id)
    await settle()
    assert a.health.is_up(c.id)
    assert (a.asked.count(b.id), a.asked.count(c.id)) == (1, 1)
    a.health.watch(b.id)
    await settle()
    assert (a.asked.count(b.id), a.asked.count(c.id)) == (2, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_forgotten_leaves_no_trace(a, b):
    await a.health.probe(b.id)
    a.health.forget(b.id)
    assert list(a.store.scan(b"health/")) == []
    assert b.id not in a.health._pongs
    assert a.health.row(b.id).last_seen_ms is None
    probe = asyncio.create_task(a.health.probe(b.id))
    await asyncio.sleep(0)
    a.health.forget(b.id)
    with pytest.raises(PeerUnknown, match="forgotten"):
        await probe
    assert list(a.store.scan(b"health/")) == []
    a.others = []
    with pytest.raises(PeerUnknown):
        await a.health.probe(b.id)
    await a.health.probe_all([b.id])
    assert a.lines[-1][0] == "health.gone"


async def test_many_peers_are_probed_side_by_side(a):
    a.others = [Node(number) for number in range(2, 82)]
    await a.health.probe_all(a.peers())
    assert all(a.health.is_up(peer) for peer in a.peers())
    assert [row.node for row in a.health.table()] == sorted(a.peers())


# Whether somebody is there


async def met(a, count):
    """Let a node know others, and all be up."""
    a.others = [Node(number) for number in range(2, 2 + count)]
    for other in a.others:
        other.others = [a]
        await a.health.probe(other.id)
    a.asked.clear()
    return a.others


async def test_who_misses_both_pings_is_away_until_it_answers_a_probe(a):
    b, c, d = await met(a, 3)
    before = a.health.table()
    a.silent = {b.id, d.id}
    assert not await a.health.is_there(b.id)
    # Those beside it are asked once: of who misses that, a probe decides.
    assert [a.health.is_up(node.id) for node in (b, c, d)] == [False, True, True]
    assert [row.state for row in map(a.health.row, (b.id, c.id, d.id))] == ["away", "up", "up"]
    assert await a.health.is_there(c.id)
    assert a.asked[:2] == [b.id, b.id]
    asked = len(a.asked)
    assert not await a.health.is_there(b.id)
    assert len(a.asked) == asked
    a.silent = set()
    await rounds(a, 1)
    assert [a.health.is_up(node.id) for node in (b, c, d)] == [True, True, True]
    # Only probes are on record, and nobody heard of a change.
    assert [a.windows(row.node)[1] for row in before] == [0, 0, 0]
    assert a.changes == [(node.id, True) for node in (b, c, d)]


async def test_who_answers_one_of_two_pings_is_there(a):
    b, _ = await met(a, 2)
    assert await a.health.is_there(b.id)
    assert a.asked == [b.id]
    lost = iter([True])

    def forge(reply):
        if next(lost, False):
            raise PeerSilent("lost on its way back")
        return reply

    a.forge = forge
    assert await a.health.is_there(b.id)
    assert a.health.is_up(b.id)


async def test_where_nobody_answers_nobody_is_away(a):
    others = await met(a, 3)
    a.silent = {node.id for node in others}
    for node in others:
        assert await a.health.is_there(node.id)
        assert a.health.is_up(node.id)


async def test_who_refuses_a_ping_is_there(a):
    b, _ = await met(a, 2)

    def refuse(_reply):
        raise RateLimited("too many")

    a.forge = refuse
    assert await a.health.is_there(b.id)


async def test_who_is_no_peer_is_not_there(a):
    assert not await a.health.is_there(b"n" * 32)


# The seed's three tests, by their names


async def test_should_test_node_availability(a, b):
    assert (await a.health.probe(b.id)).available is True
    a.silent = {b.id}
    assert (await a.health.probe(b.id)).available is False


async def test_should_record_availability_results(a, b):
    a.others.append(Node(3))
    a.takes_ms = 100
    await a.health.round(a.peers())
    row = a.health.row(b.id)
    assert (row.availability_ppm, row.response_ms) == (1_000_000, 100)


async def test_should_calculate_availability_percentage(a, b):
    a.others.append(Node(3))
    a.takes_ms = 100
    await a.health.round(a.peers())
    a.silent = {b.id}
    for _ in range(1 + WINDOWS_TO_ABSENT):  # Before that a miss is no absence.
        await a.health.round(a.peers())
    a.silent, a.takes_ms = set(), 150
    await a.health.round(a.peers())
    row = a.health.row(b.id)
    assert (row.availability_ppm, row.response_ms) == (666_666, 125)
