"""What an operator said of a payment stays until it is booked, whatever runs beside it."""

import asyncio

import pytest

from tests.settle import settle, turns
from tests.unit.ledger.circle import Circle, collect
from xsc.base.clock import InlineExecutor
from xsc.base.errors import ArgumentInvalid, EntryRefused, PeerSilent
from xsc.ledger.payments import ACCOUNT, PAID, check_amount, report


class Threads(InlineExecutor):
    """Ends what it was given later, in order, as a thread does; reports after so many turns."""

    def __init__(self, report_turns=5):
        self.report_turns = report_turns

    async def run(self, function, *args, **kwargs):
        is_report = bool(args) and any(key.startswith(PAID) for key, _ in args[0])
        await turns(self.report_turns if is_report else 5)
        return function(*args, **kwargs)


async def owing(owed_micro, executor=None):
    """Return two members of which the second owes the first; below zero, is owed."""
    circle = Circle(2)
    a, b = circle.members
    if executor is not None:
        a.executor = executor
        a.crash()
    if owed_micro > 0:
        await collect(a, b, owed_micro)
    if owed_micro < 0:
        await collect(b, a, -owed_micro)
    return a, b


@pytest.mark.parametrize("owed_micro", [1_000, 0, -1_000])
@pytest.mark.parametrize("by_peer", [True, False])
async def test_a_word_is_shown_only_while_who_owes_is_who_it_says_has_paid(owed_micro, by_peer):
    """To say the same after it has turned would book that the other one paid."""
    a, b = await owing(owed_micro)
    paid = report(*((b.id, a.id) if by_peer else (a.id, b.id)), 7, 1)
    header = {"v": 1, "paid": paid.to_value()}
    await a.ledger.handlers()[ACCOUNT](b.id, header, ())
    fits = owed_micro > 0 if by_peer else owed_micro < 0
    assert a.ledger.payments.heard(b.id) == (7 if fits else 0)


@pytest.mark.parametrize(
    ("amount_micro", "balance_micro", "clearing_micro", "wrong"),
    [
        (1, 0, 0, "neither of the two nodes owes"),
        (1, 1, 0, None),
        (1, -1, 0, None),
        (2, 1, 0, "the peer owes this node 0.000001 credits, less than 0.000002"),
        (2, -1, 0, "this node owes the peer 0.000001 credits, less than 0.000002"),
        (6, 10, -4, None),
        (7, 10, -4, "0.000004 credits of this debt are taken off by a loop"),
        (6, -10, 4, None),
        (7, -10, 4, "0.000004 credits of this debt are taken off by a loop"),
    ],
)
def test_no_more_is_paid_than_is_owed(amount_micro, balance_micro, clearing_micro, wrong):
    found = check_amount(amount_micro, balance_micro, clearing_micro)
    assert (found or "").startswith(wrong or "")
    assert (found is None) is (wrong is None)


@pytest.mark.parametrize("steps", range(20))
async def test_what_is_said_while_the_payment_before_is_cleared_away_is_kept(steps):
    """Whatever number of turns of the event loop comes between both."""
    a, b = await owing(1_000, Threads())
    payments = a.ledger.payments
    assert not await b.ledger.payments.say(a.id, 5)
    assert await payments.say(b.id, 5)
    saying = asyncio.create_task(payments.say(b.id, 7))
    await turns(steps)
    clearing = asyncio.create_task(payments.run())
    await saying
    await settle()
    clearing.cancel()
    assert payments.left_micro(payments.waiting(b.id)) == 7


async def test_a_report_is_of_what_is_owed_when_its_turn_comes():
    """What is booked while it waits for the one before counts."""
    a, b = await owing(1_000, Threads(report_turns=200))
    payments = a.ledger.payments
    before = asyncio.create_task(payments.say(b.id, 0))
    saying = asyncio.create_task(payments.say(b.id, 1_000))
    await turns(1)
    await collect(b, a, 400, account=2)
    assert not before.done()
    with pytest.raises(ArgumentInvalid, match="less than"):
        await saying
    await before


async def test_a_silent_peer_holds_up_no_report_to_another():
    """Else fifteen of them would be more than the time within which each is to hear."""
    circle = Circle(5)
    a, *others = circle.members
    for number, peer in enumerate(others, 1):
        await collect(a, peer, 1_000, account=number)
        await a.ledger.payments.say(peer.id, 7)
    circle.sent.clear()

    async def silence(*_):
        await asyncio.Event().wait()

    circle.deliver = silence
    running = asyncio.create_task(a.ledger.payments.run())
    await settle()
    asked = {peer for _, peer, method, _ in circle.sent if method == ACCOUNT}
    assert asked == {peer.id for peer in others}
    running.cancel()


async def test_a_payee_that_agrees_and_refuses_does_not_have_the_chain_grow():
    a, b = await owing(-1_000)

    async def refuse(*_):
        raise EntryRefused("no")

    b.ledger.proposals.on_propose = refuse
    await a.ledger.payments.say(b.id, 10)
    theirs = a.ledger.payments.waiting(b.id)
    before = a.ledger.chain.state.halves
    for _ in range(20):
        await a.ledger.handlers()[ACCOUNT](b.id, {"v": 1, "paid": theirs.to_value()}, ())
    assert a.ledger.chain.state.halves <= before + 3
    before = a.ledger.chain.state.halves
    await a.ledger.payments.say(b.id, 11)  # said anew, it is tried anew
    again = {"v": 1, "paid": theirs.model_copy(update={"amount_micro": 11}).to_value()}
    await a.ledger.handlers()[ACCOUNT](b.id, again, ())
    assert a.ledger.chain.state.halves == before + 2


async def test_a_payee_that_refuses_at_the_retry_does_not_have_the_chain_grow():
    a, b = await owing(-1_000)
    seen = set()

    async def refuse_later(_caller, header, _parts):
        if header["half"] in seen:
            raise EntryRefused("no")
        seen.add(header["half"])
        raise PeerSilent("later")

    b.ledger.proposals.on_propose = refuse_later
    await a.ledger.payments.say(b.id, 10)
    theirs = a.ledger.payments.waiting(b.id)
    before = a.ledger.chain.state.halves
    for _ in range(20):
        await a.ledger.handlers()[ACCOUNT](b.id, {"v": 1, "paid": theirs.to_value()}, ())
        await a.ledger.retry_pending()
    assert len(seen) == 1
    assert a.ledger.chain.state.halves <= before + 3
