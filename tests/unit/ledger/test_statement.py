"""What a ledger says of its peers, from its state alone."""

from dataclasses import replace

import pytest

from tests.unit.ledger.circle import NETWORK
from xsc.base.limits import AMOUNT_MAX
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.ledger.entry import GENESIS, Half, counter_half
from xsc.ledger.incarnation import NotedAccount
from xsc.ledger.state import LedgerState, Open
from xsc.ledger.statement import credit_left, entry_row, known_peers, note_accounts

ME, PEER = KeyPair(b"\1" * 32), KeyPair(b"\2" * 32)
A, B, C, D = (bytes([number]) * 32 for number in range(10, 14))


def state(**known):
    return replace(LedgerState(me=ME.node_id), **known)


def post():
    return Half(
        kind="post",
        credit=ME.node_id,
        debit=PEER.node_id,
        peer=PEER.node_id,
        seq=5,
        prev=GENESIS,
        amount_micro=70,
        account=b"l" * 32,
        receipt=b"v" * 32,
        created_ms=9,
    )


def test_every_peer_with_an_account_is_known():
    found = state(balances={B: 1}, limits={A: 2}, noted={D: 3}, open={5: Open(C, b"l" * 32, 4)})
    assert known_peers(found) == [A, B, C, D]
    assert known_peers(state()) == []


def test_credit_is_what_the_limit_leaves_beside_own_and_shared_debts():
    found = state(balances={A: 30, B: 20, C: -50}, open={5: Open(A, b"l" * 32, 4)})
    assert credit_left(found, A, 100, [A]) == 66
    assert credit_left(found, A, 100, [A, B]) == 46
    assert credit_left(found, A, 100, [A, C]) == 66, "what is owed to one is no credit of another"
    assert credit_left(found, C, 100, [C, A, B]) == 96
    assert credit_left(found, A, 10, [A]) == -24
    assert credit_left(found, D, 7, []) == 7


def test_what_is_noted_includes_what_is_unproven_and_fits_an_amount():
    found = state(
        next_seq=8,
        balances={A: 30, B: AMOUNT_MAX, C: -AMOUNT_MAX},
        limits={A: 5},
        noted={A: 50, B: 9, C: -9},
        shown={A: 10},
    )
    noted = note_accounts(found)
    assert noted.next_seq == 8
    assert noted.accounts == (
        NotedAccount(A, 70, 5),
        NotedAccount(B, AMOUNT_MAX, None),
        NotedAccount(C, -AMOUNT_MAX, None),
    )


@pytest.mark.parametrize(
    ("known", "shown"),
    [
        ({}, "settled"),
        ({"open": {5: Open(PEER.node_id, b"l" * 32, 70)}}, "open"),
        ({"voided": {5}}, "void"),
        ({"covered": {5}}, "covered"),
        ({"voided": {4}, "covered": {6}}, "settled"),
    ],
)
def test_an_entry_is_shown_with_its_direction_and_state(known, shown):
    own = sign(post(), ME, NETWORK)
    row = entry_row(state(**known), own)
    assert (row.state, row.direction, row.entry_id) == (shown, "in", own.id)
    assert (row.seq, row.peer, row.amount_micro, row.created_ms) == (5, PEER.node_id, 70, 9)


def test_an_answer_is_shown_as_a_debt_under_the_id_of_the_entry():
    first = sign(post(), ME, NETWORK)
    answer = sign(counter_half(first, seq=3, prev=GENESIS, created_ms=10), PEER, NETWORK)
    row = entry_row(LedgerState(me=PEER.node_id), answer)
    assert (row.direction, row.entry_id, row.seq) == ("out", first.id, 3)


def test_a_limit_has_no_direction_and_needs_no_answer():
    limit = Half(
        kind="limit",
        credit=ME.node_id,
        peer=PEER.node_id,
        debit=PEER.node_id,
        seq=0,
        prev=GENESIS,
        amount_micro=1,
        created_ms=2,
    )
    row = entry_row(state(), sign(limit, ME, NETWORK))
    assert (row.direction, row.state, row.account) == ("-", "noted", None)
