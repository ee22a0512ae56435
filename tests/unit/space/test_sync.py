"""Subscriptions between real nodes on a memory network."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.settle import settle
from tests.unit.net.nodes import Node, acquainted
from xsc.base.clock import ManualClock
from xsc.base.encoding import encode
from xsc.base.errors import (
    ClockSkewed,
    NotFound,
    PeerSilent,
    RateLimited,
    RecordInvalid,
    SpaceExhausted,
    XscError,
)
from xsc.base.limits import PEER_REQUESTS_A_SECOND_MAX, REQUEST_UNITS, SOUGHT_MAX
from xsc.base.log import SilentLog
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.net.transport.memory import MemoryNetwork
from xsc.space import sync as syncs
from xsc.space import table as tables
from xsc.space.asking import body_of
from xsc.space.itc import event_bytes
from xsc.space.limits import (
    ANSWER_BYTES_MAX,
    CHECKED_BYTES_A_RECORD,
    CURSORS_MAX,
    FUTURE_MS_MAX,
    HEAD_INTERVAL_MS,
    HELD_REQUEST_MS_MAX,
    PAGE_BYTES,
    PAGE_RECORDS,
    PROOF_ROWS_A_RECORD,
    RECORD_UNITS,
    RETRY_MS,
    RETRY_MS_MAX,
    UNSUBSCRIBED_KEPT_MS,
    VALUE_INLINE_BYTES_MAX,
)
from xsc.space.messages import (
    Answer,
    Cursor,
    Listed,
    Question,
    Sent,
    SentHead,
)
from xsc.space.paths import UserSpacePaths, section_of
from xsc.space.record import Change, SpaceHead, SpaceRecord, value_digest
from xsc.space.store import SpaceStore
from xsc.space.sync import SpaceSync, relays_of

A = section_of("a")
PEER_UNITS = PEER_REQUESTS_A_SECOND_MAX * REQUEST_UNITS
RECORD_UNITS_OF_50 = PEER_UNITS // 50
"""So dear that one peer has fifty records a second."""


def answer_bytes(records, heads=(), *, more=False):
    return Answer(records=tuple(records), heads=tuple(heads), more=more).to_bytes()


def answer_in(body):
    return Answer.from_bytes(bytes(body), size_max=ANSWER_BYTES_MAX)


class WatchedLog(SilentLog):
    """Keeps the warnings, and the names of other events."""

    def __init__(self):
        self.warnings = []
        self.events = []

    def info(self, event, **fields):
        self.events.append(event)

    def warning(self, event, **fields):
        self.warnings.append((event, fields))


class Member:
    """A node of the network with a space."""

    def __init__(self, node):
        self.node = node
        self.id = node.id
        self.db = MemoryKeyValue()
        self.received = []
        self.blamed = []
        self.log = WatchedLog()
        self.cut = set()
        self.tasks = {}
        self.begin()

    def begin(self):
        self.wanted = set()
        self.store = SpaceStore(self.db, self.node.net.context)
        self.space = self.store
        self.sync = SpaceSync(
            self.store,
            replace(self.node.net.context, caller=self, log=self.log),
            spend=self.node.net.server.charge_work,
            blame=lambda *told: self.blamed.append(told),
        )
        handlers = self.sync.answering.handlers()
        if not hasattr(self, "handlers"):
            self.node.net.server.register({name: self.handle(name) for name in handlers})
        self.handlers = handlers

    def handle(self, name):
        async def handler(caller, header, parts):
            if caller in self.cut:
                raise PeerSilent("the wire is cut")
            return await self.handlers[name](caller, header, parts)

        return handler

    async def call(self, peer, method, header, parts=(), *, timeout_ms=None):
        if peer in self.cut:
            raise PeerSilent("the wire is cut")
        reply = await self.node.net.call(peer, method, header, parts, timeout_ms=timeout_ms)
        if method in {"space.next", "space.records"}:
            answer = answer_in(reply.parts[0])
            self.received.extend((peer, sent.raw) for sent in answer.records)
        return reply

    def subscribe(self, owner, prefix):
        self.wanted.add((owner, prefix))
        self.sync.subscribe(self.wanted)

    def unsubscribe(self, owner, prefix):
        self.wanted.discard((owner, prefix))
        self.sync.subscribe(self.wanted)

    def follow(self, *others):
        for other in others:
            self.tasks[other.id] = asyncio.create_task(self.sync.follow(other.id))

    async def leave(self):
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()

    def has(self, owner, path):
        try:
            return self.space.get(path, owner.id).value
        except NotFound:
            return None

    async def head(self):
        await self.store.sign_head()
        self.sync.answering.news(self.id)
        await settle()


class Circle:
    def __init__(self, clock, members):
        self.clock = clock
        self.members = members

    async def pass_ms(self, duration_ms):
        await settle()
        self.clock.advance_to(self.clock.now_ms() + duration_ms)
        await settle()


@pytest.fixture
async def circle():
    clock = ManualClock()
    network = MemoryNetwork(clock)
    nodes = [Node(network, name, clock=clock) for name in ("ada", "bea", "cid", "dan")]
    await acquainted(*nodes)
    circle = Circle(clock, [Member(node) for node in nodes])
    yield circle
    for member in circle.members:
        await member.leave()
        await member.node.net.stop()


async def test_what_is_put_is_told_at_once_and_without_a_clock(circle):
    ada, bea, *_ = circle.members
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    watch = bea.space.watch("a", ada.id)
    for value in (b"1", b"2"):
        await ada.space.put("a/x", value)
        await settle()
        assert (await watch.next()).value == value
    assert bea.blamed == []


async def test_what_nobody_subscribes_to_is_never_fetched(circle):
    ada, bea, *_ = circle.members
    await ada.space.put("a/x", b"1")
    await ada.space.put("ab", b"2")
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await ada.head()
    assert bea.has(ada, "a/x") == b"1"
    assert bea.has(ada, "ab") is None
    assert len(bea.received) == 1
    assert await bea.store.cursor(ada.id, "a") == 3


async def test_a_deeper_subscription_takes_its_section_whole(circle):
    """Else nobody could say whether a replica hides something below the prefix."""
    ada, bea, *_ = circle.members
    await ada.store.put_all({"a/x/y": b"1", "a/z": b"2", "b": b"3"})
    bea.subscribe(ada.id, "a/x")
    bea.follow(ada)
    await ada.head()
    assert {record.path for record in bea.space.ls("", ada.id)} == {"a/x/y", "a/z"}
    assert await bea.store.cursor(ada.id, "a/x") == await ada.store.cursor(ada.id, "")


async def test_a_change_wakes_only_who_asked_for_its_path(circle, monkeypatch):
    """A node has a request of each peer, and most of what it writes concerns few of them."""
    ada, bea, cid, _ = circle.members
    for member, prefix in ((bea, "a"), (cid, "b")):
        member.subscribe(ada.id, prefix)
        member.follow(ada)
    await ada.head()
    looked = []
    page = ada.store.page

    async def noted(owner, section, *args, **kwargs):
        looked.append(section)
        return await page(owner, section, *args, **kwargs)

    monkeypatch.setattr(ada.store, "page", noted)
    await ada.space.put("a/x", b"1")
    await settle()
    assert bea.has(ada, "a/x") == b"1"
    assert set(looked) == {A}


async def test_a_peer_that_is_silent_is_logged_once_and_once_when_it_is_back(circle):
    ada, bea, *_ = circle.members
    bea.subscribe(ada.id, "a")
    bea.cut.add(ada.id)
    bea.follow(ada)
    for _ in range(5):
        await circle.pass_ms(RETRY_MS)
    assert bea.log.events == ["space.not_followed"]
    bea.cut.clear()
    await circle.pass_ms(RETRY_MS)
    for _ in range(3):
        await circle.pass_ms(HELD_REQUEST_MS_MAX)
    assert bea.log.events[1:] == ["space.followed_again"]


async def test_unsubscribing_ends_the_traffic(circle):
    ada, bea, *_ = circle.members
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await ada.space.put("a", b"1")
    await settle()
    bea.unsubscribe(ada.id, "a")
    await settle()
    received = len(bea.received)
    await ada.space.put("a", b"2")
    await ada.head()
    assert bea.has(ada, "a") == b"1"
    assert len(bea.received) == received
    bea.subscribe(ada.id, "a")
    await settle()
    assert bea.has(ada, "a") == b"2"


async def test_who_comes_back_fetches_exactly_what_is_missing(circle):
    ada, bea, *_ = circle.members
    await ada.store.put_all({f"a/p{number}": b"old" for number in range(300)})
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await ada.head()
    assert len(bea.received) == 300
    await bea.leave()
    await ada.store.put_all({f"a/p{number}": b"new" for number in range(100)})
    await ada.space.rm("a/p200")
    await ada.head()
    bea.received.clear()
    bea.begin()
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    assert len(bea.received) == 101
    assert len(bea.space.ls("a", ada.id)) == 299
    assert await bea.store.cursor(ada.id, "a") == 402


async def test_an_answer_with_more_records_than_fit_comes_in_several(circle, monkeypatch):
    monkeypatch.setattr(syncs.limits, "PAGE_RECORDS", 7)
    ada, bea, *_ = circle.members
    await ada.store.put_all({f"a/p{number}": b"" for number in range(30)})
    bea.subscribe(ada.id, "")
    bea.follow(ada)
    await ada.head()
    assert len(bea.space.ls("a", ada.id)) == 30
    assert await bea.store.cursor(ada.id, "") == 31
    assert len(bea.received) == 31


async def test_an_answer_for_many_subscriptions_has_no_more_records_than_for_one(
    circle, monkeypatch
):
    monkeypatch.setattr(syncs.limits, "PAGE_RECORDS", 7)
    ada, bea, *_ = circle.members
    await ada.store.put_all({f"a{number}/{of}": b"" for number in range(6) for of in range(3)})
    for number in range(6):
        bea.subscribe(ada.id, f"a{number}")
    answers = []
    honest = ada.handlers["space.next"]

    async def counted(caller, header, parts):
        said, bodies = await honest(caller, header, parts)
        answers.append(len(answer_in(bodies[0]).records))
        return said, bodies

    ada.handlers["space.next"] = counted
    bea.follow(ada)
    await ada.head()
    assert max(answers) == 7
    assert len(bea.space.ls("", ada.id)) == 18
    assert [await bea.store.cursor(ada.id, f"a{number}") for number in range(6)] == [19] * 6


async def test_others_have_a_turn_while_an_answer_is_verified(circle):
    ada, bea, *_ = circle.members
    await ada.store.put_all({f"a/{number}": b"" for number in range(200)})
    page = await ada.store.page(ada.id, A, 0, count=200, size_bytes=2**20)
    records = [Sent(ada.id, entry.signed.raw, entry.value) for entry in page.entries]
    opened = before = longest = 0
    verify = bea.sync.asking.opened

    def counted(sent, owner):
        nonlocal opened
        opened += len(sent.raw)
        return verify(sent, owner)

    bea.sync.asking.opened = counted
    storing = asyncio.create_task(bea.sync._store_records(ada.id, records, {(ada.id, A)}))
    while opened < sum(len(sent.raw) for sent in records):
        await asyncio.sleep(0)
        longest, before = max(longest, opened - before), opened
    assert (await storing)[0] == 200
    assert longest <= 2 * syncs.VERIFIED_BYTES_AT_ONCE


async def test_a_request_is_answered_with_nothing_when_its_time_is_over(circle):
    ada, bea, *_ = circle.members
    asked = asyncio.create_task(
        bea.node.net.call(
            ada.id, "space.next", {"cursors": [], "wait": True}, timeout_ms=10 * HELD_REQUEST_MS_MAX
        )
    )
    await circle.pass_ms(HELD_REQUEST_MS_MAX - 1)
    assert not asked.done()
    await circle.pass_ms(1)
    reply = await asked
    assert bytes(reply.parts[0]) == answer_bytes([])
    assert ada.sync.answering._held == {}


async def test_a_second_request_of_one_peer_ends_its_first(circle):
    ada, bea, *_ = circle.members
    first, second = (
        asyncio.create_task(bea.node.net.call(ada.id, "space.next", {"cursors": [], "wait": True}))
        for _ in range(2)
    )
    await settle()
    assert first.done()
    assert not second.done()
    assert len(ada.sync.answering._held) == 1
    second.cancel()


async def test_what_is_no_longer_subscribed_to_goes_after_a_day(circle):
    ada, bea, *_ = circle.members
    await ada.space.put("a/x", b"1")
    await ada.space.put("b", b"2")
    for prefix in ("a", "b"):
        bea.subscribe(ada.id, prefix)
    bea.follow(ada)
    await ada.head()
    await bea.leave()
    bea.unsubscribe(ada.id, "a")
    bea.unsubscribe(ada.id, "a")
    circle.clock.advance_to(circle.clock.now_ms() + UNSUBSCRIBED_KEPT_MS)
    await bea.sync.evict()
    assert bea.has(ada, "a/x") == b"1"
    circle.clock.advance_to(circle.clock.now_ms() + UNSUBSCRIBED_KEPT_MS - 1)
    await bea.sync.evict()
    assert bea.has(ada, "a/x") == b"1"
    circle.clock.advance_to(circle.clock.now_ms() + 1)
    await bea.sync.evict()
    assert bea.has(ada, "a/x") is None
    assert bea.has(ada, "b") == b"2"
    assert await bea.store.cursor(ada.id, "a") == 0
    assert await bea.store.cursor(ada.id, "b") == 3


async def test_a_tombstone_goes_once_all_known_subscribers_have_passed_it(circle):
    ada, bea, cid, _ = circle.members
    await ada.space.put("a/x", b"1")
    for member in (bea, cid):
        member.subscribe(ada.id, "a")
        member.follow(ada)
        ada.follow(member)
    await ada.head()
    await cid.leave()
    await ada.space.rm("a/x")
    await ada.head()
    assert cid.has(ada, "a/x") == b"1"
    await ada.space.compact()
    assert "a/x" in (await ada.store._table(ada.id)).rows
    cid.follow(ada)
    await settle()
    assert cid.has(ada, "a/x") is None
    await ada.space.compact()
    assert "a/x" not in (await ada.store._table(ada.id)).rows
    await ada.leave()
    assert ada.store.asked == {}  # peers that it follows no longer hold nothing up


async def test_who_has_passed_a_record_was_told_of_it(circle):
    ada, bea, cid, _ = circle.members
    bea.subscribe(ada.id, "nodes")
    cid.subscribe(ada.id, "a")
    for member in (bea, cid):
        member.follow(ada)
    await ada.space.put("nodes/x", b"1")
    await settle()
    assert ada.store.told("nodes/x") == {bea.id}
    bea.cut.add(ada.id)
    await ada.space.put("nodes/x", b"2")
    await settle()
    assert ada.store.told("nodes/x") == set(), "it has it, and could not say so"
    await ada.space.rm("nodes/x")
    with pytest.raises(NotFound):
        ada.store.told("nodes/x")


async def test_a_head_is_signed_at_the_start_and_in_time(circle):
    ada, *_ = circle.members
    await ada.space.put("a", b"1")
    running = asyncio.create_task(ada.sync.answering.run())
    await settle()
    assert await ada.store.cursor(ada.id, "") == 2
    await ada.space.put("a", b"2")
    await settle()
    assert await ada.store.cursor(ada.id, "") == 2
    await circle.pass_ms(HEAD_INTERVAL_MS)
    assert await ada.store.cursor(ada.id, "") == 3
    page = await ada.store.page(ada.id, "nodes", 0, count=9, size_bytes=2**20)
    assert page.shown.head.record.written_ms == circle.clock.now_ms()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# Relays


async def test_replicas_of_an_owner_that_forks_agree_on_what_its_head_is_over(circle):
    """Bea has the record that Ada's node has, Cid another one that Ada signed, and a smaller id."""
    ada, bea, cid, dan = circle.members
    await ada.space.put("a", b"1")
    mine = ada.space.get("a").signed
    for number in range(100):
        fork = mine.record.model_copy(update={"written_ms": mine.record.written_ms - number})
        other = sign(fork, ada.node.key, ada.node.net.network)
        if other.id < mine.id:
            break
    for member in (bea, cid, dan):
        member.subscribe(ada.id, "a")
    await cid.space.take(ada.id, [(other, b"1")])
    await ada.store.sign_head()
    bea.follow(ada)
    cid.follow(ada)
    dan.follow(cid)
    await settle()
    await bea.space.take(ada.id, [(other, b"1")])
    for member in (bea, cid, dan):
        assert member.space.get("a", ada.id).signed.id == mine.id
        assert await member.store.cursor(ada.id, "a") == 2
        assert member.blamed == []


async def test_two_that_cannot_reach_each_other_converge_through_a_third(circle):
    ada, bea, cid, _ = circle.members
    ada.cut, bea.cut = {bea.id}, {ada.id}
    for member in (bea, cid):
        member.subscribe(ada.id, "a")
        member.follow(ada, cid if member is bea else bea)
    await ada.space.put("a/x", b"1")
    await ada.head()
    assert bea.has(ada, "a/x") == b"1"
    assert {peer for peer, _ in bea.received} == {cid.id}
    assert await bea.store.cursor(ada.id, "a") == 2
    await ada.space.rm("a/x")
    await ada.head()
    assert bea.has(ada, "a/x") is None
    assert bea.blamed == cid.blamed == []


async def test_a_replica_that_hides_records_holds_the_cursor_back_and_another_is_asked(circle):
    ada, bea, cid, dan = circle.members
    relays = (cid, dan)
    for relay in relays:
        relay.subscribe(ada.id, "a")
        relay.follow(ada)
    await ada.store.put_all({f"a/p{number}": b"" for number in range(157)})
    await ada.head()
    liar = next(
        relay for relay in relays if relay.id == relays_of(ada.id, [cid.id, dan.id], set())[0]
    )
    page, listing = liar.store.page, liar.store.listing

    async def hiding(*args, **options):
        whole = await page(*args, **options)
        return syncs_page(whole)

    def syncs_page(whole):
        return whole._replace(entries=whole.entries[:100], more=False)

    async def lying(owner, section):
        head, rows = await listing(owner, section)
        return head, rows[:100]

    liar.store.page, liar.store.listing = hiding, lying
    bea.cut, ada.cut = {ada.id}, {bea.id}
    bea.subscribe(ada.id, "a")
    bea.follow(liar)
    await settle()
    assert await bea.store.cursor(ada.id, "a") == 0
    assert [type(fault) for _, fault in bea.blamed] == [RecordInvalid]
    bea.follow(*(relay for relay in relays if relay is not liar))
    await circle.pass_ms(RETRY_MS)
    assert len(bea.space.ls("a", ada.id)) == 157
    assert await bea.store.cursor(ada.id, "a") == 158


async def test_who_lacks_tombstones_is_repaired_from_a_listing(circle):
    ada, bea, *_ = circle.members
    await ada.store.put_all({"a/x": b"1", "a/y": b"2", "a/z": b"3"})
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    await bea.leave()  # before any head
    await ada.store.put_all({"a/x": None})
    await ada.store.sign_head()
    ada.store.asked[b""] = [Cursor(ada.id, "nodes", 99, 0, 0)]
    await ada.store.compact()
    bea.begin()
    watch = bea.space.watch("a/x", ada.id)
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    assert {record.path for record in bea.space.ls("a", ada.id)} == {"a/y", "a/z"}
    assert await watch.next() == Change(ada.id, "a/x", 5, None)
    assert await bea.store.cursor(ada.id, "a") == 5
    assert bea.blamed == []


async def test_heads_are_the_sign_of_life(circle):
    ada, bea, *_ = circle.members
    bea.subscribe(ada.id, "nodes")
    bea.follow(ada)
    running = asyncio.create_task(ada.sync.answering.run())
    for _ in range(3):
        await settle()
        assert bea.sync.asking.seen_ms[ada.id] == circle.clock.now_ms()
        for _ in range(6):
            await circle.pass_ms(HEAD_INTERVAL_MS // 6)
    running.cancel()
    assert bea.received == []


def test_relays_are_ranked_and_those_that_failed_are_left_out():
    peers = [bytes([number]) * 32 for number in range(6)]
    owner = peers[0]
    first = relays_of(owner, peers, set())
    assert len(first) == syncs.limits.RELAYS_MAX
    assert owner not in first
    assert relays_of(owner, peers[::-1], set()) == first
    assert not set(relays_of(owner, peers, set(first))) & set(first)
    assert relays_of(owner, peers, set(peers)) == first


# Values


async def test_large_values_are_fetched_when_they_are_read(circle):
    ada, bea, cid, _ = circle.members
    large = bytes(VALUE_INLINE_BYTES_MAX + 1)
    await ada.space.put("a", large)
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    assert bea.has(ada, "a") is None
    assert await bea.sync.asking.load(ada.id, ada.id, "a") == large
    assert bea.has(ada, "a") == large
    assert await bea.sync.asking.load(cid.id, ada.id, "a") == large  # it is here now
    with pytest.raises(NotFound):
        await bea.sync.asking.load(ada.id, ada.id, "b")


async def test_large_values_that_a_schema_checks_come_with_their_records(circle):
    """Also through a replica; one that breaks the schema is not stored."""
    ada, bea, cid, _ = circle.members
    large = bytes(VALUE_INLINE_BYTES_MAX + 1)
    for member in (bea, cid):
        member.space.register_schema("a/*", refuses_ones)
        member.subscribe(ada.id, "a")
    await ada.space.put("a/x", large)
    await ada.space.put("b", large)
    cid.cut = {ada.id}
    bea.follow(ada)
    cid.follow(ada, bea)
    watch = cid.space.watch("a", ada.id)
    await settle()
    assert bea.has(ada, "a/x") == cid.has(ada, "a/x") == large
    assert (await watch.next()).value == large
    await ada.space.put("a/x", b"1" * len(large))
    await settle()
    assert [peer for peer, _ in bea.blamed] == [ada.id]
    assert bea.has(ada, "a/x") == cid.has(ada, "a/x") == large
    assert cid.blamed == []


async def test_a_large_value_that_is_replaced_while_it_is_fetched_costs_nothing(circle):
    ada, bea, *_ = circle.members
    large = bytes(VALUE_INLINE_BYTES_MAX + 1)
    bea.space.register_schema("a/*", refuses_ones)
    bea.subscribe(ada.id, "a")
    answer = ada.handlers["space.records"]

    async def replaced(caller, header, parts):
        if ada.has(ada, "a/x") == large:
            await ada.space.put("a/x", b"2")
        return await answer(caller, header, parts)

    ada.handlers["space.records"] = replaced
    await ada.space.put("a/x", large)
    bea.follow(ada)
    await ada.head()
    await circle.pass_ms(RETRY_MS)
    assert bea.has(ada, "a/x") == b"2"
    assert bea.blamed == []
    assert await bea.store.cursor(ada.id, "a") == await ada.store.cursor(ada.id, "")


def refuses_ones(owner, value):
    if value.startswith(b"1"):
        raise RecordInvalid("a one")


# Recovery


async def test_a_node_that_lost_its_disk_goes_on_above_what_its_peers_have(circle):
    ada, bea, cid, _ = circle.members
    large = bytes(VALUE_INLINE_BYTES_MAX + 1)
    await ada.store.put_all({"a/x": b"1", "a/large": large, "b": b"2"})
    await ada.store.put_all({"a/x": b"3", "b": None})
    for member, prefix in ((bea, "a"), (cid, "b")):
        member.subscribe(ada.id, prefix)
        member.follow(ada)
    await ada.head()
    await bea.sync.asking.load(ada.id, ada.id, "a/large")
    await ada.store.put_all({"b": b"4"})
    ada.sync.answering.news(ada.id)
    await settle()
    last = (await cid.store.page(ada.id, section_of("b"), 0, count=9, size_bytes=99)).entries[-1]
    for member in (bea, cid):
        await member.leave()
    ada.db = MemoryKeyValue()
    ada.begin()
    for member in (bea, cid):
        await ada.sync.recover(member.id)
    assert {path: ada.has(ada, path) for path in ("a/x", "a/large", "b")} == {
        "a/x": b"3",
        "a/large": large,
        "b": b"4",
    }
    made = await ada.store.put_all({"c": b""})
    assert min(made.values()) > last.signed.record.sequence
    for member in (bea, cid):
        member.follow(ada)
    await ada.head()
    assert bea.blamed == cid.blamed == []
    assert await bea.store.cursor(ada.id, "a") == max(made.values())


async def test_a_head_of_a_part_shows_sequences_of_the_rest(circle):
    """A peer that has only `a` knows by the head that more was written elsewhere."""
    ada, bea, *_ = circle.members
    await ada.store.put_all({"a": b"1"})
    await ada.store.put_all({"b": b"2"})
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await ada.head()
    ada.db = MemoryKeyValue()
    ada.begin()
    await ada.sync.recover(bea.id)
    await ada.head()
    assert min((await ada.store.put_all({"c": b""})).values()) == 5


async def test_a_record_that_its_owner_had_deleted_is_not_recovered(circle):
    """A replica that was away shows it; another one proves by a newer head that it is gone."""
    ada, bea, cid, dan = circle.members
    await ada.store.put_all({"a/x": b"1", "a/y": b"2", "b": b"3"})
    for member in (bea, cid):
        member.subscribe(ada.id, "a")
        member.follow(ada)
    dan.subscribe(ada.id, "")
    dan.follow(ada)
    await ada.head()
    for member in (cid, dan):
        await member.leave()
    await ada.space.rm("a/x")
    await ada.head()
    for member in (ada, bea):
        member.store.asked[b""] = [Cursor(ada.id, "nodes", 2**60, 0, 0)]
        await member.store.compact()  # the tombstone goes everywhere
    await bea.leave()
    for order in ((bea, cid, dan), (dan, cid, bea)):
        ada.db = MemoryKeyValue()
        ada.begin()
        await asyncio.gather(*(ada.sync.recover(member.id) for member in order))
        assert ada.has(ada, "a/x") is None
        assert (ada.has(ada, "a/y"), ada.has(ada, "b")) == (b"2", b"3")
        # What the newest head does not prove was written again, so that all take it.
        await ada.store.sign_head()
        sequences = {record.path: record.sequence for record in ada.space.ls("")}
        assert sequences["a/y"] == 3
        assert sequences["b"] > 5
        ada.sync.answering.news(ada.id)
    for member in (bea, cid, dan):
        member.follow(ada)
    await ada.head()
    for member in (bea, cid):
        assert {record.path for record in member.space.ls("a", ada.id)} == {"a/y"}
        assert await member.store.cursor(ada.id, "a") == await ada.store.cursor(ada.id, "")
        assert member.blamed == []
    assert dan.space.ls("", ada.id) == ada.space.ls("")


async def test_what_only_one_peer_shows_is_recovered_at_a_new_sequence(circle):
    """It may have been deleted: whoever has passed that takes no record of before."""
    ada, bea, cid, _ = circle.members
    large = bytes(VALUE_INLINE_BYTES_MAX + 1)
    await ada.store.put_all({"a/x": b"1", "b": large})
    bea.subscribe(ada.id, "a")
    cid.subscribe(ada.id, "b")
    for member in (bea, cid):
        member.follow(ada)
    await ada.head()
    await cid.sync.asking.load(ada.id, ada.id, "b")
    await bea.leave()
    await ada.store.put_all({"b": large + b"2"})
    await ada.head()
    await cid.sync.asking.load(ada.id, ada.id, "b")
    written_ms = ada.space.get("a/x").signed.record.written_ms
    await cid.leave()
    circle.clock.advance_to(circle.clock.now_ms() + 1_000)
    ada.db = MemoryKeyValue()
    ada.begin()
    for member in (bea, cid):
        await ada.sync.recover(member.id)
    again = SpaceStore(ada.db, ada.node.net.context)
    made = await again.put_all({"c": b""})
    assert made == {"causality/interval": 6, "c": 7, "a/x": 8}
    assert again.get("a/x", ada.id).signed.record.sequence == 8
    assert again.get("a/x", ada.id).signed.record.written_ms == written_ms
    assert again.get("a/x", ada.id).value == b"1"
    assert again.get("b", ada.id).signed.record.sequence == 4
    assert again.get("b", ada.id).value == large + b"2"
    assert await again.put_all({"c": b"1"}) == {"c": 9}
    await again.sign_head()
    assert await again.put_all({"c": b"2"}) == {"c": 10}


async def test_a_value_that_no_peer_has_is_recovered_as_a_record_alone(circle):
    ada, bea, *_ = circle.members
    await ada.store.put_all({"a/large": bytes(VALUE_INLINE_BYTES_MAX + 1)})
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    ada.db = MemoryKeyValue()
    ada.begin()
    await ada.sync.recover(bea.id)
    assert ada.has(ada, "a/large") is None
    assert [record.path for record in ada.space.ls("a")] == ["a/large"]


# Bad input


def answering(*raws):
    async def handler(caller, header, parts):
        return {"told": len(header.get("paths", ()))}, [*raws]

    return handler


async def test_a_false_answer_is_blamed_and_nothing_is_stored(circle):
    ada, bea, cid, _ = circle.members
    await ada.space.put("a", b"1")
    network = ada.node.net.network
    mine = (await ada.store.page(ada.id, A, 0, count=9, size_bytes=9)).entries[0].signed
    late = mine.record.model_copy(
        update={"written_ms": circle.clock.now_ms() + 2 * FUTURE_MS_MAX, "sequence": 9}
    )
    foreign = sign(mine.record, KeyPair(b"\5" * 32), network)
    false = [
        b"",
        answer_bytes([Sent(ada.id, foreign.raw, b"1")]),
        answer_bytes([Sent(ada.id, sign(late, ada.node.key, network).raw, b"1")]),
        answer_bytes([Sent(cid.id, mine.raw, b"1")]),
        answer_bytes([Sent(ada.id, b"", None)]),
        answer_bytes([Sent(ada.id, mine.raw, b"other")]),
    ]
    bea.subscribe(ada.id, "a")
    for number, raw in enumerate(false, 1):
        ada.handlers["space.next"] = answering(raw)
        bea.follow(ada)
        await settle()
        assert len(bea.blamed) == number
        await bea.leave()
    assert bea.has(ada, "a") is None
    assert all(isinstance(fault, XscError) and peer == ada.id for peer, fault in bea.blamed)


def without_values(handler):
    """Answer as a handler does, and leave out all values."""

    async def answer(caller, header, parts):
        said, bodies = await handler(caller, header, parts)
        found = answer_in(bodies[0])
        records = [sent._replace(value=None) for sent in found.records]
        return said, [answer_bytes(records, found.heads, more=found.more)]

    return answer


@pytest.mark.parametrize("value", [b"", b"1"])
async def test_a_record_without_its_small_value_is_refused_and_taken_with_it(circle, value):
    ada, bea, *_ = circle.members
    await ada.space.put("a", value)
    honest = dict(ada.handlers)
    watch = bea.space.watch("a", ada.id)
    bea.subscribe(ada.id, "a")
    for method in ("space.next", "space.records"):
        ada.handlers[method] = without_values(ada.handlers[method])
    bea.follow(ada)
    await ada.head()
    assert [type(fault) for _, fault in bea.blamed] == [RecordInvalid]
    assert bea.space.ls("a", ada.id) == []
    assert await bea.store.cursor(ada.id, "a") == 0
    with pytest.raises(RecordInvalid):
        await bea.sync.fetch(ada.id, "a")
    ada.handlers = honest
    await circle.pass_ms(RETRY_MS)
    assert bea.has(ada, "a") == value
    assert (await watch.next()).value == value


async def test_an_owner_recovers_no_record_without_its_small_value(circle):
    ada, bea, *_ = circle.members
    await ada.space.put("a", b"1")
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    bea.handlers["space.next"] = without_values(bea.handlers["space.next"])
    ada.db = MemoryKeyValue()
    ada.begin()
    with pytest.raises(RecordInvalid):
        await ada.sync.recover(bea.id)


def head_of(member, sequence, written_ms, *, section=A, digest=None):
    rows = () if digest is None else ((section, digest),)
    head = SpaceHead(sequence=sequence, written_ms=written_ms, sections=rows)
    raw = sign(head, member.node.key, member.node.net.network).raw
    return SentHead(member.id, raw, ((section, ()),))


async def test_a_refused_record_keeps_no_head_of_the_same_answer_back(circle):
    ada, bea, cid, _ = circle.members
    for member in (ada, cid):
        await member.space.put("a", b"1")
        await member.store.sign_head()
    bea.subscribe(ada.id, "a")
    bea.subscribe(cid.id, "a")
    bea.space.register_schema("a", refuses_twos)
    await cid.space.put("a", b"2")
    await cid.store.sign_head()
    dan = circle.members[3]
    for member in (ada, cid):
        dan.subscribe(member.id, "a")
    dan.follow(ada, cid)
    await settle()
    bea.cut = {ada.id, cid.id}
    bea.follow(dan)
    await settle()
    assert {peer for peer, _ in bea.blamed} == {cid.id}  # who signed it, and not who passed it on
    assert bea.has(ada, "a") == b"1"
    assert await bea.store.cursor(ada.id, "a") == 2


def refuses_twos(owner, value):
    if value == b"2":
        raise RecordInvalid("a two")


async def test_a_date_too_far_ahead_is_held_against_the_owner_and_costs_nothing_else(circle):
    ada, bea, cid, _ = circle.members
    await cid.space.put("a", b"1")
    ahead_ms = circle.clock.now_ms() + FUTURE_MS_MAX + 1
    page = await cid.store.page(cid.id, A, 0, count=9, size_bytes=9)
    mine = page.entries[0].signed
    late = mine.record.model_copy(update={"written_ms": ahead_ms})
    records = [
        Sent(ada.id, sign(late, ada.node.key, ada.node.net.network).raw, b"1"),
        Sent(cid.id, mine.raw, b"1"),
    ]
    raw = answer_bytes(records, [head_of(ada, 1, ahead_ms)])
    bea.subscribe(ada.id, "a")
    bea.subscribe(cid.id, "a")
    bea.cut = {ada.id}
    cid.handlers["space.next"] = answering(raw)
    bea.follow(cid)
    await settle()
    assert bea.blamed == []
    assert bea.has(cid, "a") == b"1"
    assert bea.space.ls("a", ada.id) == []
    bea.cut = set()
    ada.handlers["space.next"] = answering(answer_bytes(records[:1]))
    bea.follow(ada)
    await circle.pass_ms(RETRY_MS)
    assert (bea.blamed[0][0], type(bea.blamed[0][1])) == (ada.id, ClockSkewed)


async def test_old_heads_again_and_again_keep_nobody_busy(circle):
    ada, bea, *_ = circle.members
    now_ms = circle.clock.now_ms()
    heads = [head_of(ada, 0, now_ms + number) for number in range(2)]
    asked = []

    async def again(caller, header, parts):
        asked.append(header)
        return {}, [answer_bytes([], heads)]

    ada.handlers["space.next"] = again
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    assert len(asked) == 2  # they were new once
    await circle.pass_ms(RETRY_MS)
    assert len(asked) == 3
    assert bea.blamed == []


async def test_heads_of_one_answer_are_proven_once_a_section_and_cost_what_is_compared(
    circle, monkeypatch
):
    """Each old head took back all that was written since: two megabytes of them, minutes."""
    ada, bea, *_ = circle.members
    rows, now_ms = 64, circle.clock.now_ms()
    for number in range(rows):
        await ada.space.put(f"a/p{number}", b"v")
    bea.follow(ada)
    bea.subscribe(ada.id, "a")
    await settle()
    heads = [head_of(ada, 1, now_ms + number, digest=bytes(32)) for number in range(9)]
    proven, spent = [], []

    async def again(caller, header, parts):
        return {}, [answer_bytes([], heads)]

    async def prove(owner, head, before):
        proven.extend([head.record.written_ms] * len(before))
        return {*before}, set(), rows

    monkeypatch.setattr(bea.store, "prove", prove)
    for part in (bea.sync, bea.sync.asking):
        monkeypatch.setattr(part, "_spend", noting(spent))
    ada.handlers["space.next"] = again
    await circle.pass_ms(HELD_REQUEST_MS_MAX)
    await settle()
    assert proven == [now_ms + 8]
    assert spent[:2] == [1, rows // PROOF_ROWS_A_RECORD]
    assert sum(spent) <= 2 + rows // PROOF_ROWS_A_RECORD


def noting(spent):
    """Note what is charged for, in records, and let nobody wait."""

    def noted(peer, units):
        if units:
            spent.append(units // RECORD_UNITS)
        return 0

    return noted


async def test_a_head_with_many_sections_counts_as_many_records(circle, monkeypatch):
    """It took as long to verify as ten records."""
    ada, bea, *_ = circle.members
    spent = []
    for part in (bea.sync, bea.sync.asking):
        monkeypatch.setattr(part, "_spend", noting(spent))
    await ada.space.put_all({f"p{number}": b"v" for number in range(300)})
    head = await ada.store.sign_head()
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    assert await bea.store.cursor(ada.id, "a") == head.record.sequence
    assert spent[-2:] == [1 + len(head.raw) // CHECKED_BYTES_A_RECORD, 0]
    assert len(head.raw) > 5 * CHECKED_BYTES_A_RECORD


async def test_a_small_value_that_is_checked_counts_by_its_size(circle, monkeypatch):
    """A grant of 4 KiB has sixteen signatures inside, and counted as one record."""
    ada, bea, *_ = circle.members
    spent = []
    for part in (bea.sync, bea.sync.asking):
        monkeypatch.setattr(part, "_spend", noting(spent))
    bea.space.register_schema("a/checked", lambda owner, value: None)
    await ada.space.put("a/free", bytes(3 * CHECKED_BYTES_A_RECORD))
    await ada.space.put("a/checked", bytes(3 * CHECKED_BYTES_A_RECORD))
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    assert spent == [1, 1, 3]


async def test_a_listing_of_an_older_head_than_the_one_that_failed_repairs_nothing(circle):
    ada, bea, cid, _ = circle.members
    await ada.space.put("a", b"1")
    cid.subscribe(ada.id, "a")
    cid.follow(ada)
    await ada.head()
    head, ids = await ada.store.listing(ada.id, A)
    old = Listed(head=head, ids=ids).to_bytes()
    await ada.space.put("a/hidden", b"2")
    await ada.head()
    newer, _ = await ada.store.listing(ada.id, A)
    head = SentHead(ada.id, newer, ((A, ()),))
    cid.handlers["space.next"] = answering(answer_bytes([], [head]))
    cid.handlers["space.list"] = answering(old)
    bea.cut = {ada.id}
    bea.subscribe(ada.id, "a")
    bea.follow(cid)
    await settle()
    assert bea.sync._failed == {(ada.id, A): {cid.id}}


async def test_a_peer_that_answers_at_once_with_nothing_keeps_nobody_busy(circle):
    ada, bea, *_ = circle.members
    await ada.space.put("a", b"1")
    page = await ada.store.page(ada.id, A, 0, count=9, size_bytes=9)
    said = Sent(ada.id, page.entries[0].signed.raw, b"1")
    asked = []

    async def again(caller, header, parts):
        asked.append(header)
        return {}, [answer_bytes([said], more=True)]

    ada.handlers["space.next"] = again
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    assert len(asked) == 2  # it was new once
    await circle.pass_ms(RETRY_MS)
    assert len(asked) == 3
    assert bea.blamed == []


@pytest.mark.parametrize(
    "cursors",
    [
        None,
        {},
        [[]],
        [[bytes(31), "nodes", 0, 0, 0]],
        [[bytes(32), "..", 0, 0, 0]],
        [[bytes(32), "rest/240", 0, 0, 0]],
        [[bytes(32), "nodes", -1, 0, 0]],
        [[bytes(32), "nodes", True, 0, 0]],
        [[bytes(32), "nodes", 0, 0]],
        [[bytes(32), "nodes", 0, 0, 0]] * 2,
        [
            [number.to_bytes(32, "big"), "nodes", 0, 0, 0]
            for number in range(syncs.limits.CURSORS_MAX + 1)
        ],
    ],
)
def test_false_cursors_are_refused(cursors):
    with pytest.raises(RecordInvalid):
        Question.from_value({"v": 1, "cursors": cursors})


@pytest.mark.parametrize("raw", [b"", b"\x83\x80\x80\xf6", b"\x82\x80\x80"])
def test_false_answers_are_refused(raw):
    for kind in (Answer, Listed):
        with pytest.raises(RecordInvalid):
            kind.from_bytes(raw)


def test_an_answer_with_too_many_records_or_heads_is_refused_before_any_is_verified():
    sent, head = Sent(bytes(32), b"", None), SentHead(bytes(32), b"", [])
    said = {"v": 1, "records": [[*sent]] * PAGE_RECORDS, "heads": [[*head]] * CURSORS_MAX}
    assert len(answer_in(encode(said | {"more": False})).heads) == CURSORS_MAX
    for one, most in (("records", PAGE_RECORDS), ("heads", CURSORS_MAX)):
        with pytest.raises(RecordInvalid):
            answer_in(encode(said | {"more": False, one: said[one][:1] * (most + 1)}))


async def test_subscriptions_are_bounded(circle, monkeypatch):
    monkeypatch.setattr(syncs.limits, "CURSORS_MAX", 2)
    ada, bea, *_ = circle.members
    for path in ("a", "b", "b"):
        bea.subscribe(ada.id, path)
    bea.subscribe(bea.id, "own")  # which needs none
    assert bea.log.warnings == []
    bea.subscribe(ada.id, "A")
    assert [event for event, _ in bea.log.warnings] == ["space.not_followed"]
    assert {prefix for _, prefix, _ in await bea.sync.cursors()} == {"a", "b"}


# Floods


async def test_an_owner_that_writes_without_end_is_taken_at_a_pace_and_others_at_once(
    circle, monkeypatch
):
    """It has a share, beyond a burst; of what it overwrites meanwhile the last is taken."""
    monkeypatch.setattr(syncs.limits, "RECORD_UNITS", RECORD_UNITS_OF_50)
    ada, bea, cid, _ = circle.members
    bea.begin()
    for other in (ada, cid):
        bea.subscribe(other.id, "a")
    bea.follow(ada, cid)
    await settle()
    for value in range(100):
        await ada.store.put_all({f"a/p{number}": b"%d" % value for number in range(20)})
        ada.sync.answering.news(ada.id)
        await settle()
    assert 25 <= len(bea.received) <= 25 + 2 * 20
    await cid.space.put("a", b"1")
    await settle()
    assert bea.has(cid, "a") == b"1"
    before = len(bea.received)
    for value in range(100):
        await circle.pass_ms(100)
        await ada.store.put_all({f"a/p{number}": b"last %d" % value for number in range(20)})
        ada.sync.answering.news(ada.id)
    assert len(bea.received) - before <= 10 * 50 + 2 * 20
    for _ in range(10):
        await circle.pass_ms(1_000)
    assert bea.has(ada, "a/p7") == b"last 99"
    assert bea.blamed == []


async def test_malformed_answers_are_asked_for_again_ever_later(circle):
    ada, bea, *_ = circle.members
    asked = []

    async def handler(caller, header, parts):
        asked.append(circle.clock.monotonic_ms())
        return {}, [encode([[0] * 1_000, [], False])]

    ada.handlers["space.next"] = handler
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    for _ in range(200):
        await circle.pass_ms(RETRY_MS)
        await settle()
    pauses = [later - sooner for sooner, later in pairwise(asked)]
    assert pauses[:6] == [RETRY_MS << number for number in range(6)]
    assert set(pauses[6:]) == {RETRY_MS_MAX}
    assert len(bea.blamed) == len(asked)
    # With the first good answer all is as before.
    ada.begin()
    await circle.pass_ms(RETRY_MS_MAX)
    await ada.space.put("a", b"1")
    await settle()
    assert bea.has(ada, "a") == b"1"


def test_an_answer_above_what_a_page_holds_is_refused_unread():
    body = memoryview(bytes(ANSWER_BYTES_MAX + 1))
    assert len(body_of([body[1:]])) == ANSWER_BYTES_MAX
    for parts in ([body], [], [body[:1], body[:1]]):
        with pytest.raises(RecordInvalid, match="has one body"):
            body_of(parts)


async def test_what_is_asked_for_by_paths_comes_in_pages(circle):
    ada, bea, *_ = circle.members
    values = {
        f"a/p{number}": bytes([number % 256]) * VALUE_INLINE_BYTES_MAX for number in range(300)
    }
    await ada.store.put_all(values)
    paths = [*values][:256]
    told, found = 0, []
    while told < len(paths):
        asked = {"owner": ada.id, "paths": paths[told:], "whole": False}
        reply = await bea.node.net.call(ada.id, "space.records", asked)
        assert len(reply.parts[0]) <= PAGE_BYTES + 32 * 1024
        told += reply.header["told"]
        found += answer_in(reply.parts[0]).records
    assert len(found) == 256


async def test_a_question_that_is_not_held_is_for_few(circle):
    ada, bea, *_ = circle.members
    cursors = [[bytes([number]) * 32, A, 0, 0, 0] for number in range(SOUGHT_MAX + 1)]
    with pytest.raises(RecordInvalid, match="at most 64 cursors"):
        await bea.node.net.call(ada.id, "space.next", {"cursors": cursors, "wait": False})
    asked = {"cursors": cursors[1:], "wait": False}
    assert (await bea.node.net.call(ada.id, "space.next", asked)).header == {}


async def test_a_request_that_was_replaced_keeps_no_cursors_while_it_waits_for_its_turn(
    circle, monkeypatch
):
    monkeypatch.setattr(syncs.limits, "ROW_UNITS", PEER_UNITS // 1_500)
    ada, bea, *_ = circle.members
    ada.begin()
    cursors = [[bytes([number % 256, number >> 8]) * 16, A, 0, 0, 0] for number in range(1_000)]
    asked = []
    for _ in range(2):
        question = {"cursors": cursors, "wait": True}
        asked.append(asyncio.create_task(bea.node.net.call(ada.id, "space.next", question)))
        await settle()
    # Only the last one waits.
    assert [one.done() for one in asked] == [True, False]
    asked[-1].cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_a_peer_that_asks_for_everything_waits_and_others_do_not(circle, monkeypatch):
    monkeypatch.setattr(syncs.limits, "ROW_UNITS", PEER_UNITS // (2 * SOUGHT_MAX))
    ada, bea, cid, _ = circle.members
    ada.begin()
    cursors = [[bytes([number]) * 32, A, 0, 0, 0] for number in range(SOUGHT_MAX)]
    asked = [
        asyncio.create_task(
            bea.node.net.call(ada.id, "space.next", {"cursors": cursors, "wait": wait})
        )
        for wait in [False] * 20
    ]
    await settle()

    def answered():
        return sum(one.done() and one.exception() is None for one in asked)

    at_once = answered()
    assert at_once <= 3
    assert {type(one.exception()) for one in asked if one.done()} <= {type(None), RateLimited}
    cid.subscribe(ada.id, "a")
    cid.follow(ada)
    await ada.space.put("a", b"1")
    await settle()
    assert cid.has(ada, "a") == b"1"
    await circle.pass_ms(2_000)
    assert at_once < answered() <= at_once + 5
    assert set(ada.store._tables) == {ada.id}  # what peers make up is not remembered
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize(("levels", "times"), [(0, 2), (10, 1)])
async def test_a_record_with_a_large_stamp_counts_as_many(circle, monkeypatch, levels, times):
    """A thousand of them cost twenty seconds of computing."""
    monkeypatch.setattr(syncs.limits, "RECORD_UNITS", RECORD_UNITS_OF_50)
    ada, bea, *_ = circle.members
    bea.begin()
    event = 1
    for _ in range(levels):
        event = (0, (0, 0, 1), event)
    await ada.space.put("a", b"1")
    like = ada.space.get("a").signed.record
    asked = []

    async def again(caller, header, parts):
        asked.append(header)
        sent = []
        for number in range(10):
            place = {"sequence": 10 * len(asked) + number, "stamp": event_bytes(event)}
            made = like.model_copy(update=place)
            sent.append(Sent(ada.id, sign(made, ada.node.key, ada.node.net.network).raw, b"1"))
        if len(asked) > 2:
            await asyncio.get_running_loop().create_future()
        return {}, [answer_bytes(sent)]

    monkeypatch.setattr(syncs.limits, "STAMP_BYTES_A_RECORD", 1)
    ada.handlers["space.next"] = again
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    await settle()
    assert min(len(asked), 2) == times
    await circle.pass_ms(20_000)
    assert len(asked) >= 2
    assert bea.blamed == []


# What is held against whom


async def test_a_relay_is_blamed_for_a_value_that_the_owner_did_not_write(circle):
    ada, bea, cid, _ = circle.members
    await ada.space.put("a", b"1")
    bea.space.register_schema("a", refuses_twos)
    bea.subscribe(ada.id, "a")
    bea.cut = {ada.id}
    raw = ada.space.get("a").signed.raw
    cid.handlers["space.next"] = answering(answer_bytes([Sent(ada.id, raw, b"2")]))
    bea.follow(cid)
    await settle()
    assert {peer for peer, _ in bea.blamed} == {cid.id}


async def test_nobody_is_blamed_when_this_node_has_no_room_and_others_go_on(circle, monkeypatch):
    monkeypatch.setattr(tables.limits, "OTHERS_BYTES_MAX", 6_000)
    monkeypatch.setattr(tables.limits, "OWNER_SURE_BYTES", 1_000)
    ada, bea, cid, _ = circle.members
    for number in range(3):
        await ada.space.put(f"a/{number}", b"x" * 1_500)
    await cid.space.put("a", b"1")
    for member in (ada, cid):
        bea.subscribe(member.id, "a")
        bea.follow(member)
        await member.head()
    for _ in range(3):
        await circle.pass_ms(HEAD_INTERVAL_MS)
        await ada.head()
    assert len(bea.space.ls("a", ada.id)) == 1
    assert bea.has(cid, "a") == b"1"
    assert bea.blamed == []
    assert [event for event, _ in bea.log.warnings] == ["space.full"]
    await cid.space.put("a", b"2")
    await circle.pass_ms(RETRY_MS)
    assert bea.has(cid, "a") == b"2"


async def test_a_full_disk_is_nobodys_fault(circle):
    ada, bea, *_ = circle.members
    await ada.space.put("a", b"1")
    write = bea.db.write

    def full(changes, *, sync):
        raise SpaceExhausted("the disk is full")

    bea.db.write = full
    bea.subscribe(ada.id, "a")
    bea.follow(ada)
    for _ in range(3):
        await circle.pass_ms(RETRY_MS)
    assert bea.blamed == []
    assert len(bea.log.warnings) == 1
    bea.db.write = write
    await circle.pass_ms(RETRY_MS)
    assert bea.has(ada, "a") == b"1"


@pytest.mark.parametrize("many", [1, 2])
async def test_the_answer_to_one_path_has_one_record_of_that_path(many):
    clock = ManualClock()
    network = MemoryNetwork(clock)
    nodes = [Node(network, name, clock=clock) for name in ("ada", "bea")]
    await acquainted(*nodes)
    ada, bea = map(Member, nodes)

    def record(path, sequence):
        made = SpaceRecord(
            path=path,
            sequence=sequence,
            written_ms=clock.now_ms(),
            domain=bytes(32),
            stamp=event_bytes(1),
            digest=value_digest(bytes([sequence]) * 5_000),
            size_bytes=5_000,
        )
        return sign(made, ada.node.key, ada.node.net.network).raw

    asked = []

    async def page(caller, header, parts):
        if asked:
            await asyncio.get_running_loop().create_future()
        return {}, [answer_bytes([Sent(ada.id, record(UserSpacePaths.INTERVAL, 1), None)])]

    async def other(caller, header, parts):
        asked.append(header["paths"])
        path = UserSpacePaths.INTERVAL if many > 1 else "other"
        return {"told": 1}, [answer_bytes([Sent(ada.id, record(path, 2), None)] * many)]

    ada.handlers.update({"space.next": page, "space.records": other})
    bea.subscribe(ada.id, UserSpacePaths.INTERVAL)
    bea.follow(ada)
    await settle()
    assert asked == [[UserSpacePaths.INTERVAL]]
    assert [(peer, type(fault)) for peer, fault in bea.blamed] == [(ada.id, RecordInvalid)]
    await bea.leave()
    for node in nodes:
        await node.net.stop()
