"""The ledger as a page: who owes whom, flows, and entries by pages."""

import re

import pytest

from tests.sim.network import content, put, run
from tests.sim.test_slots import SETTINGS, cleared, need, offer
from tests.unit.dashboard.rendering import check_numbers, rendered
from tests.unit.node.test_routes import Api
from xsc.base.errors import ArgumentInvalid
from xsc.base.ids import to_text
from xsc.dashboard.app import PAGES
from xsc.dashboard.views import owed

LEDGER = PAGES["/ledger"]


def test_an_empty_ledger_says_what_fills_it():
    async def play(world):
        text = await rendered(world.nodes[0], LEDGER)
        assert "<code>xsc store put FILE</code>" in text
        assert text.count("<code>xsc ledger settle</code>") == 2
        for wrong in ("x", "-1", str(2**63)):
            with pytest.raises(ArgumentInvalid, match="before must be a whole number"):
                await rendered(world.nodes[0], LEDGER, before=wrong)
        with pytest.raises(ArgumentInvalid, match="there is no entry 7"):
            await rendered(world.nodes[0], LEDGER, before="7")

    run(61, 1, play)


def test_what_a_friend_owes_is_said_in_words_and_nobody_is_asked():
    async def play(world):
        provider, customer = world.nodes
        provider.name_of = lambda _: "<i>carl</i>"
        await offer(provider, 100)
        await need(customer, 100)
        await world.until(lambda: cleared(customer))
        await put(customer, content(1_000))
        await world.until(lambda: provider.ledger.balance(customer.key.node_id) > 0)
        api = Api(provider)
        asked = []
        monkey = provider.payments.standing
        provider.payments.standing = lambda peer: asked.append(peer) or monkey(peer)
        text = await rendered(provider, LEDGER)
        assert asked == []
        assert await check_numbers(provider, text) > 10
        assert "<i>carl" not in text
        assert "owes you <data" in text
        assert "you owe <data" in await rendered(customer, LEDGER)
        (flow,) = (await api.call("GET", "/v1/ledger/flows"))["flows"]
        (row,) = (await api.call("GET", "/v1/ledger/balance?heard=1"))["balances"]
        assert asked == []
        assert row["own_limit_micro"] is None
        assert flow["peer"] == row["peer"] == to_text(customer.key.node_id)
        assert flow["earned_micro"] - flow["spent_micro"] == row["balance_micro"]
        assert (await api.call("GET", "/v1/ledger/flows?within_ms=1"))["flows"] == []
        # What the peer said last is shown once somebody has asked.
        await api.call("GET", "/v1/ledger/balance")
        (row,) = (await api.call("GET", "/v1/ledger/balance?heard=1"))["balances"]
        assert len(asked) == 1
        assert row["own_limit_micro"] == customer.ledger.limit(provider.key.node_id)

    run(62, 2, play, SETTINGS)


def test_entries_come_in_pages():
    async def play(world):
        node, peer = world.nodes
        for number in range(60):
            await node.ledger.set_limit(peer.key.node_id, number)
        seen, query = [], {}
        while True:
            text = await rendered(node, LEDGER, **query)
            await check_numbers(node, text)
            seen += re.findall(r'<tr id="entry-(\d+)">', text)
            older = re.search(r'<a href="/ledger\?before=(\d+)">', text)
            if older is None:
                break
            query = {"before": older[1]}
        assert [int(each) for each in seen] == list(range(59, -1, -1))

    run(63, 2, play)


def test_a_balance_says_who_owes():
    assert str(owed(0)) == "even, 0.000000"
    assert str(owed(5_000_000)) == "owes you 5.000000"
    assert str(owed(-5_000_000)) == "you owe 5.000000"
