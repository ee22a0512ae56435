"""Introductions and addresses: whose word counts for what, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.net.nodes import HOUR_MS, Node, acquainted
from tests.unit.net.test_service import Outsider
from xsc.base.clock import ManualClock
from xsc.base.errors import (
    ConfigInvalid,
    PeerError,
    RateLimited,
    RecordInvalid,
    SignatureInvalid,
    XscError,
)
from xsc.base.limits import INTRODUCED_A_PEER_MAX, PEERS_MAX
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.net.peers import circle
from xsc.net.peers.circle import INTRODUCTION_HOPS_MAX, Introduction, Member
from xsc.net.peers.introductions import INTRODUCTIONS_A_PEER_MAX
from xsc.net.peers.roster import (
    PEER_ADDRESS_CHARS_MAX,
    PEER_ADDRESSES_MAX,
    PEER_NAME_CHARS_MAX,
    AddressRecord,
    PeerInfo,
)
from xsc.net.transport.memory import MemoryNetwork
from xsc.space.limits import VALUE_INLINE_BYTES_MAX


def key(name: str) -> KeyPair:
    return KeyPair(name.encode().ljust(32, b"\0"))


def address(node: Node, who: KeyPair, **changes) -> bytes:
    values = {
        "name": "newcomer",
        "addresses": ("newcomer:1",),
        "fingerprint": None,
        "introducible": True,
        "seq": 1,
    }
    return sign(AddressRecord(**{**values, **changes}), who, node.net.network).raw


def introduction(node: Node, by: KeyPair, who: KeyPair, **changes) -> dict[str, bytes]:
    member = Member(node=who.node_id, hops=1, since_ms=0)
    return Introduction(
        member=sign(member, by, node.net.network).raw, record=address(node, who, **changes)
    )


def forged_hops(node: Node, by: KeyPair, who: KeyPair) -> bytes:
    member = Member(node=who.node_id, hops=1, since_ms=0).model_copy(update={"hops": 2})
    return sign(member, by, node.net.network).raw


class Friend(Outsider):
    """A peer of a node that says what it likes."""

    def says(self, *members):
        """Publish where it is, and whom it introduces."""
        record = address(self.target, self.key, name="friend", addresses=("friend:1",))
        self.target.net.introductions.learn(self.key.node_id, record)
        return self.target.net.introductions.take(self.key.node_id, members)

    def refused(self, *members):
        with pytest.raises(XscError) as fault:
            self.says(*members)
        return fault.type


@pytest.fixture
async def met() -> AsyncIterator[tuple[Node, Friend]]:
    """A node that takes introductions, and a direct peer."""
    node = Node(MemoryNetwork(ManualClock()), "anna", accepts=True)
    await node.net.start()
    friend = Friend(node, key("friend"))
    invitation = node.net.invite(HOUR_MS)
    secret = circle_secret(invitation)
    record = address(node, friend.key, name="friend", addresses=("friend:1",))
    answer = await friend.send(
        friend.request("peers.join", header={"secret": secret, "record": record})
    )
    assert answer.status == 200
    yield node, friend
    await node.net.stop()


def circle_secret(invitation: str) -> bytes:
    from xsc.net.peers.invitation import from_string

    return from_string(invitation).secret


# Rules


def info(number: int, **changes) -> PeerInfo:
    values = {
        "node_id": number.to_bytes(32, "big"),
        "name": f"n{number}",
        "addresses": (),
        "fingerprint": None,
        "added_ms": number,
        "record": b"signed",
        "introducible": True,
    }
    return PeerInfo(**{**values, **changes})


HUB = (10**6).to_bytes(32, "big")
PEERS = st.builds(
    lambda number, blocked, introducible, record, introducer, hops, confirmed, member: info(
        number,
        member=member if introducer else b"",
        blocked=blocked,
        introducible=introducible,
        record=record,
        introducer=introducer,
        hops=hops if introducer else 0,
        confirmed=confirmed,
    ),
    st.integers(0, 200),
    st.booleans(),
    st.booleans(),
    st.sampled_from([b"", b"signed"]),
    st.sampled_from([None, HUB, (3).to_bytes(32, "big")]),
    st.integers(1, INTRODUCTION_HOPS_MAX),
    st.booleans(),
    st.sampled_from([b"", b"signed"]),
)


@given(st.lists(PEERS, unique_by=lambda peer: peer.node_id))
def test_whoever_is_introduced_allows_it_and_is_near_enough(known):
    for found, member in circle.members(known):
        assert found.introducible
        assert found.record
        assert not found.blocked
        assert circle.hops_to(found) < INTRODUCTION_HOPS_MAX
        # For whom it knows directly it signs; of others it passes on what was signed.
        assert (member is None) == (found.through is not None)
        assert found.through is None or found.member


@given(st.integers(0, 2 * INTRODUCED_A_PEER_MAX), st.integers(0, 2 * INTRODUCED_A_PEER_MAX))
def test_an_introducer_has_room_within_its_share_and_that_of_all(brought, free):
    peers = [info(n, introducer=HUB, hops=1) for n in range(brought)]
    peers += [info(n) for n in range(brought, PEERS_MAX - 1 - free)]
    peers.append(info(0, node_id=HUB))
    has_room = brought < INTRODUCED_A_PEER_MAX and len(peers) < PEERS_MAX
    assert circle.place_for(HUB, peers) == (circle.Place(HUB, 1) if has_room else None)
    assert free > 0 or not has_room


@given(st.integers(0, 3 * INTRODUCED_A_PEER_MAX))
def test_no_more_are_named_than_are_taken(count):
    named = circle.members([info(number) for number in range(2, count + 2)])
    assert len(named) == min(count, INTRODUCED_A_PEER_MAX)


def signed_by(origin: int) -> bytes:
    return sign(Member(node=bytes(32), hops=1, since_ms=0), ORIGINS[origin], bytes(32)).raw


ORIGINS = [key(f"origin {number}") for number in range(4)]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=3 * INTRODUCED_A_PEER_MAX))
def test_whoever_signs_an_introducer_brings_so_many_and_no_origin_takes_the_room_of_others(words):
    hub, *guests = (origin.node_id for origin in ORIGINS)
    known = [info(0, node_id=hub)]
    known += [info(n, node_id=guest, introducer=hub, hops=1) for n, guest in enumerate(guests, 1)]
    for number, (origin, confirmed) in enumerate(words, 10):
        place = circle.place_for(ORIGINS[origin].node_id, known)
        if place is None:
            continue
        assert place == circle.Place(hub, 2 if origin else 1)
        known.append(
            info(
                number,
                introducer=hub,
                hops=place.hops,
                member=signed_by(origin),
                confirmed=confirmed and origin > 0,
            )
        )
        count = Counter((peer.hops, circle.origin_of(peer)) for peer in known if peer.through)
        far = [count[2, guest] for guest in guests]
        # The last part of two is for whoever signed nothing yet.
        assert all(2 * own <= INTRODUCED_A_PEER_MAX - (sum(far) - own) for own in far)
        assert count[1, hub] <= INTRODUCED_A_PEER_MAX
    if sum(origin == 0 for origin, _ in words) < INTRODUCED_A_PEER_MAX - len(guests):
        assert circle.place_for(hub, known) is not None, "guests leave room for the hub's own"
    if not any(origin == 1 for origin, _ in words):
        assert circle.place_for(guests[0], known) is not None, "and for another guest's"


@pytest.mark.parametrize(
    "changes",
    [{"blocked": True}, {"introducer": HUB, "hops": 2}, {"introducer": key("gone").node_id}],
)
def test_nobody_comes_by_a_peer_that_is_blocked_too_far_or_came_by_one_that_is_gone(changes):
    changes = {"hops": 1 if "introducer" in changes else 0, **changes}
    known = [info(1, node_id=HUB), info(2, **changes)]
    assert circle.place_for(info(2).node_id, known) is None
    assert circle.place_for(info(3).node_id, known) is None
    assert circle.place_for(HUB, known) == circle.Place(HUB, 1)


@given(st.integers(0, 40), st.integers(1, 10))
def test_in_some_turns_everything_was_taken_in(count, most):
    items = list(range(count))
    turns = [circle.in_turn(items, turn, most) for turn in range(count // most + 2)]
    assert {item for turn in turns for item in turn} == set(items)
    assert all(len(set(turn)) == len(turn) <= most for turn in turns)


# Introductions


async def test_only_a_direct_peer_introduces(met):
    node, friend = met
    friend.says(introduction(node, friend.key, key("one")))
    assert node.net.roster.info(key("one").node_id).introducer == friend.key.node_id
    introduced = Friend(node, key("one"))
    introduced.says(introduction(node, introduced.key, key("two")))
    assert key("two").node_id not in node.net.peers()
    node.net.roster.confirm(key("one").node_id)
    introduced.says(introduction(node, introduced.key, key("two")))
    assert node.net.roster.info(key("two").node_id).introducer == key("one").node_id


async def test_who_is_passed_on_comes_by_the_origin_of_the_signed_record(met):
    node, friend = met
    origin, newcomer = key("origin"), key("newcomer")
    passed_on = introduction(node, origin, newcomer)
    friend.says(passed_on)
    assert node.net.peers() == [friend.key.node_id], "nobody knows the origin"
    # It is named in the same list: then its introducer answers for what it signs.
    friend.says(introduction(node, friend.key, origin), passed_on)
    info = node.net.roster.info(newcomer.node_id)
    assert (info.introducer, info.hops) == (friend.key.node_id, 2)
    assert info.member == passed_on.member
    # A direct peer answers itself for what it signs, whoever passes it on.
    node.net.roster.confirm(origin.node_id)
    friend.says(introduction(node, origin, key("second")))
    info = node.net.roster.info(key("second").node_id)
    assert (info.introducer, info.hops) == (origin.node_id, 1)


async def test_an_introduced_peer_brings_no_publication_about_by_its_records(met):
    node, friend = met
    friend.says(introduction(node, friend.key, key("one")))

    def publishes(who, seq):
        """Say that one is not introducible, and that it is; return whether others hear of it."""
        return [
            node.net.introductions.learn(
                who.node_id, address(node, who, seq=seq + number, introducible=introducible)
            )
            for number, introducible in enumerate([False, True])
        ]

    assert publishes(key("one"), 2) == [False, False]
    # Of a direct one it is known at once.
    assert publishes(friend.key, 2) == [True, True]


async def test_nobody_is_introduced_without_its_own_word(met):
    node, friend = met
    other = key("other")
    member = introduction(node, friend.key, other)
    by_another = member.model_copy(update={"record": address(node, friend.key)})
    assert friend.refused(by_another) is SignatureInvalid
    against_its_will = introduction(node, friend.key, other, introducible=False)
    assert friend.refused(against_its_will) is RecordInvalid
    forged = introduction(node, key("third"), other)
    raw = forged.member.replace(key("third").node_id, friend.key.node_id)
    assert friend.refused(forged.model_copy(update={"member": raw})) is SignatureInvalid
    raw = forged_hops(node, friend.key, other)
    passed_on_twice = member.model_copy(update={"member": raw})
    assert friend.refused(passed_on_twice) is RecordInvalid
    assert friend.refused(member.model_copy(update={"member": b"x"})) is RecordInvalid
    assert node.net.peers() == [friend.key.node_id]


async def test_one_bad_introduction_lets_none_of_its_list_in(met):
    node, friend = met
    good = introduction(node, friend.key, key("one"))
    bad = introduction(node, friend.key, key("two"), introducible=False)
    assert friend.refused(good, bad) is RecordInvalid
    assert node.net.peers() == [friend.key.node_id]


async def test_introductions_without_end_are_not_verified_without_end(met):
    node, friend = met
    left_out = introduction(node, key("nobody knows it"), key("one"))
    for _ in range(INTRODUCTIONS_A_PEER_MAX):
        assert not friend.says(left_out)
    assert friend.refused(left_out) is RateLimited
    assert friend.says(), "a list without any is heard"
    assert friend.says(introduction(node, friend.key, friend.key)), "and one of who is known"


async def test_who_is_introduced_is_signed_for_once(met):
    node, _ = met
    for number in range(1, 4):
        node.net.roster.put(info(number))

    def told():
        return [said.member for said in node.net.introductions.made()]

    before = told()
    assert all(member is again for member, again in zip(told(), before, strict=True))
    # What is said of one anew is signed anew.
    node.net.roster.put(info(3, added_ms=99))
    (anew,) = set(told()) - set(before)
    assert open_signed(anew, Member, network=None).record.since_ms == 99


@given(
    st.dictionaries(st.integers(0, INTRODUCED_A_PEER_MAX - 1), st.binary(max_size=2)),
    st.sets(st.binary(max_size=2), max_size=INTRODUCED_A_PEER_MAX),
)
def test_a_list_comes_to_have_what_is_wanted_and_what_stays_is_not_written(held, wanted):
    held = {number: item for item, number in {item: n for n, item in held.items()}.items()}
    changes = circle.slots(held, wanted)
    after = {number: item for number, item in {**held, **changes}.items() if item is not None}
    assert sorted(after.values()) == sorted(wanted)
    assert all(0 <= number < INTRODUCED_A_PEER_MAX for number in after)
    assert not any(held.get(number) in wanted for number in changes)
    assert circle.slots(after, wanted) == {}


def test_the_largest_introduction_travels_beside_its_record():
    who = key("one")
    host = ("h" * 63 + ".") * (PEER_ADDRESS_CHARS_MAX // 64)
    record = AddressRecord(
        name="n" * PEER_NAME_CHARS_MAX,
        addresses=(f"{host}{'h' * (PEER_ADDRESS_CHARS_MAX - 6 - len(host))}:65535",)
        * PEER_ADDRESSES_MAX,
        fingerprint=bytes(32),
        introducible=True,
        seq=2**62,
    )
    said = Introduction(
        member=sign(Member(node=who.node_id, hops=1, since_ms=2**62), who, bytes(32)).raw,
        record=sign(record, who, bytes(32)).raw,
    )
    assert len(said.to_bytes()) <= VALUE_INLINE_BYTES_MAX


async def test_newcomers_of_one_name_get_different_ones(met):
    node, friend = met
    pair = [introduction(node, friend.key, key(name)) for name in ("one", "two")]
    friend.says(*pair)
    names = {node.net.roster.info(key(name).node_id).name for name in ("one", "two")}
    assert names == {"newcomer", "newcomer-2"}


async def test_an_invitation_makes_an_introduced_peer_direct(met):
    node, friend = met
    other = Node(node.memory, "other", accepts=True)
    await other.net.start()
    friend.says(introduction(node, friend.key, other.key))
    assert node.net.roster.shares_with(other.id) == [other.id]
    assert node.net.roster.info(other.id).through == friend.key.node_id
    await other.net.join(node.net.invite(HOUR_MS))
    assert node.net.roster.info(other.id).through is None
    await other.net.stop()


async def test_a_peer_is_called_as_the_operator_likes(met):
    node, friend = met
    node.net.roster.rename(friend.key.node_id, "bob")
    assert node.net.roster.find("bob") == friend.key.node_id
    friend.says()
    await node.restart()
    assert node.net.roster.find("bob") == friend.key.node_id


# Addresses


@pytest.fixture
async def three() -> AsyncIterator[list[Node]]:
    memory = MemoryNetwork(ManualClock())
    nodes = [Node(memory, name) for name in ("anna", "bert", "carl")]
    await acquainted(*nodes)
    yield nodes
    for node in nodes:
        await node.net.stop()


async def test_nobody_can_tell_where_another_is_in_its_own_words(three):
    anna, bert, carl = three
    before = anna.net.roster.info(carl.id)
    lies = [
        address(bert, bert.key, seq=2**60),
        address(bert, key("unknown"), seq=2**60),
        b"x",
    ]
    for lie in lies:
        with pytest.raises(PeerError):
            anna.net.introductions.learn(carl.id, lie)
    anna.net.introductions.learn(carl.id, address(bert, carl.key, seq=0))
    assert anna.net.roster.info(carl.id) == before
    assert set(anna.net.peers()) == {bert.id, carl.id}


class Elsewhere:
    """A transport that serves for others, as one with a certificate does."""

    def __init__(self, inner, *addresses):
        self._inner = inner
        self._addresses = addresses
        self.fingerprint = b"f" * 32

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def addresses(self):
        return self._addresses


async def test_no_invitation_names_loopback_where_the_node_serves_elsewhere():
    memory = MemoryNetwork(ManualClock())
    for addresses, told in [
        (("127.0.0.1:1",), ()),
        (("localhost:1", "[::1]:1"), ()),
        (("127.0.0.1:1", "10.0.0.5:1"), ("10.0.0.5:1",)),
    ]:
        inner = memory.transport("anna")
        node = Node(memory, "anna", transport=Elsewhere(inner, *addresses))
        await node.net.start()
        assert node.net.own_address.addresses() == told
        if told:
            assert node.net.invite(HOUR_MS)
        else:
            with pytest.raises(ConfigInvalid, match="no address"):
                node.net.invite(HOUR_MS)
        await node.net.stop()
