"""What was earned and spent within a time: of a book as it grows, and as it is read again."""

import random
from types import SimpleNamespace

import pytest

from tests.unit.ledger.circle import Circle, collect, pay
from xsc.ledger.index import Flows

DAY_MS = 24 * 3_600_000


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
    await collect(a, b, 300, account=1)
    await collect(c, a, 40, account=2)
    first_ms = circle.clock.now_ms()
    second_ms = first_ms - first_ms % DAY_MS + DAY_MS
    circle.clock.advance_to(second_ms)
    await collect(a, b, 500, of=800, account=1)
    await collect(b, a, 7, account=3)
    assert told(a) == {2: {"earned": 800, "spent": 7}, 3: {"spent": 40}}
    assert told(b) == {1: {"spent": 800, "earned": 7}}
    assert told(a, second_ms - 1) == told(a), "a day counts whole"
    assert told(a, second_ms) == {2: {"earned": 500, "spent": 7}}
    assert told(a, second_ms + DAY_MS - 1) == told(a, second_ms)
    assert told(a, second_ms + DAY_MS) == {}
    # What nobody has answered counts nothing.
    circle.gone.add(b.id)
    with pytest.raises(Exception, match="no answer"):
        await collect(a, b, 9, account=5)
    before = told(a)
    assert before == {2: {"earned": 800, "spent": 7}, 3: {"spent": 40}}
    a.crash()
    assert told(a) == before, "a book that is read again says the same"


async def test_what_was_paid_off_the_books_is_apart(circle):
    a, b, _ = circle.members
    await collect(a, b, 300)
    await pay(b, a, 200)
    assert told(a) == {2: {"earned": 300, "received": 200}}
    assert told(b) == {1: {"spent": 300, "paid": 200}}
    assert a.ledger.balance(b.id) == 100


def test_each_day_counts_whole_whatever_the_order_of_dates():
    draw, flows = random.Random(7), Flows()
    halves = [
        SimpleNamespace(
            purpose="leases",
            debit=b"p",
            peer=b"p",
            created_ms=at_ms,
            amount_micro=2**62,
            seq=seq,
        )
        for seq, at_ms in enumerate(draw.sample(range(5 * DAY_MS), 200))
    ]
    for half in halves:
        flows.add(half)
    for since_ms in range(0, 6 * DAY_MS, DAY_MS):
        booked = sum(half.created_ms >= since_ms for half in halves) * 2**62
        for within_ms in (0, 1, DAY_MS - 1):
            found = flows.since(since_ms + within_ms)
            assert sum(row.earned_micro for row in found) == booked
        assert flows.balances(since_ms).get(b"p", 0) == 200 * 2**62 - booked
    by_date = sorted(halves, key=lambda half: half.created_ms)
    assert flows.numbers(100, DAY_MS) == [h.seq for h in by_date if 100 <= h.created_ms < DAY_MS]
