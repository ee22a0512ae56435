"""The commitment of a node is one value in its space, and so are those of others."""

from __future__ import annotations

import asyncio

import pytest

from tests.settle import settle
from tests.unit.allocation.test_declaring import NIGHTS
from tests.unit.space.test_store import Journal, record
from xsc.allocation.commitments import (
    LOOK_INTERVAL_MS,
    NEED_INTERVAL_MS,
    PRICES_POSTED_MS,
    Commitments,
)
from xsc.allocation.declaring import Statement, needed, offered, standing_need
from xsc.allocation.windows import DAY_MS
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.errors import ArgumentInvalid, NotFound, RecordInvalid, SpaceExhausted, TooLarge
from xsc.base.limits import ALLOCATION_DEBOUNCE_MS, COMMITMENT_BYTES_MAX, GIB, SLOT_STEP_FUEL
from xsc.identity.context import Context
from xsc.space.paths import UserSpacePaths
from xsc.space.store import SpaceStore
from xsc.terms.pricing import Ladder
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot

PATH = UserSpacePaths.COMMITMENT
SETTLE_MS = 100
STATED = Statement(quantity=100, price=20)


class Lines:
    """Keeps what is logged."""

    def __init__(self):
        self.events = []

    def info(self, event, **_):
        self.events.append(event)

    warning = error = debug = info


class Node:
    """The space and the commitments of one node, on a disk that survives it."""

    def __init__(self, key, network, db=None, clock=None):
        self.db = db or Journal()
        self.clock = clock or ManualClock()
        self.log = Lines()
        self.levels = {"storage": 3 * GIB + 1, "compute": 2 * 10**9}
        self.posted = 40
        self.has_peers = False
        self.wanted = needed("storage", {}, 9)
        self.runs = needed("compute", {}, 9)
        ports = (self.clock, SeededEntropy(b"7"), InlineExecutor(), None, self.log)
        context = Context(key, network, *ports, None, None)
        store = SpaceStore(self.db, context)
        self.space = store
        self.commitments = Commitments(
            context,
            self.space,
            None,
            posted=self.ask,
            by_default=self.by_default,
            on_withdrawn=lambda kind: self.told.append(f"{kind} withdrawn"),
            on_recognised=lambda: None,
            before_stand=self.before_stand,
            site="berlin",
            owner="alice",
        )
        self.commitments.start()
        self.told = []

    def by_default(self, role, kind):
        if role is AvailabilitySlot:
            return offered(kind, self.levels[kind], self.ask(kind, None))
        return self.wanted if kind == "storage" else self.runs

    def ask(self, _, reserve):
        reserve = self.posted if reserve is None else reserve
        return Ladder(reserve // 4, reserve // 2, reserve)

    async def before_stand(self):
        return self.has_peers

    def pass_ms(self, duration_ms):
        self.clock.advance_to(self.clock.now_ms() + duration_ms)

    async def done(self, work):
        """Return what a command gives, after the time in which values wait for others."""
        task = asyncio.ensure_future(work)
        await settle()
        self.pass_ms(SETTLE_MS)
        await settle()
        return await task

    def stored(self):
        return Commitment.read(self.space.get(PATH).value)


@pytest.fixture
def node(alice, network):
    return Node(alice, network)


async def test_the_space_is_where_the_commitment_is_kept(node, alice, network):
    slot_id = await node.done(node.commitments.declare(AvailabilitySlot, "compute", STATED))
    need_id = await node.done(node.commitments.declare(NeedSlot, "storage", STATED))
    assert (
        node.stored() == node.commitments.own == node.commitments.heard.of(alice.node_id).commitment
    )
    (slot,), (need,) = node.commitments.own.slots, node.commitments.own.needs
    assert (slot.slot_id, need.slot_id) == (slot_id, need_id)
    assert (slot.price_mutual, slot.price_one_way, slot.reserve) == (5, 10, 20)
    assert (slot.location, slot.owner, need.location, need.owner) == (
        *("berlin", "alice"),
        *("", "alice"),
    )
    again = Node(alice, network, node.db)
    assert again.commitments.own == node.commitments.own
    await again.done(again.commitments.withdraw(slot_id))
    assert again.stored().slots == ()
    with pytest.raises(NotFound):
        await again.commitments.withdraw(slot_id)
    # What the owner writes there by itself holds, too.
    await again.space.put(PATH, Commitment().to_bytes())
    assert again.commitments.own == Commitment()
    await again.space.rm(PATH)
    assert again.commitments.own == Commitment()
    await again.done(again.commitments.declare(AvailabilitySlot, "storage", STATED))
    assert again.stored() == again.commitments.own


async def test_of_changes_that_come_together_none_is_lost(node):
    slot_ids = await node.done(
        asyncio.gather(
            *(node.commitments.declare(AvailabilitySlot, "compute", STATED) for _ in range(5))
        )
    )
    assert {slot.slot_id for slot in node.stored().slots} == set(slot_ids)
    assert len(set(slot_ids)) == 5


async def test_a_write_that_fails_leaves_what_was_there(node):
    await node.done(node.commitments.declare(AvailabilitySlot, "compute", STATED))
    before = node.commitments.own

    def full(*_, **__):
        raise SpaceExhausted("the disk is full")

    node.db.write = full
    with pytest.raises(SpaceExhausted):
        await node.done(node.commitments.declare(AvailabilitySlot, "compute", STATED))
    assert node.commitments.own == before


async def two_writes(node, fail):
    """Return an offer and a need, stated while the offer is written, which fails; so many fail."""
    put, reached = node.space.put, asyncio.Event()

    async def fails(path, value):
        nonlocal fail
        await reached.wait()
        fail -= 1
        if fail < 0:
            return await put(path, value)
        raise SpaceExhausted("the disk is full")

    node.space.put = fails
    offer = asyncio.ensure_future(node.commitments.declare(AvailabilitySlot, "compute", STATED))
    await settle()
    need = asyncio.ensure_future(node.commitments.declare(NeedSlot, "compute", STATED))
    await settle()
    assert node.commitments.own == Commitment(), "nothing holds before it is on the disk"
    assert not offer.done()
    reached.set()
    found = await asyncio.gather(offer, need, return_exceptions=True)
    node.space.put = put
    return found


async def test_of_two_writes_of_which_one_fails_the_other_stays(node):
    failed, need_id = await two_writes(node, fail=1)
    assert type(failed) is SpaceExhausted
    assert [slot.slot_id for slot in node.commitments.own.both] == [need_id]
    assert node.stored() == node.commitments.own


async def test_of_two_writes_the_later_one_has_both_changes(node):
    ids = await two_writes(node, fail=0)
    assert [slot.slot_id for slot in node.commitments.own.both] == ids


async def test_of_two_writes_that_fail_nothing_stays(node):
    assert [type(fault) for fault in await two_writes(node, fail=2)] == [SpaceExhausted] * 2
    assert node.commitments.own == Commitment()


async def test_a_wrong_statement_is_refused_and_changes_nothing(node):
    slot_id = await node.done(node.commitments.declare(AvailabilitySlot, "compute", STATED))
    writes = len(node.db.writes)
    for work in (
        node.commitments.declare(AvailabilitySlot, "compute", Statement(quantity=0, price=1)),
        node.commitments.declare(NeedSlot, "compute", Statement(quantity=1)),
        node.commitments.edit(slot_id, Statement(quantity=0)),
        node.commitments.edit(slot_id, Statement(every="daily 1:00-2:00 Mars/Base")),
    ):
        with pytest.raises(ArgumentInvalid):
            await work
    assert len(node.db.writes) == writes
    assert node.stored() == node.commitments.own


async def test_an_edited_offer_has_the_rungs_of_its_new_reserve(node):
    slot_id = await node.done(node.commitments.declare(AvailabilitySlot, "compute", STATED))
    await node.done(node.commitments.edit(slot_id, Statement(price=40)))
    (slot,) = node.stored().slots
    assert (slot.price_mutual, slot.price_one_way, slot.reserve) == (10, 20, 40)
    need_id = await node.done(node.commitments.declare(NeedSlot, "compute", STATED))
    await node.done(node.commitments.edit(need_id, Statement(quantity=7)))
    assert node.stored().needs[0].number == 2


async def test_a_commitment_that_is_none_is_refused_before_it_is_stored(node, alice, bob, network):
    with pytest.raises(ArgumentInvalid):
        await node.space.put(PATH, b"hello")
    with pytest.raises(TooLarge):
        await node.space.put(PATH, bytes(COMMITMENT_BYTES_MAX + 1))
    offered = [(record(bob, network, PATH, value=b"hello"), b"hello")]
    taken = await node.space.take(bob.node_id, offered)
    assert [type(fault) for fault in taken.refused] == [RecordInvalid]
    with pytest.raises(NotFound):
        node.space.get(PATH, bob.node_id)
    assert node.commitments.heard.of(bob.node_id).commitment == Commitment()
    assert node.commitments.own == Commitment()


async def test_the_commitment_of_a_peer_is_known_once_it_is_here(node, bob, network):
    other = Node(bob, network)
    await other.done(other.commitments.declare(AvailabilitySlot, "compute", STATED))
    theirs = other.stored()
    assert node.commitments.heard.of(bob.node_id).commitment == Commitment()
    for sequence, value in enumerate((theirs.to_bytes(), None), 1):
        signed = record(bob, network, PATH, sequence, value)
        await node.space.take(bob.node_id, [(signed, value)])
        assert node.commitments.heard.of(bob.node_id).commitment == (
            Commitment() if value is None else theirs
        )


async def test_recurrences_go_on_and_what_is_over_is_dropped(node):
    node.has_peers, node.levels = True, dict.fromkeys(node.levels, 0)
    nights = await node.done(
        node.commitments.declare(AvailabilitySlot, "compute", Statement(100, every=NIGHTS, price=2))
    )
    short = Statement(100, price=2, to_ms=node.clock.now_ms() + 90_000)
    await node.done(node.commitments.declare(AvailabilitySlot, "compute", short))
    loop = asyncio.ensure_future(node.commitments.run())
    await settle()
    sequence = node.space.get(PATH).signed.record.sequence
    for _ in range(3):
        node.pass_ms(LOOK_INTERVAL_MS)
        await settle()
        node.pass_ms(SETTLE_MS)
        await settle()
    (slot,) = node.stored().slots
    assert slot.slot_id == nights
    assert node.space.get(PATH).signed.record.sequence == sequence + 1
    for _ in range(3):
        node.pass_ms(DAY_MS)
        await settle()
        node.pass_ms(SETTLE_MS)
        await settle()
    (later,) = node.stored().slots
    ((start, end),) = slot.windows
    ((began, ended),) = later.windows
    assert (began - start) // DAY_MS == 3
    assert ended == end + 3 * DAY_MS
    loop.cancel()


async def test_a_node_offers_what_it_has_once_it_has_a_peer(node, alice, network):
    loop = asyncio.ensure_future(node.commitments.run())
    await settle()
    with pytest.raises(NotFound):
        node.space.get(PATH)
    node.has_peers = True
    await node.done(node.commitments.follow())
    compute, storage = sorted(node.stored().slots, key=lambda slot: slot.kind)
    assert (compute.quantity, storage.quantity) == (200, 48)
    assert {slot.standing for slot in (compute, storage)} == {True}
    assert (storage.price_mutual, storage.price_one_way, storage.reserve) == (10, 20, 40)
    assert (storage.location, storage.owner) == ("berlin", "alice")
    # Prices are followed once an hour, and nothing is written where they stand.
    sequence = node.space.get(PATH).signed.record.sequence
    for price, writes in ((44, 0), (44, 1), (44, 1)):
        node.posted = price
        node.pass_ms(LOOK_INTERVAL_MS if not writes else PRICES_POSTED_MS)
        await settle()
        node.pass_ms(SETTLE_MS)
        await settle()
        assert node.space.get(PATH).signed.record.sequence == sequence + writes
    assert {slot.reserve for slot in node.stored().slots} == {44}
    loop.cancel()
    # What the node has to lease is looked at when it starts.
    again = Node(alice, network, node.db, node.clock)
    again.has_peers, again.levels["storage"] = True, GIB
    await again.done(again.commitments.follow())
    assert {slot.slot_id: slot.quantity for slot in again.stored().slots} == {
        compute.slot_id: 200,
        storage.slot_id: 16,
    }


async def test_what_its_owner_withdraws_or_states_is_offered_by_default_no_more(
    node, alice, network
):
    node.has_peers = True
    await node.done(node.commitments.follow())
    ids = {slot.kind: slot.slot_id for slot in node.commitments.own.slots}
    await node.done(node.commitments.withdraw(ids["storage"]))
    await node.done(node.commitments.edit(ids["compute"], Statement(price=7)))
    again = Node(alice, network, node.db, node.clock)
    again.has_peers = True
    await again.done(again.commitments.follow())
    (stated,) = again.stored().slots
    assert (stated.slot_id, stated.standing, stated.reserve) == (ids["compute"], False, 7)
    # It is offered again on demand, once.
    slot_id = await again.done(again.commitments.offer_all("storage"))
    assert await again.done(again.commitments.offer_all("storage")) == slot_id
    assert [slot.slot_id for slot in again.stored().slots if slot.standing] == [slot_id]


async def test_a_node_that_offers_nothing_withdraws_what_it_offered_by_default(
    node, alice, network
):
    node.has_peers = True
    await node.done(node.commitments.follow())
    stated = await node.done(node.commitments.declare(AvailabilitySlot, "compute", STATED))
    for levels, standing in (({"storage": 0, "compute": 0}, 0), (node.levels, 2)):
        again = Node(alice, network, node.db, node.clock)
        again.has_peers, again.levels = True, levels
        await again.done(again.commitments.follow())
        slots = {slot.slot_id: slot.standing for slot in again.stored().slots}
        assert slots.pop(stated) is False
        assert list(slots.values()) == [True] * standing
        if not standing:
            with pytest.raises(ArgumentInvalid, match="no storage to offer"):
                await again.commitments.offer_all("storage")


async def test_a_full_disk_is_logged_and_what_there_is_is_offered_an_hour_later(node):
    node.has_peers = True
    write = node.db.write

    def full(*_, **__):
        raise SpaceExhausted("the disk is full")

    node.db.write = full
    await node.done(node.commitments.follow())
    assert node.log.events == ["allocation.capacity_not_offered"]
    assert node.commitments.own == Commitment()
    node.db.write = write
    node.pass_ms(PRICES_POSTED_MS)
    await node.done(node.commitments.follow())
    assert len(node.stored().slots) == 2


async def test_a_need_follows_what_is_stored_and_changes_at_most_once_a_minute(node, bob):
    async def stored(size_bytes, short=0):
        node.wanted = needed("storage", {bob.node_id: size_bytes}, 9, short, 2)
        await node.done(node.commitments.follow())
        need = standing_need(node.commitments.own)
        return None if need is None else need.quantity

    node.levels = dict.fromkeys(node.levels, 0)
    assert await stored(GIB) is None, "there is nobody to tell"
    node.has_peers = True
    assert await stored(GIB) == 16
    assert await stored(2 * GIB) == 16
    node.pass_ms(NEED_INTERVAL_MS)
    assert await stored(2 * GIB) == 32
    assert node.stored() == node.commitments.own
    node.pass_ms(NEED_INTERVAL_MS)
    assert await stored(2 * GIB, short=GIB) == 64
    await node.done(node.commitments.withdraw(node.commitments.own.needs[0].slot_id))
    assert "storage withdrawn" in node.told, "what was refused is forgotten"
    assert node.stored().needs == ()


async def test_a_need_of_each_kind_stands_by_itself(node, bob):
    node.has_peers, node.levels = True, dict.fromkeys(node.levels, 0)
    node.wanted = needed("storage", {bob.node_id: GIB}, 9)
    node.runs = needed("compute", {bob.node_id: 1}, 5)
    await node.done(node.commitments.follow())
    stored, runs = (standing_need(node.stored(), kind) for kind in ("storage", "compute"))
    assert (runs.quantity, runs.parts, runs.price_max) == (1, ((bob.node_id, 1),), 5)
    node.pass_ms(NEED_INTERVAL_MS)
    node.runs = needed("compute", {bob.node_id: 2 * SLOT_STEP_FUEL}, 5)
    await node.done(node.commitments.follow())
    assert standing_need(node.stored(), "compute").quantity == 2
    assert standing_need(node.stored()) == stored
    await node.done(node.commitments.withdraw(runs.slot_id))
    assert "compute withdrawn" in node.told
    assert node.stored().needs == (stored,)


async def test_a_node_looks_at_its_need_soon_after_it_stored_something(node, bob):
    node.has_peers = True
    loop = asyncio.ensure_future(node.commitments.run())
    await settle()
    node.wanted = needed("storage", {bob.node_id: 1}, 9)
    node.commitments.stir()
    await settle()
    for _ in range(3):
        node.pass_ms(ALLOCATION_DEBOUNCE_MS)
        await settle()
    assert standing_need(node.stored()).quantity == 1
    loop.cancel()


async def test_a_zone_that_is_gone_leaves_the_windows(node, monkeypatch):
    node.has_peers, node.levels = True, dict.fromkeys(node.levels, 0)
    await node.done(
        node.commitments.declare(AvailabilitySlot, "compute", Statement(100, every=NIGHTS, price=2))
    )
    before = node.stored()

    def unknown(name):
        raise ArgumentInvalid(f"'{name}' is no time zone")

    monkeypatch.setattr("xsc.allocation.commitments.zone_of", unknown)
    loop = asyncio.ensure_future(node.commitments.run())
    await settle()
    node.pass_ms(DAY_MS)
    await settle()
    assert node.stored() == before
    assert "allocation.windows_not_continued" in node.log.events
    loop.cancel()
