"""Where nodes are and whom they know, as it travels through the space."""

from __future__ import annotations

import asyncio

import pytest

from tests.settle import settle
from tests.unit.net.nodes import HOUR_MS, Node, acquainted
from tests.unit.net.peers.test_circle import address, introduction, key
from tests.unit.space.test_sync import Member
from xsc.base.clock import ManualClock
from xsc.base.errors import RecordInvalid, SignatureInvalid
from xsc.base.limits import SOUGHT_MAX
from xsc.net.peers.introductions import ADDRESSES_A_PEER_MAX, ADDRESSES_MS
from xsc.net.transport.memory import MemoryNetwork
from xsc.node.circle import SEEK_FRIENDS, SEEK_INTERVAL_MS, CircleSync
from xsc.space.limits import HELD_REQUEST_MS_MAX, RETRY_MS
from xsc.space.paths import UserSpacePaths, below

ADDRESS = UserSpacePaths.ADDRESS


async def nothing():
    pass


class Friend(Member):
    """A node with a space and a circle that follows every peer."""

    def begin(self):
        super().begin()
        self.blamed = []
        self.circle = CircleSync(
            self.node.net,
            self.space,
            self.sync,
            before_write=nothing,
            blame=lambda peer, fault: self.blamed.append((peer, type(fault))),
        )
        self.node.net.roster.on_change(lambda peer, what: self.update())

    def update(self):
        self.sync.subscribe({(peer, UserSpacePaths.NODES) for peer in self.node.net.peers()})
        for peer in set(self.node.net.peers()) - set(self.tasks):
            self.tasks[peer] = asyncio.create_task(self.sync.follow(peer))

    def start(self):
        loops = self.circle.take, self.circle.publish, self.circle.seek
        self.tasks |= {loop.__name__: asyncio.create_task(loop()) for loop in loops}
        self.update()

    async def stop(self):
        await self.leave()
        self.node.memory.kill(self.node.name)
        await self.node.net.stop()

    async def again(self, name=None):
        """Start anew, perhaps elsewhere."""
        self.node.name = name or self.node.name
        await self.node.restart()
        self.node.net.server.register({name: self.handle(name) for name in self.handlers})
        self.begin()
        self.start()

    def address_of(self, other):
        return self.node.net.roster.info(other.id).addresses[0]

    def knows(self, who):
        return who.node_id in self.node.net.peers()


class Group:
    def __init__(self, *names, accepts=True):
        self.clock = ManualClock()
        self.memory = MemoryNetwork(self.clock)
        nodes = [Node(self.memory, name, clock=self.clock, accepts=accepts) for name in names]
        self.friends = [Friend(node) for node in nodes]

    async def begin(self):
        await acquainted(*(friend.node for friend in self.friends))
        for friend in self.friends:
            friend.start()
        await self.pass_ms(RETRY_MS)

    async def pass_ms(self, duration_ms):
        """Let time pass, a second at once."""
        for _ in range(-(-duration_ms // 1_000)):
            await settle()
            self.clock.advance_to(self.clock.now_ms() + 1_000)
        await settle()


@pytest.fixture
async def group():
    group = Group("ada", "bea", "cid")
    await group.begin()
    yield group
    for friend in group.friends:
        await friend.stop()


async def test_a_node_that_moved_tells_its_peers_when_it_starts(group):
    ada, bea, _ = group.friends
    await bea.stop()
    await bea.again("bea-moved")
    await settle()
    assert ada.address_of(bea) == "bea-moved:1"
    await ada.node.net.call(bea.id, "test.echo", {})
    assert ada.node.net.roster.info(bea.id).name == "bea"


async def test_a_peer_that_was_away_is_told_once_it_is_there(group):
    ada, bea, cid = group.friends
    await cid.stop()
    await ada.stop()
    await bea.stop()
    await bea.again("bea-moved")
    await group.pass_ms(RETRY_MS)
    assert ada.address_of(bea) == "bea:1"
    await ada.again()
    await group.pass_ms(2 * RETRY_MS)
    assert ada.address_of(bea) == "bea-moved:1"


async def test_two_that_moved_while_apart_meet_through_a_third(group):
    ada, bea, _ = group.friends
    for friend in (ada, bea):
        await friend.stop()
    for friend in (ada, bea):
        await friend.again(f"{friend.node.name}-moved")
    await group.pass_ms(3 * RETRY_MS)
    assert (ada.address_of(bea), bea.address_of(ada)) == ("bea-moved:1", "ada-moved:1")


async def test_a_request_carries_where_its_sender_is(group):
    ada, bea, _ = group.friends
    sent = []
    call = ada.call

    async def noting(peer, method, header, *args, **options):
        if (peer, method) == (bea.id, "space.next"):
            sent.append("record" in header)
        return await call(peer, method, header, *args, **options)

    ada.call = noting
    await ada.stop()
    await ada.again()
    await group.pass_ms(2 * HELD_REQUEST_MS_MAX)
    assert sent
    assert all(sent), "also before the first is answered: what it was before tells who lacks that"


@pytest.mark.parametrize("path", [ADDRESS, below(UserSpacePaths.MEMBERS, 0), "nodes/other"])
async def test_nobody_carries_another_record_or_one_of_others(group, path):
    ada, bea, cid = group.friends
    for friend in group.friends:
        await friend.leave()
    before = bea.has(cid, path)
    cid.space._schemas.clear()  # as one does that checks nothing
    await cid.space.put(path, b"x")
    entry = cid.space.get(path)
    header = {
        "cursors": [],
        "wait": False,
        "record": entry.signed.raw,
        "value": entry.value,
    }
    with pytest.raises(SignatureInvalid):
        await ada.call(bea.id, "space.next", header)
    for wrong in ({"value": b"y"}, {"value": None}, {"record": 1}, {"record": b"x"}):
        with pytest.raises(RecordInvalid):
            await cid.call(bea.id, "space.next", {**header, **wrong})
    if path != ADDRESS:
        with pytest.raises(RecordInvalid):
            await cid.call(bea.id, "space.next", header)
    else:
        await cid.call(bea.id, "space.next", header)
    assert bea.has(cid, path) == (b"x" if path == ADDRESS else before)


async def test_a_published_record_that_is_not_the_owners_own_changes_nothing(group):
    ada, bea, cid = group.friends
    bea.space._schemas.clear()
    before = ada.node.net.roster.info(bea.id)
    lies = [address(bea.node, cid.node.key, seq=2**60), b"x", address(bea.node, key("unknown"))]
    for number, lie in enumerate(lies, 1):
        await bea.space.put(ADDRESS, lie)
        await settle()
        assert ada.node.net.roster.info(bea.id) == before
        assert [peer for peer, _ in ada.blamed] == [bea.id] * number
    old = address(bea.node, bea.node.key, addresses=("old:1",), seq=0)
    await bea.space.put(ADDRESS, old)
    await settle()
    assert ada.node.net.roster.info(bea.id) == before
    assert len(ada.blamed) == len(lies)


async def test_address_records_without_end_are_taken_later(group):
    ada, bea, _ = group.friends
    bea.tasks.pop("publish").cancel()
    bea.space._schemas.clear()
    last = ""
    for number in range(ADDRESSES_A_PEER_MAX + 8):
        last = f"bea:{number + 2}"
        raw = address(bea.node, bea.node.key, addresses=(last,), seq=2**50 + number)
        await bea.space.put(ADDRESS, raw)
        await settle()
    assert ada.address_of(bea) == f"bea:{ADDRESSES_A_PEER_MAX + 1}"
    await group.pass_ms(ADDRESSES_MS + SEEK_INTERVAL_MS)
    assert ada.address_of(bea) == last
    assert not ada.blamed


async def test_who_moves_while_it_runs_publishes_it_once(group):
    ada, bea, _ = group.friends
    bea.node.net.own_address.advertise = ("bea-elsewhere:1",)
    await group.pass_ms(SEEK_INTERVAL_MS)
    assert ada.address_of(bea) == "bea-elsewhere:1"
    sequence = bea.space.get(ADDRESS).signed.record.sequence
    await group.pass_ms(4 * SEEK_INTERVAL_MS)
    assert bea.space.get(ADDRESS).signed.record.sequence == sequence


async def test_a_lost_peer_is_found_at_a_friend_that_the_space_does_not_ask(group, monkeypatch):
    monkeypatch.setattr("xsc.space.limits.RELAYS_MAX", 0)
    ada, bea, _ = group.friends
    for friend in (ada, bea):
        await friend.stop()
    for friend in (ada, bea):
        await friend.again(f"{friend.node.name}-moved")
    await group.pass_ms(RETRY_MS + 2 * SEEK_INTERVAL_MS)
    assert ada.address_of(bea) == "bea-moved:1"


async def test_so_many_friends_are_asked_for_so_many_at_a_time():
    group = Group("ada")
    (ada,) = group.friends
    asked = []

    async def seek(peer, owners):
        assert len(owners) == SOUGHT_MAX
        asked.append(peer)
        raise RecordInvalid("no answer")

    up = [bytes([1, number]) * 16 for number in range(2 * SEEK_FRIENDS)]
    down = [bytes([2, number]) * 16 for number in range(2 * SOUGHT_MAX)]
    ada.sync.seek = seek
    ada.sync._followed = dict.fromkeys(up) | dict.fromkeys(down, "peer_silent")
    task = asyncio.create_task(ada.circle.seek())
    await settle()
    for turns in (1, 2):
        group.clock.advance_to(group.clock.now_ms() + SEEK_INTERVAL_MS)
        await settle()
        assert asked == up[: turns * SEEK_FRIENDS]
    assert ada.blamed == [(peer, RecordInvalid) for peer in up]
    task.cancel()


# Introductions


async def test_who_is_introduced_is_told_of_the_others_and_they_of_it():
    group = Group("ada", "bea", "cid")
    ada, bea, cid = group.friends
    for friend in group.friends:
        await friend.node.net.start()
        friend.start()
    for other in (bea, cid):
        await other.node.net.join(ada.node.net.invite(HOUR_MS))
    await group.pass_ms(2 * RETRY_MS)
    assert bea.knows(cid.node.key)
    assert cid.knows(bea.node.key)
    assert bea.node.net.roster.info(cid.id).introducer == ada.id
    for friend in group.friends:
        await friend.stop()


async def test_one_that_is_blocked_or_takes_its_consent_back_is_published_no_more(group):
    ada, bea, cid = group.friends
    assert len(ada.space.ls("nodes/members")) == 2
    ada.node.net.roster.block(bea.id)
    await settle()
    assert len(ada.space.ls("nodes/members")) == 1
    cid.node.net.own_address.introducible = False
    cid.node.net.own_address.begin()
    await group.pass_ms(SEEK_INTERVAL_MS)
    assert not ada.space.ls("nodes/members")


async def test_a_member_that_moves_is_not_published_again(group):
    ada, bea, _ = group.friends
    before = ada.space.ls("nodes/members")
    bea.node.net.own_address.advertise = ("bea-elsewhere:1",)
    await group.pass_ms(SEEK_INTERVAL_MS)
    assert ada.address_of(bea) == "bea-elsewhere:1"
    ada.node.net.roster.tell(bea.id, "confirmed")
    await settle()
    assert ada.space.ls("nodes/members") == before


async def test_what_finds_no_place_is_looked_at_again_when_others_are_known(group):
    ada, bea, cid = group.friends
    origin, newcomer = key("origin"), key("newcomer")
    made = introduction(bea.node, origin, newcomer)
    bea.node.net.introductions.made = lambda: [made]
    bea.node.net.roster.tell(ada.id, "confirmed")
    await settle()
    assert not ada.knows(newcomer)
    said = introduction(cid.node, cid.node.key, origin)
    cid.node.net.introductions.made = lambda: [said]
    cid.node.net.roster.tell(ada.id, "confirmed")
    await settle()
    assert ada.knows(newcomer)
    assert ada.node.net.roster.info(newcomer.node_id).introducer == cid.id


async def test_whom_an_introduced_peer_introduces_counts_once_it_is_confirmed(group):
    ada, bea, _ = group.friends
    came = {"introducer": key("gone").node_id, "hops": 1, "member": b"x"}
    ada.node.net.roster.put(ada.node.net.roster.info(bea.id).model_copy(update=came))
    newcomer = key("newcomer")
    bea.node.net.introductions.made = lambda: [introduction(bea.node, bea.node.key, newcomer)]
    bea.node.net.roster.tell(ada.id, "confirmed")
    await settle()
    assert not ada.knows(newcomer)
    ada.node.net.roster.confirm(bea.id)
    await settle()
    assert ada.knows(newcomer)


async def test_a_node_without_peers_publishes_nothing():
    group = Group("ada")
    (ada,) = group.friends
    await ada.node.net.start()
    ada.start()
    await group.pass_ms(2 * SEEK_INTERVAL_MS)
    assert not ada.space.ls("")
    await ada.stop()
