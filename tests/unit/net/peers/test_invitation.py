"""Invitations: once, for a time, in one network, and never by guessing."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.net.nodes import HOUR_MS, Node
from xsc.base.clock import ManualClock
from xsc.base.errors import InvitationInvalid, PeerSilent, RateLimited, Unauthorized
from xsc.db.memory import MemoryKeyValue
from xsc.net.peers import invitation
from xsc.net.peers.invitation import (
    INVITATIONS_OPEN_MAX,
    KEPT_MS,
    PREFIX,
    Invitation,
    Issued,
    from_string,
)
from xsc.net.transport.memory import MemoryNetwork

SECRET = bytes(16)
INVITATION = Invitation(
    node_id=bytes(32),
    name="bert",
    addresses=("192.0.2.1:7412", "[::1]:7412"),
    fingerprint=bytes(32),
    network="xsc",
    secret=SECRET,
    expires_ms=5,
)


def test_the_text_says_all_and_may_be_broken_into_lines():
    text = INVITATION.to_text()
    assert text.startswith("xsc1")
    assert from_string(text) == INVITATION
    lines = "\n  ".join(text[start : start + 60] for start in range(0, len(text), 60))
    assert from_string(f" {lines}\n") == INVITATION


@given(st.integers(0, len(INVITATION.to_text()) - 1))
def test_a_text_cut_short_is_refused(length):
    with pytest.raises(InvitationInvalid):
        from_string(INVITATION.to_text()[:length])


@given(st.text() | st.from_regex(r"xsc1[a-z2-7]*", fullmatch=True))
def test_no_other_text_is_an_invitation(text):
    with pytest.raises(InvitationInvalid):
        from_string(text)


@pytest.mark.parametrize(
    "change",
    [
        {"addresses": ()},
        {"addresses": ("no port",)},
        {"addresses": ("user@host:1",)},
        {"addresses": ("host:1/path",)},
        {"addresses": ("host:1\n",)},
        {"fingerprint": b"short"},
        {"secret": b"short"},
        {"expires_ms": -1},
        {"node_id": b"short"},
    ],
)
def test_an_invitation_with_a_wrong_field_is_refused(change):
    with pytest.raises(InvitationInvalid):
        from_string(INVITATION.model_copy(update=change).to_text())


# The issuer's side


@pytest.fixture
def store():
    return MemoryKeyValue()


def redeem(store, caller, *, now_ms=0, known=False, secret=SECRET):
    change = invitation.redeem(store, secret, caller, known=known, now_ms=now_ms)
    store.write([change], sync=True)


def test_the_secret_is_not_on_the_disk(store):
    invitation.issue(store, b"0123456789abcdef", expires_ms=10, now_ms=0)
    assert b"0123456789abcdef" not in b"".join(key + value for key, value in store.scan(b""))


def test_a_secret_works_once_and_again_only_for_the_same_peer(store):
    invitation.issue(store, SECRET, expires_ms=10, now_ms=0)
    redeem(store, b"a" * 32)
    with pytest.raises(InvitationInvalid, match="used"):
        redeem(store, b"b" * 32)
    with pytest.raises(InvitationInvalid, match="used"):
        redeem(store, b"a" * 32)
    redeem(store, b"a" * 32, known=True, now_ms=99)
    with pytest.raises(InvitationInvalid, match="used"):
        redeem(store, b"b" * 32, known=True)


def test_a_secret_works_until_its_time_and_survives_a_crash(store):
    invitation.issue(store, SECRET, expires_ms=10, now_ms=0)
    store.crash()
    with pytest.raises(InvitationInvalid, match="expired"):
        redeem(store, b"a" * 32, now_ms=10)
    redeem(store, b"a" * 32, now_ms=9)
    store.crash()
    with pytest.raises(InvitationInvalid, match="used"):
        redeem(store, b"b" * 32, now_ms=9)


def test_a_secret_that_was_not_issued_is_refused(store):
    invitation.issue(store, SECRET, expires_ms=10, now_ms=0)
    with pytest.raises(InvitationInvalid, match="no such"):
        redeem(store, b"a" * 32, secret=b"\1" * 16)


def test_open_invitations_are_bounded_and_old_ones_dropped(store):
    raw = Issued(expires_ms=10).to_bytes()
    many = [(PREFIX + number.to_bytes(32, "big"), raw) for number in range(INVITATIONS_OPEN_MAX)]
    store.write(many, sync=True)
    with pytest.raises(RateLimited):
        invitation.issue(store, b"x" * 16, expires_ms=10, now_ms=10 + KEPT_MS)
    invitation.issue(store, b"x" * 16, expires_ms=99, now_ms=11 + KEPT_MS)
    assert len(list(store.scan(b""))) == 1


# Between nodes


@pytest.fixture
async def nodes():
    network = MemoryNetwork(ManualClock())
    started = {name: Node(network, name) for name in ("anna", "bert", "carl")}
    for node in started.values():
        await node.net.start()
    yield started
    for node in started.values():
        await node.net.stop()


async def test_of_many_who_join_at_once_one_is_let_in(nodes):
    network = nodes["anna"].memory
    crowd = [Node(network, f"node{number}") for number in range(8)]
    text = nodes["bert"].net.invite(HOUR_MS)
    results = await asyncio.gather(*(node.net.join(text) for node in crowd), return_exceptions=True)
    assert sum(result == nodes["bert"].id for result in results) == 1
    assert sum(isinstance(result, InvitationInvalid) for result in results) == 7
    assert len(nodes["bert"].net.peers()) == 1


async def test_an_invitation_survives_a_restart_of_its_issuer(nodes):
    text = nodes["bert"].net.invite(HOUR_MS)
    await nodes["bert"].restart()
    await nodes["anna"].net.join(text)
    await nodes["bert"].restart()
    with pytest.raises(InvitationInvalid, match="used"):
        await nodes["carl"].net.join(text)


async def test_who_lost_the_answer_may_ask_again(nodes):
    text = nodes["bert"].net.invite(HOUR_MS)
    await nodes["anna"].net.join(text)
    nodes["anna"].net.roster.remove(nodes["bert"].id)
    assert await nodes["anna"].net.join(text) == nodes["bert"].id
    assert nodes["bert"].changes == [(nodes["anna"].id, "added")]


async def test_an_expired_invitation_is_refused_on_both_sides(nodes):
    anna, bert = nodes["anna"], nodes["bert"]
    text = bert.net.invite(1_000)
    bert.clock.advance_to(bert.clock.now_ms() + 1_000)
    with pytest.raises(InvitationInvalid, match="expired"):
        await anna.net.join(text)
    anna.clock.advance_to(bert.clock.now_ms())
    before = len(anna.memory.trace)
    with pytest.raises(InvitationInvalid, match="expired"):
        await anna.net.join(text)
    assert len(anna.memory.trace) == before


async def test_a_forged_secret_is_told_nothing_but_no(nodes):
    anna, bert = nodes["anna"], nodes["bert"]
    true = from_string(bert.net.invite(HOUR_MS))
    forged = true.model_copy(update={"secret": bytes(16)})
    with pytest.raises(InvitationInvalid, match="no such"):
        await anna.net.join(forged.to_text())
    assert bert.net.peers() == []


async def test_an_invitation_to_another_network_is_refused_before_anything_is_sent(nodes):
    anna = nodes["anna"]
    other = Node(anna.memory, "other", network_name="elsewhere")
    await other.net.start()
    with pytest.raises(InvitationInvalid, match="elsewhere"):
        await anna.net.join(other.net.invite(HOUR_MS))
    assert not anna.memory.trace


async def test_a_node_does_not_join_itself(nodes):
    anna = nodes["anna"]
    with pytest.raises(InvitationInvalid, match="itself"):
        await anna.net.join(anna.net.invite(HOUR_MS))


async def test_another_node_at_the_address_is_not_taken_for_the_issuer(nodes):
    text = nodes["bert"].net.invite(HOUR_MS)
    elsewhere = from_string(text).model_copy(update={"addresses": ("carl:1",)}).to_text()
    with pytest.raises(Unauthorized):
        await nodes["anna"].net.join(elsewhere)
    assert nodes["anna"].net.peers() == []


async def test_an_issuer_that_is_away_is_silent_and_the_invitation_still_good(nodes):
    anna, bert = nodes["anna"], nodes["bert"]
    text = bert.net.invite(HOUR_MS)
    anna.memory.kill("bert")
    with pytest.raises(PeerSilent):
        await anna.net.join(text)
    await bert.restart()
    assert await anna.net.join(text) == bert.id
