"""An honest provider that ended a lease as it was asked to is said to have denied it."""

import asyncio

from tests.unit.market.test_bills import BEGIN, Pair
from xsc.base.limits import EPOCH_MS


def test_a_lease_that_was_given_up_is_not_denied_where_the_answer_was_lost():
    async def play():
        pair = Pair(0)
        await pair.begin()
        steps = ("time", EPOCH_MS), ("need", 0), ("lose", ("account", 1)), ("time", 1)
        for step in (*BEGIN, *steps):
            await pair.step(*step)
        await pair.end()

    asyncio.run(play())


def test_both_bills_are_equal_where_the_answer_to_a_lowering_was_lost():
    async def play():
        pair = Pair(20_000)
        await pair.begin()
        pair.check = lambda: None  # Whether it is denied is the matter of the test above.
        steps = ("time", EPOCH_MS), ("need", 0), ("lose", ("account", 1)), ("time", 61_000)
        for step in (*BEGIN, *steps):
            await pair.step(*step)
        await pair.end()

    asyncio.run(play())
