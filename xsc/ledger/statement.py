"""What a ledger says of each peer and of each entry, for people and for the own directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xsc.api.ledger import Entry, EntryState, Paid, PaidLease, Standing, Statement
from xsc.base import ids, units
from xsc.base.errors import LedgerDamaged, RecordInvalid
from xsc.base.limits import AMOUNT_MAX
from xsc.identity.envelope import Count, Id32, Record, Signed
from xsc.ledger import entry, incarnation
from xsc.ledger.state import LedgerState

LEASES_NOTED_MAX = 64
"""Of one entry: a note is for people, and must not grow with the leases of a pair."""


class LeasesNote(Record):
    """For which leases an entry is: id, kind and price of each."""

    leases: tuple[tuple[Id32, str, Count], ...]


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


def note_accounts(state: LedgerState) -> incarnation.Noted:
    """Return the account with each peer, as the own directory notes it.

    What is unproven is noted again: it is not forgotten with the next disk.
    """
    accounts = incarnation.worth_noting(
        incarnation.NotedAccount(
            peer,
            max(
                -AMOUNT_MAX,
                min(AMOUNT_MAX, state.balances.get(peer, 0) + state.unproven_micro(peer)),
            ),
            state.limits.get(peer),
        )
        for peer in known_peers(state)
    )
    return incarnation.Noted(next_seq=state.next_seq, accounts=accounts)


def entry_row(state: LedgerState, own: Signed[entry.Half]) -> Entry:
    """Return how an own half is shown."""
    half = own.record
    kinds = {"off_books": "paid", "loop": "loop"} if half.kind == "post" else {}
    return Entry(
        seq=half.seq,
        kind=kinds.get(half.purpose, half.kind),
        peer=half.peer,
        amount_micro=half.moves_micro,
        direction="-" if half.kind != "post" else "in" if half.credit == state.me else "out",
        account=half.account,
        created_ms=half.created_ms,
        entry_id=half.link or own.id,
        state=_entry_state(state, half),
    )


def say_debt(name: str, balance_micro: int) -> str:
    """Return in words who owes whom, by what the peer of that name owes this node."""
    if not balance_micro:
        return f"you and {name} owe each other nothing"
    amount = units.say_credits(abs(balance_micro))
    return f"{name} owes you {amount}" if balance_micro > 0 else f"you owe {name} {amount}"


def say_entry(half: entry.Half, name_of: Callable[[bytes], str]) -> str:
    """Return in words what both parties of an entry say."""
    debtor, creditor = name_of(half.debit), name_of(half.credit)
    amount = units.say_credits(half.amount_micro)
    match half.purpose:
        case "loop":
            return f"a loop took {amount} off what {creditor} owed {debtor}"
        case "off_books":
            return f"{creditor} paid {debtor} {amount} off the books"
        case "seal":
            below = half.amount_micro
            return f"{creditor} and {debtor} sealed what they signed before {creditor}'s {below}"
        case "leases":
            return f"{debtor} owes {creditor} {amount} for leases"


def note_bytes(leases: Sequence[PaidLease]) -> bytes:
    """Return the row of the leases for which an entry is."""
    noted = leases[:LEASES_NOTED_MAX]
    rows = ((each.lease_id, each.kind, each.price_micro) for each in noted)
    return LeasesNote(leases=tuple(rows)).to_bytes()


def read_note(seq: int, raw: bytes | None) -> list[PaidLease]:
    """Return the leases that were noted for an entry; none of one that came by a recovery.

    Raises:
        LedgerDamaged: the row is none.
    """
    if raw is None:
        return []
    try:
        leases = LeasesNote.from_bytes(raw).leases
    except RecordInvalid:
        raise LedgerDamaged(
            f"what was noted of entry {seq} of the ledger is damaged",
            hint="restore the home from a backup",
        ) from None
    return [PaidLease(lease_id=i, kind=kind, price_micro=micro) for i, kind, micro in leases]


def paid_row(
    own: Signed[entry.Half], leases: list[PaidLease], name_of: Callable[[bytes], str]
) -> Paid:
    """Return how a settled entry is shown, by its own half."""
    half, says = own.record, say_entry(own.record, name_of)
    if half.purpose == "leases" and leases:
        says += ": " + "; ".join(map(lease_text, leases))
    return Paid(
        seq=half.seq,
        entry_id=half.link or own.id,
        created_ms=half.created_ms,
        debtor=half.debit,
        debtor_name=name_of(half.debit),
        creditor=half.credit,
        creditor_name=name_of(half.credit),
        amount_micro=half.amount_micro,
        off_books=half.purpose == "off_books",
        loop=half.purpose == "loop",
        leases=leases,
        says=says,
    )


def lease_text(lease: PaidLease) -> str:
    """Return a lease and its price in words."""
    unit = "GiB and hour" if lease.kind == "storage" else "Gfuel"
    price = units.say_credits(lease.price_micro)
    return f"{lease.kind} {ids.short(lease.lease_id)} at {price} a {unit}"


def head_of(
    state: LedgerState, from_ms: int, until_ms: int, name_of: Callable[[bytes], str]
) -> Statement:
    """Return what was owed at the beginning and the end of a time, without its payments."""
    opening, closing = state.flows.balances(from_ms), state.flows.balances(until_ms)
    return Statement(
        node=state.me,
        name=name_of(state.me),
        from_ms=from_ms,
        until_ms=until_ms,
        payments=[],
        balances=[
            Standing(
                peer=peer,
                name=name_of(peer),
                opening_micro=opening.get(peer, 0),
                closing_micro=closing[peer],
                says=say_debt(name_of(peer), closing[peer]),
            )
            for peer in sorted(closing)
        ],
    )


def _entry_state(state: LedgerState, half: entry.Half) -> EntryState:
    if half.kind not in entry.BOTH_SIGN:
        return "noted"
    if half.seq in state.open:
        return "open"
    if half.seq in state.voided:
        return "void"
    if half.seq in state.covered:
        return "covered"
    return "settled"
