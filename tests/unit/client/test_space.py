"""The client's calls for the space, and streams of events."""

from __future__ import annotations

import asyncio
import threading

import pytest

from xsc.api import space as api
from xsc.base.errors import NodeUnreachable, PeerUnknown
from xsc.client import SpaceChange, SpaceRecord, connect
from xsc.client.core import Core

WRITTEN = {"owner": "n0", "path": "notes/a", "sequence": 7}
WATCH = "/v1/space/watch?under=notes"


@pytest.fixture
def space(stand_in):
    return connect(stand_in.home).space


async def test_a_day_with_the_space(stand_in, space):
    stand_in.answers("PUT", "/v1/space/record?at=notes%2Fa", WRITTEN)
    assert await space.put("notes/a", "größe") == 7
    assert stand_in.last.body == "größe".encode()
    assert await space.put("notes/a", b"a\0\xff") == 7
    assert stand_in.last.body == b"a\0\xff"
    shown = {**WRITTEN, "size_bytes": 3, "stamp": {}, "value": {"base64": "YQD/"}}
    stand_in.answers("GET", "/v1/space/record?at=bob%3Anotes%2Fa", shown)
    assert await space.get("bob:notes/a") == b"a\0\xff"
    assert await space.stat("bob:notes/a") == shown
    stand_in.answers("DELETE", "/v1/space/record?at=notes%2Fa", WRITTEN)
    assert await space.remove("notes/a") == 7
    stand_in.answers(
        "GET", "/v1/space/records?under=notes", {"records": [{**WRITTEN, "size_bytes": 3}]}
    )
    assert await space.records("notes") == [SpaceRecord("n0", "notes/a", 7, 3)]
    stand_in.answers("GET", "/v1/space/stats", {"records": 1})
    stand_in.answers("POST", "/v1/space/compact", {"records": 1})
    assert await space.stats() == await space.compact() == {"records": 1}
    stand_in.answers("GET", "/v1/space/diagnostics", {"programs": []})
    assert await space.diagnostics() == {"programs": []}


async def test_a_watch_yields_changes_and_ends_with_the_node(stand_in, space):
    changes = [{**WRITTEN, "value": "text"}, {**WRITTEN, "value": None}]
    stand_in.tells(WATCH, changes)
    told = space.watch("notes")
    assert await anext(told) == SpaceChange("n0", "notes/a", 7, b"text")
    assert await anext(told) == SpaceChange("n0", "notes/a", 7, None)
    with pytest.raises(NodeUnreachable, match="has stopped"):
        await anext(told)


async def test_a_watch_that_is_cancelled_leaves_no_thread_waiting(stand_in, space):
    ended = threading.Event()
    opened = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(request):
        request.answer.raw(200, {"Content-Type": "text/event-stream"}, b":\n\n")
        request.answer.wfile.flush()
        loop.call_soon_threadsafe(opened.set)
        assert request.answer.rfile.read(1) == b"", "the client hangs up"
        ended.set()

    stand_in.routes["GET", WATCH] = hold

    async def watch():
        async for _ in space.watch("notes"):
            raise AssertionError("nothing changes")

    watching = asyncio.create_task(watch())
    await opened.wait()
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert await asyncio.to_thread(ended.wait, 20)


def test_what_is_no_stream_of_events_is_said_to_be(stand_in):
    core = Core(stand_in.home)
    body = b"data: {no JSON\n\n"
    stand_in.routes["GET", WATCH] = lambda request: request.answer.raw(200, {}, body)
    with (
        core.events(api.WATCH, under="notes") as events,
        pytest.raises(NodeUnreachable, match="is no XSC node"),
    ):
        list(events)
    stand_in.refuses("GET", WATCH, "peer_unknown", "no such peer")
    with pytest.raises(PeerUnknown):
        core.events(api.WATCH, under="notes")


def test_a_stream_that_was_closed_just_ends(stand_in):
    stand_in.tells(WATCH, [WRITTEN])
    with Core(stand_in.home).events(api.WATCH, under="notes") as events:
        changes = iter(events)
        assert next(changes) == WRITTEN
        events.close()
        assert list(changes) == []


async def test_replaced_values_are_listed_and_read(stand_in, space):
    row = {**WRITTEN, "size_bytes": 1}
    stand_in.answers("GET", "/v1/space/versions?at=a", {"records": [row]})
    assert await space.versions("a") == [SpaceRecord(**row)]
    stand_in.answers("GET", "/v1/space/record?at=a&sequence=3", {**row, "value": "old"})
    assert await space.get("a", sequence=3) == b"old"
