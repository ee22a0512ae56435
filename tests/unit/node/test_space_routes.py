"""The space endpoints of a node, over HTTP."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from urllib.parse import quote

import pytest
from aiohttp import ClientSession, web

from tests.settle import until
from tests.sim.network import World
from tests.unit.node.test_routes import serving
from xsc.base.ids import to_text
from xsc.base.limits import MIB
from xsc.base.log import SilentLog
from xsc.net.peers.roster import PeerInfo
from xsc.node.api import serving as serving_module
from xsc.node.api.app import application
from xsc.space.limits import WATCHES_MAX

TOKEN = "a" * 52


class Api:
    """The space of a node that knows one peer."""

    def __init__(self, url, session, node, peer):
        self.url, self.session = url, session
        self.node, self.peer = node, peer
        self.own = to_text(node.key.node_id)

    async def call(self, method, path, body=None):
        data = None if body is None else io.BytesIO(body)
        async with self.session.request(method, self.url + path, data=data) as answer:
            return answer.status, json.loads(await answer.read())

    async def put(self, path, value):
        return await self.call("PUT", f"/v1/space/record?at={quote(path)}", value)

    async def get(self, address):
        return await self.call("GET", f"/v1/space/record?at={quote(address)}")

    async def versions(self, path):
        return await self.call("GET", f"/v1/space/versions?at={quote(path)}")

    async def paths(self, address=""):
        status, found = await self.call("GET", f"/v1/space/records?under={quote(address)}")
        assert status == 200
        return [row["path"] for row in found["records"]]


@pytest.fixture
async def api():
    """Two nodes that were never started: they call nobody."""
    world = World(1, 2)
    node, peer = world.make(0), world.make(1)
    info = PeerInfo(
        node_id=peer.key.node_id,
        name="bob",
        addresses=("127.0.0.1:1",),
        fingerprint=None,
        added_ms=0,
    )
    node.peers.roster.restore(info)
    app = application(serving(node).routes(), TOKEN, SilentLog(), dict)
    runner = web.ServerRunner(web.Server(app, access_log=None), shutdown_timeout=0.02)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with ClientSession(headers=headers) as session:
        yield Api(f"http://{host}:{port}", session, node, peer)
    await runner.cleanup()


async def replicated(api, path, value):
    """Let the node have a record of its peer."""
    await api.peer.space.put(path, value)
    signed = api.peer.space.get(path).signed
    taken = await api.node.space.take(signed.author, [(signed, value)])
    assert taken.paths == [path]


async def test_a_value_is_written_shown_listed_and_deleted(api):
    assert await api.put("notes/a", b"text") == (
        200,
        {"owner": api.own, "path": "notes/a", "sequence": 2},
    )
    assert (await api.put("notes/b", b"a\0\xff"))[1]["sequence"] == 3
    status, shown = await api.get("notes/a")
    stamp = shown.pop("stamp")
    assert (status, shown) == (
        200,
        {
            "owner": api.own,
            "path": "notes/a",
            "sequence": 2,
            "size_bytes": 4,
            "value": "text",
        },
    )
    record = api.node.space.get("notes/a").signed.record
    assert stamp == {
        "domain": to_text(record.domain),
        "events": b64encode(record.stamp).decode(),
    }
    assert (await api.get(f"{api.own}:notes/b"))[1]["value"] == {"base64": "YQD/"}
    assert await api.paths() == ["causality/interval", "notes/a", "notes/b"]
    assert await api.paths("notes/") == await api.paths("node-0:notes") == ["notes/a", "notes/b"]
    status, gone = await api.call("DELETE", "/v1/space/record?at=notes/a")
    assert (status, gone["sequence"]) == (200, 4)
    assert await api.paths("notes") == ["notes/b"]
    for method in ("GET", "DELETE"):
        status, problem = await api.call(method, "/v1/space/record?at=notes/a")
        assert (status, problem["code"]) == (404, "not_found")


async def test_what_is_replicated_of_a_peer_is_shown_under_its_name_and_id(api):
    await replicated(api, "nodes/address", b"here")
    peer = to_text(api.peer.key.node_id)
    for owner in ("bob", peer, peer[:10]):
        status, shown = await api.get(f"{owner}:nodes/address")
        assert (status, shown["owner"], shown["value"]) == (200, peer, "here")
        assert await api.paths(f"{owner}:") == ["nodes/address"]
    assert await api.paths() == []


async def test_nobody_writes_in_the_space_of_a_peer(api):
    await replicated(api, "a", b"theirs")
    for method in ("PUT", "DELETE"):
        status, problem = await api.call(method, "/v1/space/record?at=bob:a", b"mine")
        assert (status, problem["code"]) == (403, "not_allowed")
    assert (await api.get("bob:a"))[1]["value"] == "theirs"


@pytest.mark.parametrize(
    "path", ["causality/interval", "nodes/address", "nodes/departure", "nodes/members/0"]
)
async def test_only_the_node_itself_writes_its_place_in_causality_and_what_it_is(api, path):
    await api.call("PUT", "/v1/space/record?at=a", b"x")
    for method in ("PUT", "DELETE"):
        status, problem = await api.call(method, f"/v1/space/record?at={path}", b"x")
        assert (status, problem["code"]) == (400, "argument_invalid")


@pytest.mark.parametrize(
    "path", ["", "a//b", "../a", "a/..", "/a", "a b", "a%00", "é", ":a", "a" * 1025]
)
async def test_what_is_no_path_is_refused_and_changes_nothing(api, path):
    for method in ("GET", "PUT", "DELETE"):
        status, problem = await api.call(method, f"/v1/space/record?at={path}", b"x")
        assert (status, problem["code"]) == (400, "argument_invalid")
        assert problem["hint"] or path == ":a"
    assert await api.paths() == []


async def test_owners_that_nobody_knows_are_refused(api):
    for place in ("record?at=eve:a", "records?under=eve:", "watch?under=eve:"):
        status, problem = await api.call("GET", f"/v1/space/{place}")
        assert (status, problem["code"]) == (404, "peer_unknown")


async def test_a_value_has_a_mebibyte_and_no_more(api):
    assert (await api.put("large", bytes(MIB)))[0] == 200
    status, problem = await api.put("larger", bytes(MIB + 1))
    assert (status, problem["code"]) == (413, "too_large")
    assert "larger" not in await api.paths()


async def test_stats_count_and_a_compaction_shows_them_after(api):
    await api.put("a", b"x")
    status, before = await api.call("GET", "/v1/space/stats")
    assert status == 200
    assert before["records"] == 2
    assert before["live_bytes"] > 1
    assert (before["subscriptions"], before["received_bytes"], before["sent_bytes"]) == (0, 0, 0)
    assert await api.call("POST", "/v1/space/compact", b"{}") == (200, before)
    assert (await api.call("POST", "/v1/space/compact", b'{"now": 1}'))[0] == 400


async def test_diagnostics_show_the_place_in_causality(api):
    status, before = await api.call("GET", "/v1/space/diagnostics")
    assert (status, before["programs"], before["subscriptions"]) == (200, [], [])
    (bob,) = before["nodes"]
    assert (bob["name"], bob["head_age_ms"], bob["active"]) == ("bob", None, False)
    assert before["causality"] == {"domain": None, "interval": None, "stamp_bytes": 0}
    await api.put("programs/x", b"x")
    _, after = await api.call("GET", "/v1/space/diagnostics")
    assert [row["path"] for row in after["programs"]] == ["programs/x"]
    assert after["causality"]["stamp_bytes"] > 0
    assert len(after["causality"]["domain"]) == 52


async def events(answer):
    """Yield the changes of a stream of events, and None for each comment."""
    async for line in answer.content:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))
        elif line != b"\n":
            assert line == b":\n"
            yield None


async def test_a_watch_tells_changes_as_events(api):
    await api.put("notes/before", b"x")
    async with (
        api.session.get(api.url + "/v1/space/watch?under=notes") as own,
        api.session.get(api.url + "/v1/space/watch?under=bob:notes") as theirs,
    ):
        assert own.content_type == "text/event-stream"
        own_events, their_events = events(own), events(theirs)
        assert await anext(own_events) is None
        assert await anext(their_events) is None
        await api.put("other", b"x")
        await api.put("notes/a", b"two\nlines")
        assert await anext(own_events) == {
            "owner": api.own,
            "path": "notes/a",
            "sequence": 4,
            "value": "two\nlines",
        }
        await api.call("DELETE", "/v1/space/record?at=notes/a")
        assert (await anext(own_events))["value"] is None
        await replicated(api, "notes/a", b"\xff")
        change = await anext(their_events)
        assert (change["owner"], change["value"]) == (
            to_text(api.peer.key.node_id),
            {"base64": "/w=="},
        )


async def test_a_watch_ends_with_the_node_or_its_reader(api, monkeypatch):
    monkeypatch.setattr(serving_module, "BEAT_MS", 5)
    place = api.url + "/v1/space/watch"
    async with api.session.get(place) as left, api.session.get(place) as stays:
        for answer in (left, stays):
            assert await anext(events(answer)) is None
        left.close()
        await until(lambda: len(api.node.space._watches) == 1)
        assert await anext(events(stays)) is None, "a comment while nothing changes"
        api.node.space.end_watches()
        assert [event async for event in events(stays) if event] == []
    assert api.node.space._watches == []


async def test_watches_are_bounded(api):
    for _ in range(WATCHES_MAX):
        api.node.space.watch("")
    status, problem = await api.call("GET", "/v1/space/watch")
    assert (status, problem["code"]) == (429, "rate_limited")


async def test_a_replaced_value_is_listed_and_read_by_its_sequence(api):
    api.node.space._keep_versions = 2
    first, second = [(await api.put("a", value))[1]["sequence"] for value in (b"1", b"2")]
    assert (await api.versions("a"))[1]["records"] == [
        {"owner": api.own, "path": "a", "sequence": first, "size_bytes": 1}
    ]
    old = await api.call("GET", f"/v1/space/record?at=a&sequence={first}")
    assert (old[0], old[1]["value"]) == (200, "1")
    for wrong in (second, 10**6):
        status, answer = await api.call("GET", f"/v1/space/record?at=a&sequence={wrong}")
        assert (status, answer["code"]) == (404, "not_found")
    assert (await api.call("GET", "/v1/space/record?at=a&sequence=x"))[0] == 400
    assert (await api.versions("bob:a"))[1]["code"] == "not_allowed"
    assert (await api.versions(""))[0] == 400
