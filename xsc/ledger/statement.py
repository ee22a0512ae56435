"""What a ledger says of each peer and each entry: for people, the own directory, and as files.

Pieces of a file come one by one, so that a book of any length takes little memory. The names in it
were chosen by others: none of them may break a format, or be run by a spreadsheet.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

from xsc.api import serial
from xsc.api.ledger import Entry, EntryState, ExportFormat, Paid, PaidLease, Standing, Statement
from xsc.base import ids, units
from xsc.base.errors import LedgerDamaged, RecordInvalid
from xsc.base.limits import AMOUNT_MAX
from xsc.base.text import printable
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


def note_bytes(leases: Sequence[PaidLease]) -> bytes | None:
    """Return the row of the leases for which an entry is; None where it is for none."""
    noted = leases[:LEASES_NOTED_MAX]
    rows = ((each.lease_id, each.kind, each.price_micro) for each in noted)
    return LeasesNote(leases=tuple(rows)).to_bytes() if noted else None


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


UNIT: Final = "CREDIT"
_INCOME: Final = "Income:Leases"
_EXPENSES: Final = "Expenses:Leases"
_OFF_BOOKS: Final = "Equity:Off-Books"
_LOOPS: Final = "Equity:Loops"
_OPENING: Final = "Equity:Opening-Balances"
_LAST: Final = date(9999, 12, 30)
"""A balance is asserted on the day after."""
_PEER_CHARS: Final = 16
"""Of an id in the name of an account: nobody finds a second node whose id begins so."""
_FORMULA: Final = frozenset("=+-@")


def _leases(paid: Paid) -> str:
    return "; ".join(map(lease_text, paid.leases))


_COLUMNS: Final[Mapping[str, Callable[[Paid], str]]] = {
    "time": lambda paid: units.format_time(paid.created_ms),
    "debtor": lambda paid: paid.debtor_name,
    "debtor_id": lambda paid: ids.to_text(paid.debtor),
    "creditor": lambda paid: paid.creditor_name,
    "creditor_id": lambda paid: ids.to_text(paid.creditor),
    "amount": lambda paid: units.format_credits(paid.amount_micro),
    "unit": lambda _: UNIT,
    "off_books": lambda paid: "yes" if paid.off_books else "no",
    "loop": lambda paid: "yes" if paid.loop else "no",
    "leases": _leases,
    "entry": lambda paid: ids.to_text(paid.entry_id),
    "says": lambda paid: paid.says,
}


# Beancount


def _day(at_ms: int) -> date:
    """Return the day of a moment; the last one that can be written for all after it."""
    last_ms = int(datetime(_LAST.year, _LAST.month, _LAST.day, tzinfo=UTC).timestamp()) * 1000
    return datetime.fromtimestamp(min(at_ms, last_ms) // 1000, tz=UTC).date()


def _quoted(text: str) -> str:
    escaped = printable(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _account(row: Standing) -> str:
    """Return the account of a peer: what it owes this node, below zero what it is owed."""
    name = "".join(char if char.isascii() and char.isalnum() else "-" for char in row.name)
    name = name.lstrip("-") or "X"
    return f"Assets:Peers:{name[:1].upper()}{name[1:]}-{ids.to_text(row.peer)[:_PEER_CHARS]}"


def _transaction(row: Standing, other: str, amount_micro: int, *heading: str) -> str:
    """Return a transaction: what a peer comes to owe this node, and the account that pays."""
    accounts = (_account(row), amount_micro), (other, -amount_micro)
    legs = [f"  {name}  {units.format_credits(micro)} {UNIT}" for name, micro in accounts]
    return "\n".join(("", *heading, *legs, ""))


def _beside(paid: Paid, *, is_owed: bool) -> str:
    """Return the account beside that of the peer."""
    if paid.loop:
        return _LOOPS
    if paid.off_books:
        return _OFF_BOOKS
    return _INCOME if is_owed else _EXPENSES


def _beancount(head: Statement, rows: Iterable[Paid]) -> Iterator[str]:
    first = last = _day(head.from_ms)
    peers = {row.peer: row for row in head.balances}
    yield f'option "title" {_quoted(f"XSC ledger of {head.name}")}\n'
    yield f'option "operating_currency" "{UNIT}"\n\n{first} commodity {UNIT}\n'
    for each in (_INCOME, _EXPENSES, _OFF_BOOKS, _LOOPS, _OPENING):
        yield f"{first} open {each} {UNIT}\n"
    for row in head.balances:
        yield f"{first} open {_account(row)} {UNIT}\n"
        yield f'  name: {_quoted(row.name)}\n  node: "{ids.to_text(row.peer)}"\n'
    for row in head.balances:
        if row.opening_micro:
            opening = f'{first} * {_quoted(row.name)} "opening balance"'
            yield _transaction(row, _OPENING, row.opening_micro, opening)
    for paid in rows:
        day = _day(paid.created_ms)
        last = max(last, day)
        is_owed = paid.creditor == head.node
        row = peers[paid.debtor if is_owed else paid.creditor]
        yield _transaction(
            row,
            _beside(paid, is_owed=is_owed),
            paid.amount_micro if is_owed else -paid.amount_micro,
            f"{day} * {_quoted(row.name)} {_quoted(paid.says)}",
            f"  debtor: {_quoted(paid.debtor_name)}",
            f"  creditor: {_quoted(paid.creditor_name)}",
            f"  leases: {_quoted(_leases(paid))}",
            f'  entry: "{ids.to_text(paid.entry_id)}"',
        )
    until = _day(head.until_ms)
    if until == _LAST:
        until = last + timedelta(days=1)
    yield "\n"
    for row in head.balances:
        amount = units.format_credits(row.closing_micro)
        yield f"{until} balance {_account(row)} {amount} ~ 0 {UNIT}\n"


# CSV and JSON


def _cell(text: str) -> str:
    """Return a text as a cell that a spreadsheet shows and does not run."""
    shown = printable(text)
    # Spreadsheets take the wide forms of these signs, too.
    start = unicodedata.normalize("NFKC", shown).lstrip()[:1]
    return f"'{shown}" if start in _FORMULA else shown


def _row(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(map(_cell, cells))
    return text.getvalue()


def _csv(_: Statement, rows: Iterable[Paid]) -> Iterator[str]:
    yield _row(_COLUMNS)
    for paid in rows:
        yield _row(column(paid) for column in _COLUMNS.values())


def _json(head: Statement, rows: Iterable[Paid]) -> Iterator[str]:
    """Yield the document of `head`, its payments one by one."""
    before, after = json.dumps(serial.document(head)).split('"payments": []')
    yield f'{before}"payments": ['
    for number, paid in enumerate(rows):
        yield (",\n" if number else "\n") + json.dumps(serial.document(paid))
    yield f"]{after}\n"


FORMATS: Final[Mapping[ExportFormat, Callable[[Statement, Iterable[Paid]], Iterator[str]]]] = {
    "beancount": _beancount,
    "csv": _csv,
    "json": _json,
}
"""Each yields a file, of a statement whose payments come beside it."""
