"""What a book says to people and to other programs, judged by beancount and two parsers."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from decimal import Decimal

import pytest
from beancount import loader
from beancount.core import data, realization
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.ledger.circle import NETWORK, Circle, pay
from xsc.api.ledger import EXPORT_FORMATS, Paid, PaidLease, Standing, Statement
from xsc.api.serial import document
from xsc.base import ids
from xsc.base.errors import LedgerDamaged
from xsc.base.units import format_time, parse_month
from xsc.identity.envelope import sign
from xsc.ledger.chain import FOR, key_of
from xsc.ledger.statement import FORMATS, LEASES_NOTED_MAX, note_bytes, read_note, say_debt
from xsc.terms.voucher import Voucher, leases_account, off_books_account

ALL = (0, 2**63 - 1)
MONTHS = ("2026-10", "2026-11", "2026-12", "2027-01")
LEASE = PaidLease(lease_id=b"l" * 32, kind="storage", price_micro=5)
NAMES = ("alice", "Bob's", 'eve"\\\n=1+1')


class Book:
    """Three ledgers with payments of some months."""

    def __init__(self):
        self.circle = Circle(3)
        for member in self.circle.members:
            member.ledger.proposals.leases_of = lambda _peer, _account: [LEASE]
        self.paid: dict[tuple[int, int, bytes], int] = {}

    def name_of(self, node):
        return NAMES[self.circle.member(node).number - 1]

    async def pay(self, month, creditor, debtor, amount_micro, *, off_books=False):
        one, other = self.circle.members[creditor], self.circle.members[debtor]
        self.circle.clock.advance_to(max(self.circle.clock.now_ms(), parse_month(month)[0]) + 1)
        account = (off_books_account if off_books else leases_account)(one.id, other.id)
        place = (creditor, debtor, account)
        before_micro = self.paid.get(place, 0)
        self.paid[place] = before_micro + amount_micro
        if off_books:
            await pay(one, other, amount_micro, before_micro=before_micro)
            return
        said = Voucher(
            account=account,
            provider=one.id,
            customer=other.id,
            number=self.paid[place],
            amount_micro=self.paid[place],
            count=None,
            until_ms=0,
        )
        await one.ledger.collect(sign(said, other.key, NETWORK).raw)

    def text(self, form, span=ALL, who=0):
        return "".join(FORMATS[form](*self.circle.members[who].ledger.booked(*span, self.name_of)))

    def statement(self, span=ALL, who=0):
        head, rows = self.circle.members[who].ledger.booked(*span, self.name_of)
        return head, [*rows]


@pytest.fixture
async def book():
    book = Book()
    await book.pay("2026-10", 0, 1, 300_001)
    await book.pay("2026-11", 2, 0, 7)
    await book.pay("2026-11", 1, 0, 999_999)
    await book.pay("2026-11", 0, 1, 200_000, off_books=True)
    await book.pay("2027-01", 0, 2, 1)
    return book


def checked(text, tmp_path):
    """Return what beancount makes of a file: its balances in micro-credits, and transactions."""
    path = tmp_path / "book.beancount"
    path.write_text(text)
    check = [sys.executable, "-m", "beancount.scripts.check", str(path)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    entries, errors, _ = loader.load_file(str(path))
    assert errors == []
    found = {}
    for account in realization.iter_children(realization.realize(entries), leaf_only=True):
        if account.account.startswith("Assets:Peers:"):
            (opened,) = [
                each
                for each in entries
                if isinstance(each, data.Open) and each.account == account.account
            ]
            amount = account.balance.get_currency_units("CREDIT").number
            found[ids.from_text(opened.meta["node"])] = int(amount * 1_000_000)
            assert amount == Decimal(found[ids.from_text(opened.meta["node"])]).scaleb(-6)
    return found, [each for each in entries if isinstance(each, data.Transaction)]


@pytest.mark.parametrize("who", range(3))
async def test_beancount_accepts_an_export_and_has_its_balances(book, tmp_path, who):
    me = book.circle.members[who].ledger
    found, transactions = checked(book.text("beancount", who=who), tmp_path)
    assert found == {peer: me.balance(peer) for peer in found}
    assert found == me.chain.state.balances
    said = [row.entry_id for row in book.statement(who=who)[1]]
    paid = [each for each in transactions if "off the books" in each.narration]
    beside = {leg.account for each in paid for leg in each.postings if "Peers" not in leg.account}
    assert beside == ({"Equity:Off-Books"} if who < 2 else set())
    assert [ids.from_text(each.meta["entry"]) for each in transactions] == said
    assert len(said) == len({*said}) == me.settled_entries()


@pytest.mark.parametrize("month", MONTHS)
async def test_beancount_accepts_each_month(book, tmp_path, month):
    span = parse_month(month)
    head, rows = book.statement(span)
    found, transactions = checked(book.text("beancount", span), tmp_path)
    assert found == {row.peer: row.closing_micro for row in head.balances}
    assert [each for each in transactions if each.narration != "opening balance"] == [
        each for each in transactions if "entry" in each.meta
    ]
    assert sum("entry" in each.meta for each in transactions) == len(rows)


async def test_beancount_finds_one_micro_credit(book, tmp_path):
    text = book.text("beancount")
    assert text.count("0.300001 CREDIT") == 2
    path = tmp_path / "wrong.beancount"
    path.write_text(text.replace("0.300001 CREDIT", "0.300002 CREDIT"))
    _, errors, _ = loader.load_file(str(path))
    assert [str(each.message)[:14] for each in errors] == ["Balance failed"]


async def test_the_balances_of_each_month_follow_on_those_of_the_month_before(book):
    before, seen = {}, []
    for month in MONTHS:
        head, rows = book.statement(parse_month(month))
        for row in head.balances:
            moved = sum(
                each.amount_micro * (1 if each.creditor == head.node else -1)
                for each in rows
                if row.peer in (each.debtor, each.creditor)
            )
            assert row.opening_micro == before.get(row.peer, 0)
            assert row.closing_micro == row.opening_micro + moved
            before[row.peer] = row.closing_micro
        assert all(format_time(each.created_ms).startswith(month) for each in rows)
        seen += rows
    assert seen == book.statement()[1]
    assert before == book.circle.members[0].ledger.chain.state.balances


async def test_a_payment_is_told_in_words_at_both_parties(book):
    lease = "storage " + ids.short(b"l" * 32) + " at 0.000005 credits a GiB and hour"
    told = [row.says for row in book.statement()[1]]
    assert told[0] == f"Bob's owes alice 0.300001 credits for leases: {lease}"
    assert told[3] == "alice paid Bob's 0.2 credits off the books"
    assert told[:1] + told[2:4] == [row.says for row in book.statement(who=1)[1]]
    assert [row.says for row in book.statement()[0].balances if row.name == "Bob's"] == [
        "you owe Bob's 0.499998 credits"
    ]
    assert say_debt("Bob", 1_000_000) == "Bob owes you 1 credit"
    assert say_debt("Bob", 0) == "you and Bob owe each other nothing"


async def test_csv_and_json_have_every_payment_once(book):
    head, rows = book.statement()
    lines = [*csv.DictReader(io.StringIO(book.text("csv"), newline=""))]
    assert [line["entry"] for line in lines] == [ids.to_text(row.entry_id) for row in rows]
    assert [line["off_books"] for line in lines] == ["no", "no", "no", "yes", "no"]
    assert {line["loop"] for line in lines} == {"no"}
    assert sum(
        int(Decimal(line["amount"]).scaleb(6))
        * (1 if line["creditor_id"] == ids.to_text(head.node) else -1)
        for line in lines
    ) == sum(row.closing_micro for row in head.balances)
    told = json.loads(book.text("json"))
    assert told.pop("payments") == [document(row) for row in rows]
    assert told == {key: value for key, value in document(head).items() if key != "payments"}


async def test_an_empty_book_is_a_file_too(tmp_path):
    book = Book()
    assert checked(book.text("beancount"), tmp_path) == ({}, [])
    assert book.text("csv").count("\r\n") == 1
    assert json.loads(book.text("json"))["payments"] == []


@given(names=st.tuples(st.text(), st.sampled_from("=+-@\t\r＝\0").flatmap(
    lambda first: st.text().map(lambda rest: first + rest))))  # fmt: skip
def test_no_name_breaks_a_format(names):
    me, peers = b"m" * 32, (b"p" * 32, b"q" * 32)
    rows = [
        Paid(
            seq=number,
            entry_id=bytes([number]) * 32,
            created_ms=2**62,
            debtor=peer,
            debtor_name=name,
            creditor=me,
            creditor_name=names[0],
            amount_micro=5,
            off_books=False,
            loop=False,
            leases=[],
            says=name,
        )
        for number, (peer, name) in enumerate(zip(peers, names, strict=True))
    ]
    balances = [
        Standing(peer=row.debtor, name=row.debtor_name, opening_micro=0, closing_micro=5, says="")
        for row in rows
    ]
    head = Statement(
        node=me, name=names[0], from_ms=0, until_ms=2**63 - 1, payments=[], balances=balances
    )
    beancount, table, told = ("".join(FORMATS[form](head, rows)) for form in EXPORT_FORMATS)
    entries, errors, _ = loader.load_string(beancount.encode().decode())
    assert errors == []
    assert sum(isinstance(each, data.Transaction) for each in entries) == 2
    lines = [*csv.reader(io.StringIO(table, newline=""))]
    assert [len(line) for line in lines] == [12, 12, 12]
    assert not any(cell.lstrip()[:1] in {*"=+-@\t\r＝"} - {""} for line in lines for cell in line)
    assert [row["debtor_name"] for row in json.loads(told)["payments"]] == [*names]


def test_a_note_is_bounded_and_a_damaged_one_is_said():
    assert read_note(3, note_bytes([LEASE] * 100)) == [LEASE] * LEASES_NOTED_MAX
    assert read_note(3, None) == []
    good = note_bytes([LEASE]) or b""
    assert note_bytes([]) is None
    for raw in (b"", good[:-1], good.replace(b"leases", b"leasez"), b"\xa0"):
        with pytest.raises(LedgerDamaged, match="entry 3"):
            read_note(3, raw)


async def test_a_note_is_written_with_its_entry_on_both_sides(book):
    a, b, _ = book.circle.members
    for member in (a, b):
        (first, *_) = member.ledger.chain.state.flows.numbers(*ALL)
        assert read_note(first, member.store.get(key_of(FOR, first))) == [LEASE]
        lines = [said for event, said in member.log.lines if event == "ledger.paid"]
        assert {(line["debtor"], line["creditor"]) for line in lines[:1]} == {
            (ids.short(b.id), ids.short(a.id))
        }
        assert lines[0]["leases"].startswith("storage ")
