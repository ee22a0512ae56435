"""Who is known, and by what name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.clock import ManualClock
from xsc.base.errors import (
    ArgumentInvalid,
    PeerUnknown,
    RecordInvalid,
    SpaceExhausted,
    StoreDamaged,
)
from xsc.base.ids import to_text
from xsc.base.limits import PEERS_MAX
from xsc.base.log import SilentLog
from xsc.db.memory import MemoryKeyValue
from xsc.net.peers.roster import (
    PEER_NAME_CHARS_MAX,
    REMOVED,
    AddressRecord,
    PeerInfo,
    Roster,
    is_name,
    unique_name,
)

OWN, A, B = b"\xff" * 32, b"\1" * 32, b"\1" * 31 + b"\2"


def record(name="bert", seq=1, addresses=("127.0.0.1:1",)):
    return AddressRecord(
        name=name, addresses=addresses, fingerprint=None, introducible=True, seq=seq
    )


@pytest.fixture
def store():
    return MemoryKeyValue()


def roster(store):
    return Roster(store, own=OWN, own_name="self", clock=ManualClock(), log=SilentLog())


@pytest.fixture
def book(store):
    return roster(store)


def met(book, node_id, name="bert", own=None):
    info = book.met(node_id, record(name), name=own, signed=b"signed")
    book.put(info)
    return info


@pytest.mark.parametrize("host", ["x" * 64, "a..b", "a." + "x" * 64, "a.", ".a", "\xe4"])
def test_an_address_that_cannot_be_looked_up_is_refused(host):
    record(addresses=("x" * 63 + ".example:1",))
    with pytest.raises(ValueError, match="addresses"):
        record(addresses=(f"{host}:1",))


@given(st.text(max_size=80), st.sets(st.text(max_size=5)))
def test_every_name_is_typable_and_unique(wanted, taken):
    name = unique_name(wanted, A, taken)
    assert is_name(name)
    assert name not in taken
    assert len(name) <= PEER_NAME_CHARS_MAX


def test_names_that_are_taken_get_a_number():
    assert unique_name("bert", A, {"bert", "bert-2"}) == "bert-3"
    assert unique_name("b" * 64, A, {"b" * 64}) == "b" * 62 + "-2"
    assert unique_name("\x1b[2J", A, set()) == to_text(A)[:10]


def test_the_own_name_is_taken(book):
    assert met(book, A, "self").name == "self-2"
    with pytest.raises(ArgumentInvalid):
        met(book, B, own="self")


def test_entries_are_on_the_disk_at_once(book, store):
    met(book, A)
    store.crash()
    again = roster(store)
    assert again.info(A) == book.info(A)
    again.remove(A)
    store.crash()
    assert roster(store).all() == []


def test_who_was_removed_is_listed_newest_first_and_until_it_is_met_again(book, store):
    for number in range(3):
        node_id = bytes([number]) * 32
        met(book, node_id)
        book.remove(node_id)
    assert book.removed() == [b"\2" * 32, b"\1" * 32, b"\0" * 32]
    again = roster(store)
    assert again.removed() == book.removed()
    met(again, b"\1" * 32)
    assert again.removed() == [b"\2" * 32, b"\0" * 32]
    store.write([(REMOVED + A, b"")], sync=True)
    with pytest.raises(StoreDamaged, match="no number"):
        roster(store)


@pytest.mark.parametrize("confirmed", [False, True])
def test_who_was_removed_is_still_counted_with_its_introducer(book, store, confirmed):
    came = {"introducer": B, "hops": 1, "confirmed": confirmed}
    other = b"\2" * 32
    book.put(met(book, other).model_copy(update={"introducer": B, "hops": 1}))
    book.put(met(book, A).model_copy(update=came))
    book.remove(A)
    for found in (book, roster(store)):
        assert found.through(A) == (None if confirmed else B)
        assert found.shares_with(A) == ([A] if confirmed else [other, A])


def test_a_directory_says_what_the_operator_said_and_a_newer_address_stays(book):
    """Over older, same and newer addresses; what the operator decided is taken with each."""
    known = met(book, A, own="mine")
    for seq in (known.seq - 1, known.seq, known.seq + 1):
        told = PeerInfo(
            node_id=A,
            name="told",
            addresses=("127.0.0.1:9",),
            fingerprint=None,
            added_ms=0,
            blocked=True,
            seq=seq,
            introducer=B,
            hops=1,
            confirmed=True,
        )
        book.restore(told)
        info = book.info(A)
        book.put(known)
        assert (info.name, info.blocked, info.confirmed) == ("told", True, True)
        assert (info.introducer, info.hops) == (B, 1)
        assert info.added_ms == known.added_ms
        newer = told if seq > known.seq else known
        assert (info.addresses, info.seq, info.record) == (newer.addresses, newer.seq, newer.record)


def test_what_could_mean_two_means_neither(book):
    met(book, A, "bert")
    met(book, B, to_text(A)[:10])
    with pytest.raises(ArgumentInvalid, match="2 peers"):
        book.find(to_text(A)[:10])
    assert book.find(to_text(A)) == A
    assert book.find(to_text(B)) == B
    assert book.find("bert") == A


def test_a_name_that_is_the_id_of_another_does_not_hide_it(book):
    met(book, A, "bert")
    met(book, B, to_text(A))
    assert book.find(to_text(A)) == A


def test_only_newer_addresses_are_taken_and_the_name_stays(book):
    met(book, A)
    assert book.moved(A, record("other", 1, ("127.0.0.1:2",)), b"") is None
    moved = book.moved(A, record("other", 2, ("127.0.0.1:2",)), b"signed")
    assert moved is not None
    assert (moved.name, moved.addresses, moved.seq) == ("bert", ("127.0.0.1:2",), 2)
    with pytest.raises(PeerUnknown):
        book.moved(B, record(), b"")


def test_peers_are_bounded(book):
    for number in range(PEERS_MAX):
        node_id = number.to_bytes(32, "big")
        book._peers[node_id] = PeerInfo(
            node_id=node_id, name=f"n{number}", addresses=(), fingerprint=None, added_ms=0
        )
    with pytest.raises(SpaceExhausted):
        met(book, A)
    with pytest.raises(SpaceExhausted):
        book.restore(book.info((0).to_bytes(32, "big")).model_copy(update={"node_id": A}))
    met(book, (0).to_bytes(32, "big"))


@pytest.mark.parametrize(
    "address",
    ["host", "host:", ":1", "host:123456", "a b:1", "http://host:1", "host:1/", "u@h:1", "[::1]"],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(RecordInvalid):
        AddressRecord.from_value(
            {
                "v": 1,
                "name": "x",
                "addresses": [address],
                "fingerprint": None,
                "introducible": True,
                "seq": 0,
            }
        )


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:65535", "node-1.example.org:7412"])
def test_what_is_an_address_is_taken(address):
    assert record(addresses=(address,)).addresses == (address,)
