"""Writes a statement for other programs: the plain-text accounts of beancount, CSV and JSON.

Pieces of text come one by one, so that a book of any length takes little memory. The names in it
were chosen by others: none of them may break a format, or be run by a spreadsheet.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final

from xsc.api import serial
from xsc.api.ledger import ExportFormat, Paid, Standing, Statement
from xsc.base import ids, units
from xsc.base.text import printable
from xsc.ledger.statement import lease_text

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
