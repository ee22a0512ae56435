"""What a peer may owe: laws of the formula, and what a peer can try to raise it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.ledger.circle import STARTER, Circle, collect
from xsc.api.ledger import Flow
from xsc.base.errors import CreditExceeded
from xsc.base.limits import AMOUNT_MAX, PPM
from xsc.base.units import is_near
from xsc.ledger.limits import (
    LimitSettings,
    Trust,
    limit_terms,
    repaid,
)

amounts = st.integers(0, 10**15)
shares = st.integers(0, PPM)
settings = st.builds(LimitSettings, amounts, shares, shares, st.integers(1, 1000))
DAY_MS = 24 * 3_600_000
flows = st.builds(
    lambda a, b, c, d: Flow(
        peer=b"p", earned_micro=a, spent_micro=b, received_micro=c, paid_micro=d
    ),
    amounts,
    amounts,
    amounts,
    amounts,
)


def limit_of(credit, known, mutual, paid):
    return limit_terms(credit, Trust(known, mutual), paid, None).limit_micro


@given(credit=settings, mutual=shares, more=shares, paid=amounts, further=amounts)
def test_a_limit_rises_with_each_term_and_never_above_the_maximum(
    credit, mutual, more, paid, further
):
    limit = limit_of(credit, "direct", mutual, paid)
    least = min(credit.starter_micro, limit)
    assert least <= limit <= credit.max_starters * credit.starter_micro
    assert limit <= limit_of(credit, "direct", min(PPM, mutual + more), paid)
    assert limit <= limit_of(credit, "direct", mutual, paid + further)
    raised = replace(credit, starter_micro=credit.starter_micro + further)
    assert limit <= limit_of(raised, "direct", mutual, paid)
    assert limit_of(credit, "introduced", mutual, paid) == limit


@given(credit=settings, mutual=shares, paid=amounts, known=st.sampled_from(["stranger", "barred"]))
def test_strangers_and_the_barred_may_owe_nothing(credit, mutual, paid, known):
    terms = limit_terms(credit, Trust(known, mutual), paid, None)
    assert (terms.starter_micro, terms.recognised_micro, terms.repaid_credit_micro) == (0, 0, 0)
    assert terms.limit_micro == 0
    assert limit_terms(credit, Trust("stranger", mutual), paid, 7).limit_micro == 7, "set by hand"


@given(paid=amounts, credit=settings)
def test_nobody_gains_by_default_more_than_its_starter_beyond_what_it_repaid(paid, credit):
    credit = replace(credit, repaid_ppm=min(credit.repaid_ppm, PPM // 2))
    limit = limit_of(credit, "direct", 0, paid)
    assert limit - credit.starter_micro <= paid // 2


def test_the_defaults_are_those_of_the_design():
    credit = LimitSettings(STARTER)
    assert limit_of(credit, "direct", 0, 0) == STARTER
    assert limit_of(credit, "direct", PPM, 0) == 2 * STARTER
    assert limit_of(credit, "direct", PPM // 4, 10) == STARTER + STARTER // 4 + 5
    assert limit_of(credit, "direct", 0, 6 * STARTER) == 4 * STARTER
    assert limit_of(credit, "direct", PPM, 10**9) == 4 * STARTER


@given(balance=st.integers(-(10**15), 10**15), flow=flows, more=amounts)
def test_what_was_repaid_is_what_was_owed_and_given_for_it(balance, flow, more):
    found = repaid(balance, flow)
    assert 0 <= found <= flow.spent_micro + flow.received_micro
    before = balance - flow.earned_micro - flow.paid_micro + flow.spent_micro + flow.received_micro
    assert found <= max(0, before) + flow.earned_micro, "no more than it owed"
    for name in ("spent_micro", "received_micro"):
        grown = Flow(**{**vars(flow), name: getattr(flow, name) + more})
        assert found <= repaid(balance - more, grown), "to repay more lowers nothing"
    back = Flow(**{**vars(flow), "paid_micro": flow.paid_micro + more})
    # What this node owed before may be what it paid.
    most = found + max(0, -before)
    assert repaid(balance + more, back) <= most, "what was paid back was not repaid"


def test_who_is_paid_for_what_it_does_has_repaid_nothing():
    assert repaid(0, Flow(peer=b"p", spent_micro=10, paid_micro=10)) == 0
    assert repaid(10, Flow(peer=b"p", spent_micro=10, paid_micro=10, earned_micro=10)) == 0
    assert repaid(-10, Flow(peer=b"p", spent_micro=10)) == 0, "it never owed anything"
    assert repaid(0, Flow(peer=b"p", earned_micro=10, spent_micro=10)) == 10
    assert repaid(0, Flow(peer=b"p", earned_micro=10, received_micro=10)) == 10
    assert repaid(0, Flow(peer=b"p", received_micro=10)) == 10, "of an older debt"
    assert repaid(10, Flow(peer=b"p", earned_micro=10, paid_micro=10)) == 0, "an own debt, paid"
    both = Flow(peer=b"p", earned_micro=10, spent_micro=9, paid_micro=4)
    assert repaid(1, both) == 9, "what was paid was for what this node owed before"


def test_what_a_loop_took_off_was_not_repaid():
    assert repaid(0, Flow(peer=b"p", earned_micro=10, cleared_micro=10)) == 0
    assert repaid(0, Flow(peer=b"p", spent_micro=10, cleared_own_micro=10)) == 0
    served = Flow(peer=b"p", earned_micro=10, spent_micro=10, cleared_own_micro=10)
    assert repaid(10, served) == 0, "it was paid by the loop for what it did"


@pytest.fixture
def circle():
    return Circle(3)


async def test_the_order_of_entries_changes_no_limit():
    found = set()
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        circle = Circle(3)
        a, b, _ = circle.members
        steps = (
            lambda a=a, b=b: collect(a, b, 300, account=1),
            lambda a=a, b=b: collect(b, a, 200, account=2),
            lambda a=a, b=b: collect(a, b, 50, account=3),
        )
        for number in order:
            await steps[number]()
        found.add((a.ledger.limit(b.id), b.ledger.limit(a.id)))
    assert found == {(STARTER + 100, STARTER + 100)}


async def test_what_was_repaid_counts_for_90_days(circle):
    a, b, _ = circle.members
    await collect(a, b, 300, account=1)
    await collect(b, a, 200, account=2)
    assert a.ledger.limit_terms(b.id).repaid_micro == 200
    start_ms = circle.clock.now_ms()
    end_ms = start_ms - start_ms % DAY_MS + 91 * DAY_MS
    circle.clock.advance_to(end_ms - 1)
    assert a.ledger.limit(b.id) == STARTER + 100
    circle.clock.advance_to(end_ms)
    assert a.ledger.limit(b.id) == STARTER


async def test_dealing_between_others_raises_no_limit_here(circle):
    """Two nodes of one owner sell to each other; neither has repaid this node anything."""
    a, b, c = circle.members
    for number in range(1, 9):
        await collect(b, c, 10_000, account=number)
        await collect(c, b, 10_000, account=number + 100)
    assert (a.ledger.limit(b.id), a.ledger.limit(c.id)) == (STARTER, STARTER)


async def test_a_limit_below_a_debt_takes_nothing_and_stops_more(circle):
    a, b, _ = circle.members
    await collect(a, b, 300, account=1)
    entries = a.ledger.entries()
    await a.ledger.set_limit(b.id, 100)
    assert a.ledger.balance(b.id) == 300
    assert a.ledger.credit_left(b.id) == -200
    assert a.ledger.entries()[1:] == entries
    with pytest.raises(CreditExceeded):
        await collect(a, b, 1, account=2)
    await a.ledger.set_limit(b.id, None)
    assert a.ledger.limit(b.id) == STARTER, "the formula holds again"
    await collect(a, b, 1, account=2)
    await a.ledger.verify()
    assert a.start().limit(b.id) == STARTER


async def test_a_creditor_says_once_that_a_peer_comes_near_its_limit(circle):
    a, b, _ = circle.members
    asked = []
    b.ledger.proposals.on_owed = asked.append
    share = STARTER // 10
    for number in range(1, 11):
        await collect(a, b, share, account=number)
    assert asked == [a.id] * 10
    (line,) = [said for event, said in a.log.lines if event == "ledger.near_limit"]
    assert (line["role"], line["owed_micro"], line["limit_micro"]) == (
        "creditor",
        9 * share,
        STARTER,
    )
    assert [is_near(share * number, STARTER) for number in (0, 8, 9)] == [False, False, True]
    assert not is_near(0, 0)
    assert is_near(1, 0)


def test_a_starter_of_any_size_gives_a_limit_that_can_be_booked():
    huge = LimitSettings(10**22)
    assert limit_terms(huge, Trust("direct", PPM), 10**30, None).limit_micro == AMOUNT_MAX
