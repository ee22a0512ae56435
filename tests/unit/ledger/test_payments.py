"""What an operator said of a payment stays until it is booked, whatever runs beside it."""

import asyncio

import pytest

from tests.unit.ledger.circle import NETWORK, Lines
from xsc.base.clock import InlineExecutor, ManualClock
from xsc.base.errors import PeerSilent
from xsc.db.memory import MemoryKeyValue
from xsc.identity.keys import KeyPair
from xsc.ledger.payments import Payments

PEER = KeyPair(b"p" * 32).node_id


class Threads(InlineExecutor):
    """Ends what it was given later, in order, as a thread does."""

    async def run(self, function, *args, **kwargs):
        for _ in range(5):
            await asyncio.sleep(0)
        return function(*args, **kwargs)


class Books:
    """A ledger in which the peer owes 1000, and so much was paid."""

    def __init__(self):
        self.paid_micro = 0

    def balance(self, _peer):
        return 1_000

    def limit(self, _peer):
        return 10_000

    def settled_between(self, _lease_id, *, debtor, creditor):
        assert PEER in (debtor, creditor)
        return self.paid_micro


class Silence:
    """Peers that do not answer."""

    async def call(self, *_args, **_options):
        raise PeerSilent("silent")


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("steps", range(20))
async def test_what_is_said_while_the_payment_before_is_cleared_away_is_kept(steps):
    """However many steps lie between the two."""
    books = Books()
    payments = Payments(
        key=KeyPair(b"k" * 32),
        network=NETWORK,
        clock=ManualClock(),
        executor=Threads(),
        caller=Silence(),
        ledger=books,
        left=lambda _: 0,
        state=MemoryKeyValue(),
        log=Lines(),
    )
    await payments.say(PEER, 5)
    books.paid_micro = 5  # booked: what was said is over
    saying = asyncio.create_task(payments.say(PEER, 7))
    await turns(steps)
    clearing = asyncio.create_task(payments.run())
    await saying
    await turns(40)
    clearing.cancel()
    assert payments.waiting(PEER).amount_micro == 7
