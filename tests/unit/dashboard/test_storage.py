"""The page Storage and that of one object: what they show, put and get, and what they refuse."""

import re
from html import unescape
from urllib.parse import quote, unquote

import pytest

from tests.sim.network import content, put, run, stream
from tests.unit.dashboard.browser import Browser
from xsc.api import objects
from xsc.api.objects import Under
from xsc.base.limits import MIB
from xsc.dashboard.app import attached
from xsc.dashboard.pages.storage import object_id
from xsc.dashboard.source import fetch

LONG = "%C3%A4" * 50
SETTINGS = {"repair_grace": "60s", "repair_interval": "5min", "probe_interval": "15s"}


def rows_of(answer):
    return re.findall(r'id="object-([0-9a-f]+)"', answer.text)


def test_objects_are_shown_with_their_hosts_the_newest_first():
    async def play(world):
        node = world.nodes[0]
        browser = Browser(node)
        assert "Nothing is stored yet" in (await browser.get("/storage")).seen
        capabilities = []
        for name in ("first", "<b>bold</b>\x1b"):
            done = await node.storage.put(stream(content(MIB)), name=name)
            capabilities.append(done.capability)
            await world.clock.sleep_ms(1000)
        answer = await browser.get("/storage")
        assert answer.status == 200
        assert rows_of(answer) == [object_id(each) for each in reversed(capabilities)]
        assert "&lt;b&gt;bold&lt;/b&gt;\\x1b" in answer.text
        assert "2 more nodes may be lost" in answer.seen
        for host in {*done.hosts}:
            assert node.name_of(host) in answer.seen
        # Neither the page nor a link in it says how an object is read.
        assert "xsc:r:" not in answer.text
        listed = await browser.server.ask(objects.LIST, Under())
        for value, origins in answer.numbers:
            for origin in origins:
                if origin.startswith("/v1/objects#/objects/"):
                    _, _, place, key = origin.partition("#")[2].split("/")
                    assert listed["objects"][int(place)][key] == value

    run(80, 7, play, SETTINGS)


def test_objects_come_in_pages_and_by_name_and_danger():
    async def play(world):
        node = world.nodes[0]
        browser = Browser(node)
        for number in range(102):
            await node.storage.put(stream(b"x"), name=f"File {number} {unquote(LONG)}")
        first, second = await browser.get("/storage"), await browser.get("/storage?page=2")
        assert len(rows_of(first)) == 100
        assert len(rows_of(second)) == 2
        assert not {*rows_of(first)} & {*rows_of(second)}
        assert "page 2 of 2: 102 objects" in second.seen
        (older,) = re.findall(
            r'href="([^"]+)">Older<', (await browser.get(f"/storage?name={LONG}")).text
        )
        assert unescape(older) == f"/storage?page=2&name={LONG}"
        assert "No object is shown here" in (await browser.get("/storage?page=99999")).seen
        assert len(rows_of(await browser.get("/storage?name=fILE+10"))) == 3
        assert rows_of(await browser.get("/storage?endangered=1")) == []
        rows = await fetch(browser.server, objects.LIST, Under(), window=slice(2))
        assert (rows.total, [row["name"] for row in rows]) == (
            102,
            [f"File {number} {unquote(LONG)}" for number in (0, 1)],
        )
        assert rows[1]["size_bytes"].origin == "/v1/objects#/objects/1/size_bytes"
        for index in (1, 2, 3):
            await world.crash(index)
        await world.until(lambda: sum(map(node.health.is_up, node.peers.roster.all_peers())) == 3)
        answer = await browser.get("/storage?endangered=1")
        assert rows_of(answer)
        assert "cannot be read now" in answer.seen
        assert "(down)" in answer.seen

    run(81, 7, play, {**SETTINGS, "repair_grace": "1d"})


@pytest.mark.parametrize("page", ["0", "-1", "1.5", "x", "", "²", "0" * 5_000, "1&page=x%00"])
def test_a_page_that_is_no_number_is_refused(page):
    async def play(world):
        answer = await Browser(world.nodes[0]).get(f"/storage?page={quote(page, safe='&=%')}")
        if page.startswith("1&"):
            assert answer.status == 200  # The first of two counts.
        else:
            assert answer.status == 400
            assert "page must be a whole number from 1" in answer.seen

    run(82, 1, play)


def test_one_object_says_who_holds_each_shard():
    async def play(world):
        node = world.nodes[0]
        browser = Browser(node)
        capability = await put(node, content(MIB))
        hosts = [host.node for host in (await node.storage.stat(capability)).hosts]
        path = f"/storage/object?id={object_id(capability)}"
        answer = await browser.get(path)
        assert answer.status == 200
        assert len(re.findall('id="shard-', answer.text)) == 6
        assert all(node.name_of(host) in answer.seen for host in hosts)
        assert "4 needed, 2 more" in answer.seen
        assert (4, ["/v1/object/stat#/code/k"]) in answer.numbers
        victim = next(host for host in hosts if host != node.key.node_id)
        await world.crash(world.index_of(victim))
        assert "unreachable" in (await browser.get(path)).seen
        for given in ("", "x", "0" * 16, object_id(capability)[:15], "%00"):
            answer = await browser.get(f"/storage/object?id={given}")
            assert answer.status == 404
            assert "this node lists no such object" in answer.seen

    run(83, 7, play, SETTINGS)


def test_put_and_get_give_back_what_was_sent():
    async def play(world):
        browser = Browser(world.nodes[0])
        data, name = content(2 * MIB + 1), 'a/ä "b";\r\n<i>.txt'
        answer = await browser.put(quote(name), data)
        assert answer.status == 200
        assert answer.json == {"says": "stored at 6 nodes; any 2 of them may be lost", "hint": ""}
        (row,) = await fetch(browser.server, objects.LIST, Under())
        assert row["name"] == name
        given = await browser.post("/storage/get", id=object_id(row["capability"]))
        assert (given.status, given.body) == (200, data)
        assert given.headers["X-Content-Type-Options"] == "nosniff"
        assert given.headers["Cache-Control"] == "no-store"
        said = given.headers["Content-Disposition"]
        assert unquote(said.partition("UTF-8''")[2]) == 'ä "b";__<i>.txt'
        # A newer version takes the name: the older one is given for as long as a page shows it.
        assert (await browser.put(quote(name), b"new")).status == 200
        given = await browser.post("/storage/get", id=object_id(row["capability"]))
        assert given.body == data

    run(84, 7, play, SETTINGS)


def test_a_put_that_is_refused_says_why():
    async def play(world):
        node = world.nodes[0]
        browser = Browser(node)
        for sent in ({"XSC_CSRF": ""}, {"XSC_CSRF": "wrong"}):
            answer = await browser.put("a", b"x", **sent)
            assert (answer.status, answer.json["says"]) == (
                403,
                "the page is of an earlier session",
            )
        assert (await browser.put("a", b"x", Origin="http://127.0.0.1:4001")).status == 403
        assert (await browser.put("a", b"x", Cookie="")).status == 401
        for name in ("n" * 10_000, "a%00b"):
            answer = await browser.put(name, b"x")
            assert (answer.status, bool(answer.json["says"])) == (400, True)
        with pytest.raises(ConnectionResetError):
            await browser.put("a", content(3 * MIB), breaks=ConnectionResetError())
        assert not node.storage.ls()
        for index in range(1, 7):
            await world.crash(index)
        await world.until(lambda: not any(map(node.health.is_up, node.peers.roster.all_peers())))
        answer = await browser.put("a", content(MIB))
        assert answer.status >= 400
        assert answer.json["says"]
        assert "node-1 (" in answer.json["says"]

    run(85, 7, play, SETTINGS)


def test_what_cannot_be_got_is_said():
    async def play(world):
        node = world.nodes[0]
        browser = Browser(node)
        capability = await put(node, content(MIB))
        for index in range(1, 7):
            await world.crash(index)
        found = object_id(capability)
        answer = await browser.post("/storage/get", id=found)
        assert answer.status >= 400
        assert "Content-Disposition" not in answer.headers
        assert "That did not work" in answer.seen
        assert (await browser.post("/storage/get", id="x")).status == 404
        assert (await browser.post("/storage/get", id=found, csrf="x")).status == 403
        assert (await browser.get("/storage/get")).status == 400
        answer = await browser.get(f"/storage/object?id={found}")
        assert answer.status == 200
        assert "cannot be read now" in answer.seen

    run(86, 7, play, SETTINGS)


@pytest.mark.parametrize(
    ("name", "plain", "coded"),
    [
        ("photo.jpg", "photo.jpg", "photo.jpg"),
        ("a/b\\c d", "c d", "c%20d"),
        ("../..", "object", "object"),
        ("", "object", "object"),
        ('"; x=\r\n\0', "__ x____", "%22%3B%20x%3D___"),
        ("\u202eexe.txt", "_exe.txt", "_exe.txt"),
        ("x\udcff", "x_", "x_"),
    ],
)
def test_a_file_is_named_safely(name, plain, coded):
    assert attached(name) == f"attachment; filename=\"{plain}\"; filename*=UTF-8''{coded}"


def test_a_long_name_of_a_file_is_cut():
    assert len(attached("\U0001f600" * 10_000)) < 4_000


def test_repairs_are_shown_with_what_moved():
    async def play(world):
        node = world.nodes[0]
        browser = Browser(node)
        capability = await put(node, content(MIB))
        assert "None runs" in (await browser.get("/storage")).seen
        hosts = [host.node for host in (await node.storage.stat(capability)).hosts]
        victim = next(host for host in hosts if host != node.key.node_id)
        running = []

        def mended():
            running.extend(node.storage.repairer.under_way)
            return bool(node.storage.repairer.recent)

        await world.crash(world.index_of(victim))
        await world.until(mended, within_ms=600_000)
        (row,) = await fetch(browser.server, objects.REPAIRS, objects.Nothing())
        assert (row["name"], row["runs"], row["left"]) == ("object", False, 0)
        assert not node.storage.repairer.under_way
        answer = await browser.get("/storage")
        assert f"from {node.name_of(victim)} (absent) to" in answer.seen
        node.storage.repairer.under_way[row["object"].encode()] = world.clock.now_ms()
        assert "under way" in (await browser.get("/storage")).seen

    run(87, 8, play, SETTINGS)
