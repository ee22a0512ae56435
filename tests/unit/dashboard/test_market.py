"""Market, allocation and explanation as pages: of an empty node, and of one with needs."""

import re

import pytest

from tests.sim.network import run
from tests.sim.test_slots import SETTINGS, cleared, mutual, need, of, offer
from tests.unit.dashboard.rendering import check_numbers, rendered
from xsc.allocation.queries import GROUPS
from xsc.base.errors import ArgumentInvalid, NotFound
from xsc.base.ids import to_text
from xsc.dashboard.app import ACTIONS, PAGES
from xsc.node.api.serving import Server
from xsc.node.daemon import ANSWERS

MARKET, WHY, ALLOCATION = (PAGES[path] for path in ("/market", "/market/why", "/allocation"))
NAMED_AS_HTML = "<b onclick=x>&\"'\x1b[2J</b>" + "x" * 10_000


def bars(text, place):
    """Return the places and lengths of the parts of bars whose ids begin so, by id."""
    found = re.findall(rf'<rect id="({place}[^"]*)"[^>]* x="(\d+)" y="0" width="(\d+)"', text)
    return {part: (int(x), int(width)) for part, x, width in found}


def test_an_empty_node_says_which_commands_fill_its_pages():
    async def play(world):
        (node,) = world.nodes
        market = await rendered(node, MARKET)
        for command in ("market need", "market offer", "peer invite", "store put"):
            assert f"<code>xsc {command} " in market or f"<code>xsc {command}<" in market
        allocation = await rendered(node, ALLOCATION)
        for command in ("market need storage 10GiB", "market offer storage all", "peer invite"):
            assert f"<code>xsc {command}</code>" in allocation
        for text in (market, allocation):
            assert await check_numbers(node, text) > 0
        with pytest.raises(ArgumentInvalid, match="explains one need or slot"):
            await rendered(node, WHY)
        with pytest.raises(NotFound):
            await rendered(node, WHY, id="nothing")
        for wrong in ("", "x", "-1", "0" * 5_000, "0" * 20 + "9" * 20, "²", str(2**63)):
            with pytest.raises(ArgumentInvalid, match="first must be a whole number"):
                await rendered(node, MARKET, first=wrong)

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
        text = await rendered(stranger, MARKET)
        assert await check_numbers(stranger, text) > 20
        assert f'<a href="/market/why?id={to_text(wanted)}">' in text
        assert bars(text, f"got-{to_text(wanted)}") == {f"got-{to_text(wanted)}": (0, 500)}
        why = await rendered(stranger, WHY, id=to_text(wanted))
        assert await check_numbers(stranger, why) > 5
        assert "<strong>Because " in why
        assert "mutual recognition of " in why, "what would have given it more"

        text = await rendered(provider, ALLOCATION)
        assert await check_numbers(provider, text) > 30
        assert "<b onclick" not in text
        assert "&lt;b onclick=x&gt;" in text
        assert "\x1b" not in text
        assert "x" * 200 not in text
        parts = bars(text, "part-")
        assert sorted(width for _, width in parts.values()) == [454, 545]
        assert [width for _, width in bars(text, "tier-").values() if width] == [545, 454]
        assert len(re.findall(r'<tr id="group-', text)) == len(GROUPS) == 11
        assert all(f'id="group-{name}"' in text for name in GROUPS)
        market = await rendered(provider, MARKET)
        assert await check_numbers(provider, market) > 20
        assert "rents from you" in market
        # What was moved is another length of the same part.
        said = await ACTIONS["/allocation/recognise"].change(
            Server(provider, ANSWERS),
            {"who": to_text(friend.key.node_id), "weight_ppm": "0"},
        )
        assert not said.wrong
        await world.until(lambda: provider.allocator.state.slot_denominators[0].tiers[0].given == 0)
        moved = await rendered(provider, ALLOCATION)
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
        first = await rendered(customer, MARKET)
        second = await rendered(customer, MARKET, first="1")
        for text, link in ((first, "first=1"), (second, "first=0")):
            assert text.count('<tr id="lease-') == 1
            assert re.findall(r'<a href="/market\?(\w+=\d+)">', text) == [link]
            assert await check_numbers(customer, text) > 0

    run(53, 2, play, SETTINGS)
