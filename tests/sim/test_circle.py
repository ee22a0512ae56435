"""Friends find each other: one invitation, introductions, and addresses that travel."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim.network import World, content, exposure, get, put, run, store
from tests.sim.test_recovery import back, place_of
from tests.sim.test_slots import A_STEP, cleared, leased
from tests.unit.node.test_routes import Api
from xsc.allocation.declaring import Statement
from xsc.api.objects import Domains
from xsc.base.errors import DurabilityUnreachable, PeerUnknown, XscError
from xsc.base.ids import to_text
from xsc.base.limits import INTRODUCED_A_PEER_MAX, MIB, REMOVED_LISTED_MAX
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.net.peers.circle import Introduction, Member
from xsc.net.peers.roster import AddressRecord, PeerInfo
from xsc.node.home.recover import find_head
from xsc.node.routes import status
from xsc.node.routes.objects import _introducers
from xsc.node.routes.peers import _row
from xsc.storage.catalogue.directory import open_body, open_head
from xsc.storage.object.durability import parse
from xsc.terms.slot import AvailabilitySlot, NeedSlot

DAY_MS = 86_400_000
INTRODUCED = {"accept_peers": "introduced"}


class Star(World):
    """Nodes of which each has one invitation: of node-0. Guests come by one of whom they like."""

    async def meet(self):
        for node in self.nodes[1:]:
            await node.peers.join(self.nodes[0].peers.invite(60_000))

    async def guest(self, host):
        index = await self.add()
        await self.nodes[index].peers.join(self.nodes[host].peers.invite(60_000))
        return index

    def knows(self, index, other):
        return ids(self, other)[0] in self.nodes[index].peers.peers()


def ids(world, *indexes):
    return [world.nodes[index].key.node_id for index in indexes]


async def move(world, *indexes):
    """Let nodes go on elsewhere, all at once."""
    for index in indexes:
        await world.crash(index)
        world.places[index] = f"{world.place(index)}-moved"
    for index in indexes:
        await world.restart(index)


def introduces(origin, *keys):
    """Let a node introduce keys that need not run anywhere, and then those that it knows."""
    made, said = origin.peers.introductions.made, [introduction(origin, key) for key in keys]
    origin.peers.introductions.made = lambda: [*said, *made()][:INTRODUCED_A_PEER_MAX]
    publish(origin)


def publish(node):
    """Have a node look again at what it publishes."""
    node.peers.roster.tell(node.peers.peers()[0], "confirmed")


def introduction(origin, key):
    """Return that a node introduces a key."""
    member = Member(node=key.node_id, hops=1, since_ms=1)
    record = AddressRecord(
        name="sham", addresses=("nowhere:1",), fingerprint=None, introducible=True, seq=1
    )
    network = origin.peers.network
    return Introduction(
        member=sign(member, origin.key, network).raw, record=sign(record, key, network).raw
    )


# One invitation


@pytest.mark.parametrize("count", [7, 12])
def test_one_invitation_makes_a_member_and_its_first_put_lies_on_six_nodes(count):
    async def play(world):
        newest = world.nodes[-1]
        capability = await put(newest, content(MIB))
        hosts = {host.node for host in (await newest.storage.stat(capability)).hosts}
        assert len(hosts) == 6
        assert newest.key.node_id not in hosts
        assert await get(world.nodes[1], capability) == content(MIB)

    run(1, count, play, INTRODUCED, kind=Star)


def test_everybody_knows_who_introduced_whom():
    async def play(world):
        (hub,) = ids(world, 0)
        for node in world.nodes:
            for peer in node.peers.peers():
                info = node.peers.roster.info(peer)
                direct = hub in (peer, node.key.node_id)
                assert info.introducer == (None if direct else hub)
                assert info.hops == (0 if direct else 1)

    run(2, 4, play, INTRODUCED, kind=Star)


def test_a_guest_of_a_member_knows_the_whole_circle_and_its_own_guest_does_not():
    async def play(world):
        guest = await world.guest(1)
        await world.until(lambda: len(world.nodes[guest].peers.peers()) == 4)
        for index in (0, 2, 3):
            assert world.nodes[guest].peers.roster.info(*ids(world, index)).introducer in ids(
                world, 1
            )
            await world.until(lambda index=index: world.knows(index, guest))
        assert world.nodes[2].peers.roster.info(*ids(world, guest)).introducer in ids(world, 0)
        assert world.nodes[2].peers.roster.info(*ids(world, guest)).hops == 2
        far = await world.guest(guest)
        await world.until(lambda: world.knows(1, far))
        await world.clock.sleep_ms(60_000)
        # Two introductions, by 1 and by 0, would lie between them: that is where it ends.
        assert world.knows(0, far)
        assert not world.knows(2, far)
        assert not world.knows(3, far)

    run(3, 4, play, INTRODUCED, kind=Star)


def test_who_wants_invitations_alone_is_introduced_to_nobody_and_nobody_to_it():
    def prepare(world):
        world.settings_of[2] = {"accept_peers": "invited"}
        world.sees_all = lambda node: len(node.peers.peers()) >= 1

    async def play(world):
        await world.clock.sleep_ms(60_000)
        known = [sorted(map(world.index_of, node.peers.peers())) for node in world.nodes]
        assert known == [[1, 2, 3], [0, 3], [0], [0, 1]]

    run(4, 4, play, INTRODUCED, prepare, kind=Star)


# Who is removed stays so


@pytest.mark.parametrize("how", ["remove", "block"])
def test_who_was_removed_or_blocked_is_not_brought_back_by_an_introduction(how):
    async def play(world):
        (other,) = ids(world, 2)
        getattr(world.nodes[1].peers.roster, how)(other)
        # The introducer tells of all its friends again: for a new one, and after a start of both.
        guest = await world.guest(0)
        await world.until(lambda: world.knows(1, guest))
        for index in (0, 1):
            await world.crash(index)
            await world.restart(index)
            await world.clock.sleep_ms(30_000)
        assert not world.knows(1, 2)
        # A recovery brings back what the operator said, and nobody against it.
        place = place_of(world, 0)
        await world.lose(1)
        await back(world, 1, place)
        await world.crash(0)
        await world.restart(0)
        await world.clock.sleep_ms(30_000)
        assert world.knows(1, guest)
        assert not world.knows(1, 2)
        if how == "block":
            assert world.nodes[1].peers.roster.info(other).blocked
            world.nodes[1].peers.roster.remove(other)
            await world.clock.sleep_ms(30_000)
            assert not world.knows(1, 2)
        # An invitation is the operator's word, and brings it back.
        await world.nodes[2].peers.join(world.nodes[1].peers.invite(60_000))
        assert world.nodes[1].peers.roster.info(other).introducer is None

    run(5, 3, play, INTRODUCED, kind=Star)


def test_whom_a_removed_introducer_brought_stays_unconfirmed_and_it_brings_nobody_more():
    async def play(world):
        hub, two, three = ids(world, 0, 2, 3)
        one = world.nodes[1]
        one.peers.roster.remove(hub)
        guest = await world.guest(0)
        await world.until(lambda: world.knows(2, guest))
        await world.clock.sleep_ms(30_000)
        assert sorted(one.peers.peers()) == sorted([two, three])
        assert one.peers.roster.shares_with(two) == sorted([two, three], key=world.index_of)
        assert one.peers.roster.info(two).introducer == hub
        one.peers.roster.confirm(two)
        assert one.peers.roster.shares_with(two) == [two]
        assert one.peers.roster.shares_with(three) == [three]
        with pytest.raises(PeerUnknown):
            one.peers.roster.info(hub)

    run(6, 4, play, INTRODUCED, kind=Star)


# Sham friends


DEAR = {
    **INTRODUCED,
    "starter_credit": "0.001",
    # The credit of one is what a MiB costs in an hour.
    "storage_price_gib_hour": "1000000",
    "storage_price_max_gib_hour": "4000000",
}


async def takes(host, node):
    """Store 64 KiB at a host; say whether the node's credit allows that."""
    others = frozenset(node.peers.peers()) - {host.key.node_id} | {node.key.node_id}
    number = host.shards.used_bytes
    try:
        found = await node.market.buyer.lease_hosts(size_bytes=65_536, count=1, exclude=others)
        await store(node, *found.leases, number, content(65_536, number))
    except (XscError, TypeError):
        return False
    return True


def test_those_that_one_peer_introduced_share_one_starter_credit():
    async def play(world):
        host = world.nodes[1]
        shams = world.nodes[2:]
        limit = host.config.starter_credit_micro

        def owed():
            return exposure(host, shams[0].key.node_id)

        # At the same time, and one after the other, until nobody gets any more.
        granted = await asyncio.gather(*(takes(host, sham) for sham in shams))
        assert any(granted)
        while any([await takes(host, sham) for sham in shams]):
            host.market.headroom.refresh()
            assert owed() <= limit
        assert limit // 2 < owed() <= limit
        # Each that the operator answers for has a credit of its own again.
        for sham in shams:
            host.peers.roster.confirm(sham.key.node_id)
        assert any([await takes(host, sham) for sham in shams])
        assert sum(exposure(host, sham.key.node_id) for sham in shams) > limit

    run(7, 6, play, DEAR, kind=Star)


def test_a_credit_that_several_share_is_shown_once_and_not_as_one_each():
    async def play(world):
        hub, one, two = ids(world, 0, 2, 3)
        node, limit = world.nodes[1], 5_000_000
        for peer, micro in ((hub, 7_000_000), (one, limit), (two, limit)):
            await node.ledger.set_limit(peer, micro)
        api = Api(node)

        async def shown():
            answer = await api.call("GET", "/v1/ledger/balance")
            return {row["peer"]: row["shared_through"] for row in answer["balances"]}, answer

        through, answer = await shown()
        assert through == {
            to_text(hub): None,
            to_text(one): to_text(hub),
            to_text(two): to_text(hub),
        }
        (credit,) = answer["shared"]
        assert (credit["through"], credit["limit_micro"]) == (to_text(hub), limit)
        assert {each["id"] for each in credit["peers"]} == {to_text(one), to_text(two)}
        assert credit["left_micro"] == limit
        assert _row(node, one).shared_through == to_text(hub)
        assert _row(node, hub).shared_through is None
        # What one takes is gone for the other.
        assert await takes(node, world.nodes[2])
        (credit,) = (await shown())[1]["shared"]
        assert credit["left_micro"] == limit - exposure(node, two) < limit
        node.peers.roster.confirm(one)
        through, answer = await shown()
        assert set(through.values()) == {None}
        assert answer["shared"] == []

    run(7, 4, play, DEAR, kind=Star)


def test_those_that_share_a_credit_have_leases_of_no_more_than_it_pays():
    """Six of them were granted six times as much, and owed it half an hour later."""

    async def play(world):
        host, shams = world.nodes[1], world.nodes[2:]
        for sham in shams:
            await sham.commitments.declare(
                NeedSlot, "storage", Statement(quantity=4_000, price=1_000 * A_STEP)
            )
        # Alone, the first to be heard would have all of the credit.
        await host.commitments.declare(
            AvailabilitySlot, "storage", Statement(quantity=8_000, price=10 * A_STEP)
        )
        await world.until(
            lambda: len({view.peer for view in cleared(host, "provider")}) > 1,
            within_ms=600_000,
        )
        await world.clock.sleep_ms(5_000)
        limit = host.config.starter_credit_micro
        assert limit // 2 < leased(host, "provider") * 10 <= limit

    settings = {
        **INTRODUCED,
        "offer": "none",
        "starter_credit": "0.01",
        "storage_capacity": "512GiB",
    }
    run(7, 5, play, settings, kind=Star)


def test_who_is_removed_leaves_its_group_no_credit_that_it_used():
    async def play(world):
        host, (one, two) = world.nodes[1], world.nodes[2:]
        while await takes(host, one):
            pass
        owed = exposure(host, two.key.node_id)
        assert owed > host.config.starter_credit_micro // 2
        host.peers.roster.remove(one.key.node_id)
        for _ in range(2):
            host = world.nodes[1]
            assert exposure(host, two.key.node_id) >= owed
            assert exposure(host, one.key.node_id) >= owed
            assert not await takes(host, two)
            await world.crash(1)
            await world.restart(1)

    run(17, 4, play, DEAR, kind=Star)


def test_an_introducer_makes_so_many_known_and_no_more():
    async def play(world):
        one, sham = world.nodes[1], world.nodes[0]
        book = sham.peers.roster
        for number in range(INTRODUCED_A_PEER_MAX + 10):
            key = KeyPair(number.to_bytes(32, "big"))
            record = AddressRecord(
                name="x",
                addresses=(f"sham-{number}:1",),
                fingerprint=None,
                introducible=True,
                seq=number,
            )
            signed = sign(record, key, sham.peers.network)
            met = book.met(key.node_id, record, signed=signed.raw)
            book.put(met.model_copy(update={"added_ms": number}))
            # Others each time, so that more are named than fit one greeting.
            if number % 30 == 29:
                publish(sham)
                await world.clock.sleep_ms(1_000)
                for peer in sham.peers.peers():
                    if peer != one.key.node_id:
                        book.remove(peer)
        publish(sham)
        await world.clock.sleep_ms(1_000)
        brought = [p for p in one.peers.peers() if one.peers.roster.info(p).introducer is not None]
        assert len(brought) == INTRODUCED_A_PEER_MAX

    run(11, 2, play, INTRODUCED, kind=Star)


@pytest.mark.parametrize("direct", [True, False])
def test_who_brings_shams_by_several_friends_is_one_introducer_with_one_credit(direct):
    """The origin is invited by the friends 1 and 2, and by the victim or not."""

    def prepare(world):
        world.settings_of[3] = {"accept_peers": "invited"}
        world.sees_all = lambda node: len(node.peers.peers()) >= 3 - (not direct)

    async def play(world):
        victim, origin = world.nodes[0], world.nodes[3]
        keys = [KeyPair(bytes([number]) * 32) for number in (1, 2)]
        # With a record that lets the friends introduce the origin itself as well.
        origin.peers.own_address.introducible = True
        origin.peers.own_address.begin()
        introduces(origin, *keys)
        await world.clock.sleep_ms(20_000)
        shams = [key.node_id for key in keys]
        assert set(shams) < set(victim.peers.peers())
        by = {victim.peers.roster.info(sham).through for sham in shams}
        assert len(by) == 1
        assert direct == (by == {origin.key.node_id})
        assert set(victim.peers.roster.shares_with(shams[0])) >= set(shams)
        assert len({victim.peers.roster.introducer_of(sham) for sham in shams}) == 1

    class Friends(World):
        async def meet(self):
            for one, other in [(0, 1), (0, 2), (1, 3), (2, 3)] + [(0, 3)] * direct:
                await self.nodes[one].peers.join(self.nodes[other].peers.invite(60_000))

    run(15, 4, play, INTRODUCED, prepare, kind=Friends)


def test_a_guest_that_brings_all_it_may_leaves_room_for_the_newcomers_of_its_host():
    async def play(world):
        hub, other, guest = world.nodes[0], world.nodes[1], world.nodes[2]
        keys = [KeyPair((9_000 + n).to_bytes(32, "big")) for n in range(INTRODUCED_A_PEER_MAX)]
        introduces(guest, *keys)
        shams = {key.node_id for key in keys}
        await world.until(lambda: len(shams.intersection(hub.peers.peers())) == len(shams))
        await world.clock.sleep_ms(20_000)
        assert len(shams.intersection(other.peers.peers())) == INTRODUCED_A_PEER_MAX // 2
        newcomer = await world.guest(0)
        await world.until(lambda: world.knows(1, newcomer))
        # And one of another member, that the hub passes on.
        far = await world.guest(3)
        await world.until(lambda: world.knows(1, far))

    run(16, 4, play, INTRODUCED, kind=Star)


def test_a_contract_names_introducers_and_check_says_who_brought_the_hosts():
    async def play(world):
        owner, hub = world.nodes[-1], world.nodes[0]

        async def check(capability):
            return await owner.storage.check(
                capability, deep=False, lives_ms=owner.config.lives_ms, repair_ms=DAY_MS
            )

        asked = parse("2nodes,1introducer")
        with pytest.raises(DurabilityUnreachable, match="at 2 known introducers survive the loss"):
            await put(owner, content(MIB), contract=asked)
        found = await check(await put(owner, content(MIB)))
        assert found.domains["introducer"] == Domains(known=1, unknown=0)
        assert found.survives == "2nodes"
        (row,) = _introducers(owner, found)
        assert (row.id, row.hosts, row.brought) == (hub.key.node_id, 6, 5)
        # Whom the operator answers for is a domain of its own.
        for node in world.nodes[1:5]:
            owner.peers.roster.confirm(node.key.node_id)
        found = await check(await put(owner, content(MIB, 1), contract=asked))
        assert found.contract_kept
        assert found.domains["introducer"] == Domains(known=5, unknown=0)

    run(14, 7, play, INTRODUCED, kind=Star)


# Addresses


def test_a_recovered_node_knows_who_was_introduced():
    async def play(world):
        node, (hub, other) = world.nodes[1], ids(world, 0, 2)
        removed = [number.to_bytes(32, "big") for number in range(REMOVED_LISTED_MAX + 1)]
        node.peers.roster.restore_removed(removed[::-1])
        await node.directory.told()
        body = open_body(
            open_head(node.directory.head, node.key.node_id, node.peers.network).record, node.key
        )
        told = [PeerInfo.from_bytes(peer) for peer in body.peers]
        assert {peer.node_id: peer.introducer for peer in told} == {hub: None, other: hub}
        await world.lose(1)
        again = world.make(1, recovering=True)
        again.peers.roster.restore(node.peers.roster.info(hub))
        await find_head(again, set(), set())
        assert again.peers.roster.info(other).through == hub
        assert again.peers.roster.info(hub).through is None
        # Of those that were removed, the newest.
        assert again.peers.roster.removed() == removed[:0:-1]
        await again.stop_recovering()

    run(12, 3, play, INTRODUCED, kind=Star)


def test_two_nodes_that_move_at_once_meet_again_through_a_common_friend():
    async def play(world):
        await move(world, 0, 1)
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))

    run(8, 6, play)


@pytest.mark.parametrize("moved", [2, 5])
def test_any_number_may_move_at_once_but_for_one_that_all_know(moved):
    async def play(world):
        await move(world, *range(moved))
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))

    run(9, 6, play)


def test_who_moves_while_it_runs_tells_its_peers():
    async def play(world):
        node = world.nodes[0]
        node.peers.own_address.advertise = ("node-0-elsewhere:1",)
        await world.until(
            lambda: all(
                other.peers.roster.info(node.key.node_id).addresses == ("node-0-elsewhere:1",)
                for other in world.nodes[1:]
            )
        )

    run(10, 3, play)


# What others say of the way here


def test_a_node_that_nobody_reaches_learns_it_from_those_that_try():
    def prepare(world):
        world.settings_of[0] = {"advertise": "nowhere:1"}
        world.sees_all = lambda node: True

    async def play(world):
        node, others = world.nodes[0], world.nodes[1:]
        await world.until(
            lambda: status._peers(node, node.health.table()).not_reached_by == len(others)
        )
        said = status._peers(node, node.health.table())
        assert (said.known, said.healthy, said.reached_by) == (2, 2, 0)
        assert [_row(node, peer).reaches_us for peer in node.peers.peers()] == [False, False]
        node.peers.own_address.advertise = ()
        await world.until(
            lambda: status._peers(node, node.health.table()).reached_by == len(others)
        )

    run(13, 3, play, prepare=prepare, kind=Hidden)


class Hidden(World):
    """A network where node-0 came by the invitations of others: its own would lead nowhere."""

    async def meet(self):
        for other in self.nodes[1:]:
            await self.nodes[0].peers.join(other.peers.invite(60_000))
