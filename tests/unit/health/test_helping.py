"""What peers do for each other's probes: b is the one that is missed, c and d help a."""

import asyncio
from types import SimpleNamespace

import pytest

from tests.settle import settle
from tests.unit.health.test_service import NETWORK, Answer, Node, forged, rounds
from xsc.base.errors import PeerSilent, PeerUnknown, RateLimited, RecordInvalid, SignatureInvalid
from xsc.base.ids import short
from xsc.health.detector import WINDOWS_TO_ABSENT
from xsc.health.helping import (
    CARRIED_A_PEER_MAX,
    CARRIED_MAX,
    MISSED,
    PING,
    PROBE_FOR,
    TOLD_A_PEER_MAX,
    TOLD_MAX,
)
from xsc.health.messages import Ping, Pong
from xsc.health.service import PROBE_INTERVAL_MS
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair, network_id


def circle(count):
    """Return nodes that all know each other and have heard each other."""
    nodes = [Node(number) for number in range(1, 1 + count)]
    for node in nodes:
        node.others = [other for other in nodes if other is not node]
    return nodes


async def met(count):
    nodes = circle(count)
    for node in nodes:
        await node.health.probe_all(node.peers())
        node.lines.clear()
    return nodes


def ping_of(by, node, nonce=b"n" * 16, sent_ms=0):
    said = Ping(node=node, nonce=nonce, sent_ms=sent_ms)
    return {"v": 1, "ping": sign(said, by.key, NETWORK).raw}


async def test_a_pong_that_another_brings_refutes_a_miss():
    a, b, c, d = await met(4)
    a.silent = {b.id}
    for _ in range(WINDOWS_TO_ABSENT + 2):
        await a.health.round(a.peers())
    assert (a.health.state(b.id), a.health.is_absent(b.id)) == ("down", False)
    assert a.windows(b.id)[1] == 0
    c.silent = d.silent = {b.id}
    for window in range(1, WINDOWS_TO_ABSENT + 1):
        await a.health.round(a.peers())
        assert a.health.is_absent(b.id) == (window == WINDOWS_TO_ABSENT)
    assert a.windows(b.id)[1] == 1
    # Absent for long: one that brings its pong is enough.
    c.silent = d.silent = set()
    await a.health.round(a.peers())
    assert a.lines[-1] == ("health.found", {"peer": short(b.id)})
    assert not a.health.is_absent(b.id)
    assert a.windows(b.id)[1] == 1


async def test_an_answer_ends_absence_at_once():
    a, b, c, d = await met(4)
    a.silent = c.silent = d.silent = {b.id}
    # In the first it was only suspect.
    for _ in range(1 + WINDOWS_TO_ABSENT):
        await a.health.round(a.peers())
    assert a.health.is_absent(b.id)
    a.silent = set()
    await a.health.probe(b.id)
    assert (a.health.is_up(b.id), a.health.is_absent(b.id)) == (True, False)


async def test_who_answers_while_others_are_asked_is_not_counted():
    a, b, c, d = await met(4)
    a.silent = c.silent = d.silent = {b.id}
    for _ in range(WINDOWS_TO_ABSENT - 1):
        await a.health.round(a.peers())
    window = asyncio.create_task(a.health.round(a.peers()))
    await asyncio.sleep(0)
    a.silent = set()
    await a.health.probe(b.id)
    await window
    assert (a.health.is_absent(b.id), a.windows(b.id)[1]) == (False, 0)


async def test_no_pong_but_that_of_the_target_over_the_own_nonce_refutes():
    """Forged, replayed, late, over another nonce, of another node, for another network."""
    a, b, c = await met(3)
    assert await a.health.helping.find(b.id, 3)
    kept = []

    def keep(reply):
        kept.append(reply)
        return reply

    a.forge = keep
    assert await a.health.helping.find(b.id, 3)
    by_helper, _ = await c.health.handlers()[PING](a.id, ping_of(a, c.id), ())
    for forge in (
        lambda reply: kept[0],
        lambda reply: Answer(by_helper),
        forged(a, b, by=c.key),
        forged(a, b, by=KeyPair(b"s" * 32)),
        forged(a, b, {"nonce": b"n" * 16}),
        forged(a, b, {"node": c.id}),
        forged(a, b, network=network_id("other")),
        lambda reply: Answer({"v": 1, "pong": None}),
        lambda reply: Answer({"v": 1, "pong": True}),
        lambda reply: Answer({"v": 1, "pong": b"\xff"}),
        lambda reply: Answer({}),
    ):
        a.forge = forge
        assert not await a.health.helping.find(b.id, 3)


async def test_a_helper_carries_the_ping_of_its_caller_for_another_peer_once():
    a, b, c = await met(3)
    carry = c.health.handlers()[PROBE_FOR]
    stranger = SimpleNamespace(key=KeyPair(b"s" * 32))
    c.asked.clear()
    for header, refusal in (
        (ping_of(b, a.id), SignatureInvalid),
        (ping_of(stranger, b.id), SignatureInvalid),
        (ping_of(a, b"z" * 32), PeerUnknown),
        (ping_of(a, c.id), PeerUnknown),
        (ping_of(a, a.id), PeerUnknown),
        ({"v": 1, "ping": b"\xff"}, RecordInvalid),
        ({}, RecordInvalid),
    ):
        with pytest.raises(refusal):
            await carry(a.id, header, ())
    assert c.asked == []
    answer, _ = await carry(a.id, ping_of(a, b.id), ())
    pong = open_signed(answer["pong"], Pong, network=NETWORK, author=b.id).record
    assert pong.nonce == b"n" * 16
    assert c.asked == [b.id]
    # What is no pong of the target goes no further, and the caller was not refused by the helper.
    for forge in (forged(a, b, by=c.key), lambda reply: Answer({})):
        c.forge = forge
        with pytest.raises(PeerSilent):
            await carry(a.id, ping_of(a, b.id), ())


async def test_pings_carried_are_bounded_for_each_peer_and_for_all():
    nodes = await met(3 + CARRIED_MAX // CARRIED_A_PEER_MAX)
    c, b, *askers = nodes
    carry = c.health.handlers()[PROBE_FOR]
    c.asked.clear()

    async def ask(asker):
        try:
            await carry(asker.id, ping_of(asker, b.id), ())
        except RateLimited:
            return False
        return True

    first = [await ask(askers[0]) for _ in range(3 * CARRIED_A_PEER_MAX)]
    assert sum(first) == CARRIED_A_PEER_MAX
    assert await ask(askers[1])
    for asker in askers[1:]:
        for _ in range(2 * CARRIED_A_PEER_MAX):
            await ask(asker)
    assert len(c.asked) <= CARRIED_MAX
    c.clock.advance_to(c.clock.now_ms() + PROBE_INTERVAL_MS)
    assert await ask(askers[0])


async def test_who_is_told_of_a_miss_probes_by_itself_and_passes_on_what_it_missed_itself():
    a, b, c, d = await met(4)
    told = c.health.handlers()[MISSED]
    for node in (a, c, d):
        node.asked.clear()
    task = asyncio.create_task(c.health.run())
    await told(a.id, {"v": 1, "node": b.id}, ())
    await settle()
    assert (c.asked, d.asked) == ([b.id], [])
    assert c.health.state(b.id) == "up"
    c.clock.advance_to(c.clock.now_ms() + PROBE_INTERVAL_MS)
    await settle()
    c.asked.clear()
    c.silent = {b.id}
    heard = asyncio.create_task(d.health.run())
    await told(a.id, {"v": 1, "node": b.id}, ())
    await settle()
    assert c.asked == [b.id]
    assert c.health.state(b.id) == "suspect"
    # It tells a and d, of which d probes and does not miss it: there it ends.
    assert d.asked.count(b.id) == 1
    assert d.health.state(b.id) == "up"
    for each in (task, heard):
        each.cancel()
    assert c.windows(b.id)[1] == 0


async def test_a_peer_that_accuses_all_causes_few_probes_and_moves_no_score():
    nodes = await met(3 * TOLD_MAX)
    c, *others = nodes
    told = c.health.handlers()[MISSED]
    c.asked.clear()
    task = asyncio.create_task(c.health.run())
    scores = [(c.windows(row.node), row.state) for row in c.health.table()]
    for accuser in others[: 2 * TOLD_MAX]:
        for other in others:
            for _ in range(2):
                try:
                    await told(accuser.id, {"v": 1, "node": other.id}, ())
                except RateLimited:
                    continue
        if accuser is others[0]:
            await settle()
            assert len(c.asked) == TOLD_A_PEER_MAX
    await settle()
    assert len(c.asked) == len(set(c.asked)) == TOLD_MAX
    assert [(c.windows(row.node), row.state) for row in c.health.table()] == scores
    task.cancel()


async def test_nonsense_about_misses_is_refused_and_unknown_names_cause_nothing():
    a, _, c = await met(3)
    told = c.health.handlers()[MISSED]
    task = asyncio.create_task(c.health.run())
    c.asked.clear()
    for header in ({}, {"node": b"short"}, {"node": 7}):
        with pytest.raises(RecordInvalid):
            await told(a.id, header, ())
    for node in (b"z" * 32, c.id):
        await told(a.id, {"v": 1, "node": node}, ())
    await settle()
    assert c.asked == []
    task.cancel()


async def test_a_ping_from_the_far_future_is_answered_and_moves_nothing():
    a, b = await met(2)
    before = b.health.table()
    answer, _ = await b.health.handlers()[PING](a.id, ping_of(a, b.id, sent_ms=2**53 - 1), ())
    pong = open_signed(answer["pong"], Pong, network=NETWORK, author=b.id).record
    assert pong.now_ms == b.clock.now_ms()
    assert b.health.table() == before


async def test_a_clock_that_jumps_takes_nobody_down():
    a, _, _ = await met(3)
    await rounds(a, 3)
    for jump_ms in (10**12, -(10**12)):
        now_ms = a.clock.now_ms

        a.clock.now_ms = lambda now_ms=now_ms, jump_ms=jump_ms: now_ms() + jump_ms
        await a.health.round(a.peers())
        assert all((row.state, a.windows(row.node)[1]) == ("up", 0) for row in a.health.table())
        del a.clock.now_ms


async def test_who_pings_and_counts_as_down_is_probed_at_once():
    a, b = await met(2)
    b.silent = {a.id}
    await b.health.probe(a.id)
    await b.health.probe(a.id)
    assert b.health.state(a.id) == "down"
    b.silent = set()
    task = asyncio.create_task(b.health.run())
    await settle()
    b.asked.clear()
    await a.health.probe(b.id)
    await settle()
    assert (b.asked, b.health.is_up(a.id)) == ([a.id], True)
    task.cancel()
