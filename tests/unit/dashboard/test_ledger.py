"""The ledger as a page: who owes whom, flows, and entries by pages."""

import re

from tests.sim.network import content, put, run
from tests.sim.test_slots import SETTINGS, cleared, need, offer
from tests.unit.dashboard.browser import Browser
from xsc.base.ids import to_text
from xsc.dashboard.views import owed


def test_an_empty_ledger_says_what_fills_it():
    async def play(world):
        browser = Browser(world.nodes[0])
        text = await browser.shown("/ledger")
        assert "<code>xsc store put FILE</code>" in text
        assert text.count("<code>xsc ledger settle</code>") == 3
        for wrong in ("x", "-1", str(2**63)):
            answer = await browser.get(f"/ledger?before={wrong}")
            assert (answer.status, "before must be a whole number" in answer.seen) == (400, True)
        answer = await browser.get("/ledger?before=7")
        assert (answer.status, "there is no entry 7" in answer.seen) == (400, True)

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
        browser = Browser(provider)
        asked = []
        monkey = provider.ledger.payments.standing
        provider.ledger.payments.standing = lambda peer: asked.append(peer) or monkey(peer)
        text = await browser.shown("/ledger")
        assert asked == []
        assert text.count("<data") > 10
        assert "<i>carl" not in text
        assert "owes you <data" in text
        assert "you owe <data" in await Browser(customer).shown("/ledger")
        (flow,) = (await browser.api("/v1/ledger/flows"))["flows"]
        (row,) = (await browser.api("/v1/ledger/balance?heard=1"))["balances"]
        assert asked == []
        assert row["own_limit_micro"] is None
        assert flow["peer"] == row["peer"] == to_text(customer.key.node_id)
        assert flow["earned_micro"] - flow["spent_micro"] == row["balance_micro"]
        # What the peer said last is shown once somebody has asked.
        await browser.api("/v1/ledger/balance")
        (row,) = (await browser.api("/v1/ledger/balance?heard=1"))["balances"]
        assert len(asked) == 1
        assert row["own_limit_micro"] == customer.ledger.limit(provider.key.node_id)

    run(62, 2, play, SETTINGS)


def test_entries_come_in_pages():
    async def play(world):
        node, peer = world.nodes
        for number in range(60):
            await node.ledger.set_limit(peer.key.node_id, number)
        browser, seen, query = Browser(node), [], ""
        while True:
            text = await browser.shown(f"/ledger{query}")
            seen += re.findall(r'<tr id="entry-(\d+)">', text)
            older = re.search(r'<a href="/ledger\?before=(\d+)">', text)
            if older is None:
                break
            query = f"?before={older[1]}"
        assert [int(each) for each in seen] == list(range(59, -1, -1))

    run(63, 2, play)


def test_a_balance_says_who_owes():
    assert str(owed(0)) == "even, 0.000000"
    assert str(owed(5_000_000)) == "owes you 5.000000"
    assert str(owed(-5_000_000)) == "you owe 5.000000"
