"""Every page in the menu of a node that has something to show: numbers are what the API says."""

from __future__ import annotations

import html
import json
import re
import sys

from aiohttp.test_utils import make_mocked_request

from tests.sim.network import content, put, run
from tests.sim.test_programs import counter
from tests.sim.test_services import SERVING, ask, deploy
from tests.sim.test_slots import SETTINGS, mutual, need
from tests.unit.compute.programs import wasm
from xsc.base.ids import to_text
from xsc.base.jobs import JobSpec
from xsc.base.log import SilentLog
from xsc.dashboard.app import PAGES, Dashboard
from xsc.dashboard.source import Number
from xsc.node.api.app import application
from xsc.node.api.serving import Server
from xsc.node.daemon import ANSWERS

TOKEN = "t" * 52
SERVING_ALL = {**SETTINGS, **SERVING, "offer": "all"}
QUERIES = ("/programs?under=compute&sizes=1", "/programs/why?at=demo/n")
HOSTILE = b"<script>alert(1)</script>" + b"<b>" * 300
SHOWN = re.compile(r'<data value="(-?[0-9]+)" data-from="([^"]+)">([^<]*)</data>')


class Loud(SilentLog):
    """Does not hide what went wrong."""

    def error(self, event, **fields):
        raise AssertionError((event, *fields.values()))


class Site:
    """The API of a node and its pages, to which a browser is logged in, without a socket."""

    def __init__(self, node):
        server = Server(node, ANSWERS)
        node_id = to_text(node.key.node_id)
        pages = Dashboard(server, node_id, node.sessions, node.clock)
        self._answer = application(server.routes(), TOKEN, Loud(), node.peer_names, dashboard=pages)
        token = node.sessions.open(node.sessions.new_code())
        self._headers = {"Host": "localhost", "Cookie": f"xsc_{node_id}={token}"}

    async def get(self, path):
        headers = {**self._headers, "Authorization": f"Bearer {TOKEN}"}
        answer = await self._answer(make_mocked_request("GET", path, headers=headers))
        assert answer.status == 200, (path, answer.text)
        return answer.text


def at(document, pointer):
    """Return what is at a JSON pointer (RFC 6901)."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        document = document[int(key) if isinstance(document, list) else key]
    return document


async def check_numbers(site, page):
    """Check every number of a page, and return how many there are."""
    answers, found = {}, SHOWN.findall(page)
    assert len(found) == page.count("<data")
    for value, origins, _ in found:
        parts = 0
        for origin in html.unescape(origins).split():
            path, _, pointer = origin.partition("#")
            if path not in answers:
                answers[path] = json.loads(await site.get(path))
            parts += at(answers[path], pointer)
        assert parts == int(value), origins
    return len(found)


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
        site = Site(world.nodes[0])
        for filled in (False, True):
            if filled:
                await fill(world)
            for path in [*(path for path, page in PAGES.items() if page.listed), *QUERIES]:
                page = await site.get(path)
                assert not re.search(r'="[^"]*<data', page)
                assert "<script>alert" not in page
                assert page.count("<b>") == 0
                # A page that shows nothing but its frame has none.
                await check_numbers(site, page)

    run(1, 3, play, SERVING_ALL)


def test_compute_shows_jobs_services_and_their_requests():
    async def play(world):
        site = Site(world.nodes[0])
        page = await site.get("/compute")
        assert "xsc compute run MODULE" in page
        assert "xsc compute deploy MODULE --name NAME" in page
        await fill(world)
        page = await site.get("/compute")
        assert await check_numbers(site, page) > 20
        assert "Last requests of greet" in page
        assert page.count('id="request-') == 1
        assert page.count('id="event-compute.') == 2
        await world.nodes[0].services.owner.undeploy("greet")
        await deploy(world, on=1)
        assert ">placed<" in await site.get("/compute")

    run(2, 3, play, SERVING_ALL)


def test_programs_show_their_values_and_lead_to_what_is_behind_them():
    async def play(world):
        node = world.nodes[0]
        site = Site(node)
        assert "xsc program run FILE" in await site.get("/programs")
        await fill(world)
        page = await site.get("/programs")
        rows = node.programs.status()
        assert all(f'id="program-{row.hash}"' in page for row in rows)
        assert re.search(r'id="output-\w+-n"><th scope="row">n</th><td class="wide">41</td>', page)
        assert 'href="/programs/why?at=demo/n"' in page
        assert "xsc program activate" in page
        assert "binary" in page
        assert 'id="record-compute' not in page
        inner = await site.get("/programs?under=compute")
        assert 'id="record-compute' in inner
        theirs = await site.get(f"/programs?owner={to_text(world.nodes[1].key.node_id)}")
        assert "xsc space get" in theirs
        tree = await site.get("/programs/why?at=demo/n")
        assert tree.count("<details open>") == 1
        assert "math.add" in tree
        assert '">node-1</span>' in tree
        assert "not verified" not in tree

    run(3, 3, play, SERVING_ALL)


def test_what_is_asked_wrongly_is_said_on_the_page():
    async def play(world):
        site = Site(world.nodes[0])
        for path in ("/programs?owner=nobody", "/programs?under=..", "/programs/why?at=no/such"):
            assert 'class="bad"' in await site.get(path)
        assert "<script>" not in await site.get("/programs?under=%3Cscript%3E")
        await site.get("/programs/why")

    run(4, 2, play, SERVING_ALL)
