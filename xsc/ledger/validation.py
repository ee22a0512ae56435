"""Every rule that a half must keep, in the order in which they are checked.

A check returns the first rule broken, by code, so that any node that repeats
it gives the same answer (L-3, L-5 and P-1 of the ledger's laws):

- `check_proposal`: may the debtor answer this half of a creditor?
- `check_counter`: does this answer say what was proposed?
- `check_own_next`: may this half follow at the end of the own chain? It judges
  new halves and, in `xsc.ledger.audit`, those read back from the store.

The creditor checks the limit of now: no node comes to owe it more than it allowed. A replay
cannot know that of then, which follows from more than the chain. The debtor needs no limit,
because it answers only for what its own voucher says.

A refusal of a debtor must be final, because the creditor withdraws the entry and a late
copy of it may still arrive. So what is settled in an account never falls, and what was
seen of a chain is never forgotten. Only an overflow can be temporary; it is not a refusal
but an error after which the creditor tries again.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

from xsc.base.limits import AMOUNT_MAX
from xsc.identity.envelope import Signed
from xsc.ledger.entry import BOTH_SIGN, GENESIS, Half
from xsc.ledger.incarnation import Incarnation
from xsc.ledger.state import LedgerState
from xsc.terms.voucher import Voucher


@dataclass(frozen=True, slots=True)
class Refusal:
    """The first rule broken."""

    code: str
    sentence: str


SAME = ("kind", "unit", "debit", "credit", "amount_micro", "account", "receipt")
_content = attrgetter(*SAME)


def check_voucher(half: Half, voucher: Signed[Voucher]) -> Refusal | None:
    """Return why a voucher is not what a `post` may rest on; None where it is."""
    said = voucher.record
    if voucher.id != half.receipt or said.account != half.account:
        return Refusal("voucher_wrong", "the voucher is not the one that the entry names")
    if voucher.author != half.debit or said.customer != half.debit:
        return Refusal("voucher_wrong", "the voucher is not the debtor's")
    if said.provider != half.credit:
        return Refusal("voucher_wrong", "the voucher is not made out to the creditor")
    return None


def _check_amount(state: LedgerState, half: Half, voucher: Voucher) -> Refusal | None:
    assert half.account is not None
    settled = state.settled_under(half.account, debtor=half.debit, creditor=half.credit)
    left = voucher.amount_micro - settled
    if half.amount_micro != left:
        return Refusal(
            "amount_wrong",
            f"the entry is over {half.amount_micro} micro-credits, the voucher leaves {left}",
        )
    return None


def check_proposal(
    state: LedgerState, half: Signed[Half], caller: bytes, voucher: Signed[Voucher]
) -> Refusal | None:
    """Return why this node, as debtor, does not answer a creditor's half; None where it does.

    Args:
        state: this node's.
        half: the creditor's, its signature verified.
        caller: the authenticated peer that sent it.
        voucher: what it rests on, its signature verified.
    """
    said = half.record
    if half.author != caller or said.credit != caller:
        return Refusal("creditor_not_caller", "only the creditor itself proposes an entry")
    if said.debit != state.me:
        return Refusal("debtor_not_me", "the debtor of this entry is another node")
    if said.kind not in BOTH_SIGN:
        return Refusal("kind_unknown", f"a '{said.kind}' is not proposed to anybody")
    if said.link is not None:
        return Refusal("fields_wrong", "a proposal answers nothing")
    if said.amount_micro == 0:
        return Refusal("amount_zero", "an entry moves something")
    if (refusal := check_voucher(said, voucher)) is not None:
        return refusal
    if (refusal := check_chain(state, half)) is not None:
        return refusal
    if (refusal := _check_amount(state, said, voucher.record)) is not None:
        return refusal
    if said.moves_micro - state.balances.get(caller, 0) > AMOUNT_MAX:
        return Refusal("amount_overflow", "the balance would leave the range of 63 bits")
    return None


def check_chain(state: LedgerState, half: Signed[Half]) -> Refusal | None:
    """Check a peer's half against the halves of the same chain in this ledger.

    Two signed halves in one place prove that their author keeps two chains.
    Others of its halves are unknown here, so only neighbours can be compared.
    """
    seq = half.record.seq
    seen = state.near(half.author, seq)
    if seq in seen and seen[seq].id == half.id:
        return Refusal("exists", "this entry is booked already")
    if seq == 0 and half.record.prev != GENESIS:
        return Refusal("fork", "a first entry follows on nothing")
    # A lower number would change what both have put in an order.
    if half.author < state.me and seq < state.sealed.get(half.author, 0):
        return Refusal("sealed", f"its author has sealed all that it signed before number {seq}")
    if seq in seen:
        return Refusal("fork", f"its author signed another entry as its number {seq}")
    if seq - 1 in seen and seen[seq - 1].id != half.record.prev:
        return Refusal("fork", f"it does not follow on its author's number {seq - 1}")
    if seq + 1 in seen and seen[seq + 1].prev != half.id:
        return Refusal("fork", f"its author's number {seq + 1} does not follow on it")
    return None


def check_counter(half: Signed[Half], counter: Signed[Half]) -> Refusal | None:
    """Return why an answer does not fit the half that it answers; None where it does."""
    said = counter.record
    if counter.author != half.record.peer or said.peer != half.author:
        return Refusal("answer_wrong", "the answer is of another node than the one asked")
    if said.link != half.id:
        return Refusal("answer_wrong", "the answer is to another entry")
    if half.network != counter.network:
        return Refusal("answer_wrong", "the answer is of another network")
    if _content(half.record) != _content(said):
        return Refusal("answer_wrong", "the answer does not say what was proposed")
    return None


def check_old(half: Signed[Half], other: Signed[Half], voucher: Signed[Voucher]) -> Refusal | None:
    """Return why these are not an entry that both parties signed; None where they are."""
    first, answer = (half, other) if half.record.link is None else (other, half)
    if first.record.kind != "post":
        return Refusal("kind_unknown", f"a '{first.record.kind}' is not shown to anybody")
    return check_counter(first, answer) or check_voucher(first.record, voucher)


def check_incarnation(known: Signed[Incarnation] | None, half: Signed[Half]) -> Refusal | None:
    """Return why a new half is not of its author's present incarnation; None where it is.

    Args:
        known: the newest incarnation that the author has told.
        half: one that is not booked here.
    """
    if known is None:
        return None
    first = known.record.first_seq
    if half.record.seq < first:
        return Refusal("incarnation_over", f"its author's numbers go on at {first}, this is lower")
    if half.record.seq == first and half.record.prev != known.id:
        return Refusal("fork", "the first half of an incarnation follows on its record")
    return None


def check_own_next(
    state: LedgerState,
    own: Signed[Half],
    *,
    voucher: Signed[Voucher] | None = None,
    initiator: Signed[Half] | None = None,
    limit_micro: int | None = None,
) -> Refusal | None:
    """Return why a half cannot be the next of the own chain; None where it can.

    Args:
        state: what all halves before it add up to.
        own: the half.
        voucher: what a `post` rests on, its signature verified.
        initiator: the peer's half that it answers, its signature verified.
        limit_micro: what its peer may owe now; None where that is long ago.
    """
    half = own.record
    if own.author != state.me or half.author != state.me:
        return Refusal("author_wrong", "the half is not this node's")
    if half.seq != state.next_seq:
        return Refusal("sequence_wrong", f"number {half.seq} stands where {state.next_seq} must")
    if half.prev != state.head:
        return Refusal("previous_wrong", "the half does not follow on the one before it")
    if half.link is not None:
        return _check_own_answer(state, own, voucher, initiator)
    if initiator is not None:
        return Refusal("fields_wrong", "a half that answers nothing has another beside it")
    if half.credit != state.me:
        return Refusal("fields_wrong", "only the creditor initiates an entry")
    if half.kind == "void":
        return _check_void(state, half)
    if half.kind in BOTH_SIGN:
        return _check_own_post(state, half, voucher, limit_micro)
    return None


def _check_void(state: LedgerState, half: Half) -> Refusal | None:
    assert half.account is not None
    waiting = state.open_under(half.peer, half.account)
    if waiting is None or state.open[waiting].amount_micro != half.moves_micro:
        return Refusal("nothing_to_void", "no unanswered entry of that content is open")
    return None


def _check_own_post(
    state: LedgerState, half: Half, voucher: Signed[Voucher] | None, limit_micro: int | None
) -> Refusal | None:
    assert half.account is not None
    if half.amount_micro == 0:
        return Refusal("amount_zero", "an entry moves something")
    if voucher is None:
        return Refusal("voucher_wrong", "the voucher is missing")
    if (refusal := check_voucher(half, voucher)) is not None:
        return refusal
    if state.open_under(half.peer, half.account) is not None:
        return Refusal("account_busy", "another entry in this account has no answer yet")
    if (refusal := _check_amount(state, half, voucher.record)) is not None:
        return refusal
    # A complete loop is booked whatever has changed: it counted against the limit until now.
    # A seal moves nothing.
    if limit_micro is None or half.clears or half.kind == "seal":
        return None
    if (exposure := state.exposure(half.peer)) + half.amount_micro > limit_micro:
        return Refusal(
            "limit_exceeded",
            f"{half.amount_micro} micro-credits more would pass the limit of {limit_micro} "
            f"that the peer may owe (now {exposure})",
        )
    return None


def _check_own_answer(
    state: LedgerState,
    own: Signed[Half],
    voucher: Signed[Voucher] | None,
    initiator: Signed[Half] | None,
) -> Refusal | None:
    if initiator is None:
        return Refusal("answer_wrong", "the entry that it answers is missing")
    if voucher is None:
        return Refusal("voucher_wrong", "the voucher is missing")
    if (refusal := check_counter(initiator, own)) is not None:
        return refusal
    return check_proposal(state, initiator, initiator.author, voucher)
