"""Every page in the menu of a node that has something to show: numbers are what the API says."""

from __future__ import annotations

import re
import sys

from tests.sim.network import content, put, run
from tests.sim.test_programs import counter
from tests.sim.test_services import SERVING, ask, deploy
from tests.sim.test_slots import SETTINGS, mutual, need
from tests.unit.compute.programs import wasm
from tests.unit.dashboard.browser import Browser
from xsc.base.ids import to_text
from xsc.base.jobs import JobSpec
from xsc.dashboard.app import PAGES
from xsc.dashboard.source import Number

SERVING_ALL = {**SETTINGS, **SERVING, "offer": "all"}
QUERIES = ("/programs?under=compute&sizes=1", "/programs/why?at=demo/n")
HOSTILE = b"<script>alert(1)</script>" + b"<b>" * 300


async def fill(world):
    """Let the first node have something of everything."""
    node, peer, other = world.nodes
    await mutual(node, peer, other)
    await need(node, 2)
    await world.clock.sleep_ms(10_000)
    await put(node, content(100_000), code=(1, 1))
    for customer, provider in ((node, peer), (peer, node)):
        there = to_text(provider.key.node_id)
        await customer.compute.run(JobSpec.invoke(wasm("add"), "add", ["1", "2"], on=there))
    await deploy(world, on=0)
    await ask(world, at=0)
    await node.programs.start(counter(peer.config.name, read="demo/a"), "json")
    await node.programs.register(counter(node.config.name, read="demo/b"), "json")
    await peer.space.put_all({"demo/a": b"40"})
    await node.space.put_all({"demo/text": HOSTILE, "demo/binary": b"\xff", "demo/a.b~c": b"1"})
    await world.clock.sleep_ms(20_000)


def test_each_number_of_each_page_is_what_the_api_says(monkeypatch):
    def bare(number):
        # What formats a number with its unit is given to `shown`.
        assert "/xsc/base/" in sys._getframe(1).f_code.co_filename, "it is written without origin"
        return str(int(number))

    monkeypatch.setattr(Number, "__str__", bare)

    async def play(world):
        browser = Browser(world.nodes[0])
        for filled in (False, True):
            if filled:
                await fill(world)
            for path in [*(path for path, page in PAGES.items() if page.listed), *QUERIES]:
                page = await browser.shown(path)
                assert not re.search(r'="[^"]*<data', page)
                assert "<script>alert" not in page
                assert page.count("<b>") == 0

    run(1, 3, play, SERVING_ALL)


def test_a_page_costs_no_peer_a_call_but_where_it_says_so():
    async def play(world):
        node = world.nodes[0]
        browser, transport, sent = Browser(node), node.parts.transport, []
        await fill(world)
        send = transport.send

        def noted(*asked):
            sent.append(asked)
            return send(*asked)

        transport.send = noted
        for path in [*(path for path, page in PAGES.items() if page.listed), QUERIES[0]]:
            assert "data-held" not in (await browser.get(path)).text
            assert not sent, path
        assert "data-held" in (await browser.get("/programs/why?at=demo/n")).text
        assert sent

    run(5, 3, play, SERVING_ALL)


def test_compute_shows_jobs_services_and_their_requests():
    async def play(world):
        browser = Browser(world.nodes[0])
        page = await browser.shown("/compute")
        assert "xsc compute run MODULE" in page
        assert "xsc compute deploy MODULE --name NAME" in page
        await fill(world)
        page = await browser.shown("/compute")
        assert page.count("<data") > 20
        assert "Last requests of greet" in page
        assert page.count('id="request-') == 1
        assert page.count('id="event-compute.') == 2
        await world.nodes[0].services.owner.undeploy("greet")
        await deploy(world, on=1)
        assert ">placed<" in await browser.shown("/compute")

    run(2, 3, play, SERVING_ALL)


def test_programs_show_their_values_and_lead_to_what_is_behind_them():
    async def play(world):
        node = world.nodes[0]
        browser = Browser(node)
        assert "xsc program run FILE" in await browser.shown("/programs")
        await fill(world)
        page = await browser.shown("/programs")
        rows = node.programs.status()
        assert all(f'id="program-{row.hash}"' in page for row in rows)
        assert re.search(r'id="output-\w+-n"><th scope="row">n</th><td class="wide">41</td>', page)
        assert 'href="/programs/why?at=demo/n"' in page
        assert "xsc program activate" in page
        assert "binary" in page
        assert 'id="record-compute' not in page
        inner = await browser.shown("/programs?under=compute")
        assert 'id="record-compute' in inner
        theirs = await browser.shown(f"/programs?owner={to_text(world.nodes[1].key.node_id)}")
        assert "xsc space get" in theirs
        tree = await browser.shown("/programs/why?at=demo/n")
        assert tree.count("<details open>") == 1
        assert "math.add" in tree
        assert '">node-1</span>' in tree
        assert "not verified" not in tree

    run(3, 3, play, SERVING_ALL)


def test_what_is_asked_wrongly_is_said_on_the_page():
    async def play(world):
        browser = Browser(world.nodes[0])
        for path in ("/programs?owner=nobody", "/programs?under=..", "/programs/why?at=no/such"):
            assert 'class="bad"' in await browser.shown(path)
        assert "<script>" not in await browser.shown("/programs?under=%3Cscript%3E")
        await browser.shown("/programs/why")

    run(4, 2, play, SERVING_ALL)
