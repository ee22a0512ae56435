"""What an operator said of a payment stays until it is booked, whatever runs beside it."""

import asyncio

import pytest

from tests.settle import settle, turns
from tests.unit.ledger.circle import NETWORK, Lines
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.errors import ArgumentInvalid, PeerSilent
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.keys import KeyPair
from xsc.ledger.payments import ACCOUNT, Payments

PEER = KeyPair(b"p" * 32).node_id


class Threads(InlineExecutor):
    """Ends what it was given later, in order, as a thread does."""

    async def run(self, function, *args, **kwargs):
        await turns(5)
        return function(*args, **kwargs)


class Books:
    """A ledger in which the peer owes 1000, and so much was paid."""

    def __init__(self):
        self.paid_micro = 0
        self.owed_micro = 1_000
        self.clearing_micro = 0

    def balance(self, _peer):
        return self.owed_micro

    def clearing(self, _peer):
        return self.clearing_micro

    def limit(self, _peer):
        return 10_000

    def settled_between(self, _lease_id, *, debtor, creditor):
        assert PEER in (debtor, creditor)
        return self.paid_micro


class Silence:
    """Peers that do not answer."""

    async def call(self, *_args, **_options):
        raise PeerSilent("silent")


def payments_of(books):
    key, clock = KeyPair(b"k" * 32), ManualClock()
    context = Context(key, NETWORK, clock, SeededEntropy(b"k"), Threads(), Silence(), Lines())
    return Payments(context, ledger=books, left=lambda _: 0, state=MemoryKeyValue())


@pytest.mark.parametrize("owed_micro", [1_000, 0, -1_000])
@pytest.mark.parametrize("by_peer", [True, False])
async def test_a_word_is_shown_only_while_who_owes_is_who_it_says_has_paid(owed_micro, by_peer):
    """To say the same after it has turned would book that the other one paid."""
    books = Books()
    books.owed_micro = owed_micro
    payments = payments_of(books)
    await payments.handlers()[ACCOUNT](PEER, {"v": 1, "paid_micro": 7, "is_payer": by_peer}, ())
    fits = owed_micro > 0 if by_peer else owed_micro < 0
    assert payments.heard(PEER) == (7 if fits else 0)


async def test_what_a_complete_loop_takes_off_is_not_paid_in_money():
    """It would be paid twice, once the loop is booked."""
    books = Books()
    payments = payments_of(books)
    for books.owed_micro, books.clearing_micro in ((1_000, -600), (-1_000, 600)):
        with pytest.raises(ArgumentInvalid, match="are taken off by a loop"):
            await payments.say(PEER, 401)
        assert not await payments.say(PEER, 400)


@pytest.mark.parametrize("steps", range(20))
async def test_what_is_said_while_the_payment_before_is_cleared_away_is_kept(steps):
    """Whatever number of turns of the event loop comes between both."""
    books = Books()
    payments = payments_of(books)
    await payments.say(PEER, 5)
    books.paid_micro = 5  # booked: what was said is over
    saying = asyncio.create_task(payments.say(PEER, 7))
    await turns(steps)
    clearing = asyncio.create_task(payments.run())
    await saying
    await settle()
    clearing.cancel()
    assert payments.waiting(PEER).amount_micro == 7
