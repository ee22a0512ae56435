"""What a ledger says of each peer and of each entry, for people and for the own directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xsc.api.ledger import Entry, EntryState
from xsc.base.limits import AMOUNT_MAX
from xsc.identity.envelope import Signed
from xsc.ledger import entry, incarnation
from xsc.ledger.state import LedgerState


@dataclass(frozen=True, slots=True)
class StatementRow:
    """The account with one peer."""

    peer: bytes
    balance_micro: int
    limit_micro: int
    credit_left_micro: int
    open_micro: int
    unproven_micro: int
    """What the directory noted beyond what halves show, since a recovery; the sign as in
    `balance_micro`."""
    entries: int
    """Settled ones."""


def known_peers(state: LedgerState) -> list[bytes]:
    """Return every peer with which there is an account, in order of id."""
    debtors = {item.debtor for item in state.open.values()}
    return sorted({*state.balances, *state.limits, *state.noted, *debtors})


def credit_left(state: LedgerState, peer: bytes, limit_micro: int, shared: Sequence[bytes]) -> int:
    """Return the micro-credits that a peer may still come to owe.

    Entries that it has not answered count against it, and so does what the peers owe with
    which it shares its credit. Negative after its limit was lowered below its debt.
    """
    theirs = sum(max(0, state.exposure(other)) for other in shared if other != peer)
    return limit_micro - state.exposure(peer) - theirs


def note_accounts(state: LedgerState, default_limit_micro: int) -> incarnation.Noted:
    """Return the account with each peer, as the own directory notes it.

    What is unproven is noted again: it is not forgotten with the next disk.
    """
    accounts = incarnation.worth_noting(
        (
            incarnation.NotedAccount(
                peer,
                max(
                    -AMOUNT_MAX,
                    min(AMOUNT_MAX, state.balances.get(peer, 0) + state.unproven_micro(peer)),
                ),
                state.limits.get(peer),
            )
            for peer in known_peers(state)
        ),
        default_limit_micro=default_limit_micro,
    )
    return incarnation.Noted(state.next_seq, accounts)


def entry_row(state: LedgerState, own: Signed[entry.Half]) -> Entry:
    """Return how an own half is shown."""
    half = own.record
    return Entry(
        seq=half.seq,
        kind=half.kind,
        peer=half.peer,
        amount_micro=half.amount_micro,
        direction="-" if half.kind != "post" else "in" if half.credit == state.me else "out",
        account=half.account,
        created_ms=half.created_ms,
        entry_id=half.link or own.id,
        state=_entry_state(state, half),
    )


def _entry_state(state: LedgerState, half: entry.Half) -> EntryState:
    if half.kind != "post":
        return "noted"
    if half.seq in state.open:
        return "open"
    if half.seq in state.voided:
        return "void"
    if half.seq in state.covered:
        return "covered"
    return "claim" if half.seq in state.claims else "settled"
