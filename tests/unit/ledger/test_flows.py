"""What was earned and spent within a time: of a book as it grows, and as it is read again."""

import random
from types import SimpleNamespace

import pytest

from tests.unit.ledger.circle import NETWORK, Circle, collect, voucher
from xsc.identity.envelope import sign
from xsc.ledger.flows import Flows
from xsc.terms.voucher import off_books_account


@pytest.fixture
def circle():
    return Circle(3)


def told(member, since_ms=0):
    """Return what was booked from a moment on, by the number of the peer."""
    numbers = {each.id: each.number for each in member.circle.members}
    found = {}
    for row in member.ledger.chain.state.flows.since(since_ms):
        said = {"earned": row.earned_micro, "spent": row.spent_micro}
        said |= {"received": row.received_micro, "paid": row.paid_micro}
        found[numbers[row.peer]] = {name: amount for name, amount in said.items() if amount}
    return found


async def test_flows_are_what_both_signed_by_the_date_of_the_own_half(circle):
    a, b, c = circle.members
    await collect(a, b, 300, account=1, xid=1)
    await collect(c, a, 40, account=2, xid=2)
    first_ms = circle.clock.now_ms()
    circle.clock.advance_to(first_ms + 10)
    await collect(a, b, 500, of=800, account=1, xid=3)
    await collect(b, a, 7, account=3, xid=4)
    assert told(a) == {2: {"earned": 800, "spent": 7}, 3: {"spent": 40}}
    assert told(b) == {1: {"spent": 800, "earned": 7}}
    assert told(a, first_ms) == told(a), "that moment is part of the time"
    assert told(a, first_ms + 1) == {2: {"earned": 500, "spent": 7}}
    assert told(a, first_ms + 11) == {}
    # What nobody has answered counts nothing.
    circle.gone.add(b.id)
    with pytest.raises(Exception, match="no answer"):
        await collect(a, b, 9, account=5, xid=5)
    before = told(a)
    assert before == {2: {"earned": 800, "spent": 7}, 3: {"spent": 40}}
    a.crash()
    assert told(a) == before, "a book that is read again says the same"


async def test_what_was_paid_off_the_books_is_apart(circle):
    a, b, _ = circle.members
    await collect(a, b, 300)
    account = off_books_account(b.id, a.id)
    said = voucher(a, b, 200).record.model_copy(update={"account": account})
    a.ledger.proposals.check_consent = lambda *_: None
    await b.ledger.collect(
        xid=bytes(16), debtor=a.id, account=account, voucher=sign(said, a.key, NETWORK).raw
    )
    assert told(a) == {2: {"earned": 300, "received": 200}}
    assert told(b) == {1: {"spent": 300, "paid": 200}}
    assert a.ledger.balance(b.id) == 100


def test_dates_that_do_not_rise_are_sorted():
    draw, flows = random.Random(7), Flows()
    halves = [
        SimpleNamespace(
            clears=False,
            account=b"x",
            debit=b"p",
            credit=b"m",
            peer=b"p",
            created_ms=at_ms,
            amount_micro=2**62,
            seq=seq,
        )
        for seq, at_ms in enumerate(draw.sample(range(1_000), 200))
    ]
    for half in halves:
        flows.add(half)
    for since_ms in range(0, 1_001, 50):
        booked = sum(half.created_ms >= since_ms for half in halves) * 2**62
        assert sum(row.earned_micro for row in flows.since(since_ms)) == booked
        assert flows.balances(since_ms).get(b"p", 0) == 200 * 2**62 - booked
    by_date = sorted(halves, key=lambda half: half.created_ms)
    assert flows.numbers(100, 900) == [h.seq for h in by_date if 100 <= h.created_ms < 900]
