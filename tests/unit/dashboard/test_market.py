"""Market, allocation and explanation as pages: of an empty node, and of one with needs."""

import re

from tests.sim.network import run
from tests.sim.test_slots import SETTINGS, cleared, mutual, need, of, offer
from tests.unit.dashboard.browser import Browser
from xsc.allocation.queries import GROUPS
from xsc.base.ids import to_text

NAMED_AS_HTML = "<b onclick=x>&\"'\x1b[2J</b>" + "x" * 10_000


def bars(text, place):
    """Return the places and lengths of the parts of bars whose ids begin so, by id."""
    found = re.findall(rf'<rect id="({place}[^"]*)"[^>]* x="(\d+)" y="0" width="(\d+)"', text)
    return {part: (int(x), int(width)) for part, x, width in found}


def test_an_empty_node_says_which_commands_fill_its_pages():
    async def play(world):
        browser = Browser(world.nodes[0])
        market = await browser.shown("/market")
        for command in ("market need", "market offer", "peer invite", "store put"):
            assert f"<code>xsc {command} " in market or f"<code>xsc {command}<" in market
        allocation = await browser.shown("/allocation")
        for command in ("market need storage 10GiB", "market offer storage all", "peer invite"):
            assert f"<code>xsc {command}</code>" in allocation
        for text in (market, allocation):
            assert "<data" in text
        answer = await browser.get("/market/why")
        assert (answer.status, "explains one need or slot" in answer.seen) == (400, True)
        assert (await browser.get("/market/why?id=nothing")).status == 404
        for wrong in ("", "x", "-1", "0" * 5_000, "0" * 20 + "9" * 20, "²", str(2**63)):
            answer = await browser.get(f"/market?first={wrong}")
            assert (answer.status, "first must be a whole number" in answer.seen) == (400, True)

    run(51, 1, play, SETTINGS)


def test_what_a_need_was_granted_and_why_is_on_pages_whose_numbers_are_the_api_s():
    async def play(world):
        provider, friend, stranger = world.nodes
        await mutual(provider, friend)
        await offer(provider, 1, "compute")  # so it follows what others need
        await need(friend, 60)
        wanted = await need(stranger, 100)
        await world.clock.sleep_ms(60_000)
        await offer(provider, 110)
        await world.until(lambda: of(provider, stranger) == 50 and cleared(stranger))
        provider.name_of = lambda _: NAMED_AS_HTML
        at_stranger, at_provider = Browser(stranger), Browser(provider)
        text = await at_stranger.shown("/market")
        assert text.count("<data") > 20
        assert f'<a href="/market/why?id={to_text(wanted)}">' in text
        assert bars(text, f"got-{to_text(wanted)}") == {f"got-{to_text(wanted)}": (0, 500)}
        why = await at_stranger.shown(f"/market/why?id={to_text(wanted)}")
        assert why.count("<data") > 5
        assert "<strong>Because " in why
        assert "mutual recognition of " in why, "what would have given it more"

        theirs = await at_stranger.api("/v1/allocation?slots=1&lines=1")
        whole = await at_stranger.api("/v1/allocation")
        assert (len(theirs["slots"]), theirs["more"]) == (1, len(whole["slots"]) - 1)
        assert (len(theirs["slots"][0]["allocations"]), theirs["slots"][0]["more"]) == (1, 1)
        assert whole["more"] == 0 == whole["slots"][0]["more"]
        text = await at_provider.shown("/allocation")
        assert text.count("<data") > 30
        assert "<b onclick" not in text
        assert "&lt;b onclick=x&gt;" in text
        assert "\x1b" not in text
        assert "x" * 200 not in text
        parts = bars(text, "part-")
        assert sorted(width for _, width in parts.values()) == [454, 545]
        assert [width for _, width in bars(text, "tier-").values() if width] == [545, 454]
        assert len(re.findall(r'<tr id="group-', text)) == len(GROUPS) == 11
        assert all(f'id="group-{name}"' in text for name in GROUPS)
        market = await at_provider.shown("/market")
        assert market.count("<data") > 20
        assert "rents from you" in market
        # What was moved is another length of the same part.
        said = await at_provider.post(
            "/allocation/recognise", who=to_text(friend.key.node_id), weight_ppm="0"
        )
        assert said.status == 200
        await world.until(lambda: provider.allocator.state.slot_denominators[0].tiers[0].given == 0)
        moved = await at_provider.shown("/allocation")
        assert bars(moved, "tier-").keys() == bars(text, "tier-").keys()
        assert bars(moved, "tier-") != bars(text, "tier-")

    run(52, 3, play, SETTINGS)


def test_leases_come_in_pages(monkeypatch):
    async def play(world):
        provider, customer = world.nodes
        await offer(provider, 50)
        await offer(provider, 50, "compute")
        await need(customer, 50)
        await need(customer, 50, "compute")
        await world.until(lambda: len(cleared(customer)) == 2)
        monkeypatch.setattr("xsc.dashboard.pages.market.LEASES_SHOWN", 1)
        browser = Browser(customer)
        first, second = await browser.shown("/market"), await browser.shown("/market?first=1")
        for text, link in ((first, "first=1"), (second, "first=0")):
            assert text.count('<tr id="lease-') == 1
            assert re.findall(r'<a href="/market\?(\w+=\d+)">', text) == [link]

    run(53, 2, play, SETTINGS)
