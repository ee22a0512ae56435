"""The space of real nodes, by the command line and the client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

from tests.e2e.conftest import Member, call, wait_for
from xsc import api
from xsc.base.errors import NodeUnreachable
from xsc.client import SpaceChange, connect
from xsc.client.calls import value_of
from xsc.client.core import Core


@contextmanager
def watching(member, words=""):
    """Give the lines that a watch prints; it has begun."""
    process = subprocess.Popen(
        [sys.executable, "-m", "xsc", "--home", str(member.home), "space", "watch", *words.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr.readline() == b"watching\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_what_is_put_is_there_is_told_and_survives_a_restart(start):
    member, process = start(options="--name alice")
    assert member("space put notes/a hello").line == "2"
    assert member("space get notes/a").out == b"hello"
    assert member("space put bytes -", stdin=b"a\0\xff\n").line == "3"
    assert member("space get bytes").out == b"a\0\xff\n"
    shown = member("space get alice:bytes --json").json
    assert shown["value"] == {"base64": "YQD/Cg=="}
    assert (shown["owner"], shown["path"], shown["sequence"]) == (member.id, "bytes", 3)
    assert (shown["size_bytes"], set(shown["stamp"])) == (4, {"domain", "events"})
    (row,) = member("space ls notes --json").json["records"]
    assert row == {"owner": member.id, "path": "notes/a", "sequence": 2, "size_bytes": 5}
    with watching(member, "notes") as text, watching(member, "--json") as lines:
        member("space put notes/b two")
        assert text.stdout.readline() == b"notes/b  4  two\n"
        told = {"owner": member.id, "path": "notes/b", "sequence": 4}
        assert json.loads(lines.stdout.readline()) == told | {"value": "two"}
        done = member("space rm notes/b")
        assert (done.code, done.out, done.err) == (0, b"", "")
        assert text.stdout.readline() == b"notes/b  5  deleted\n"
        assert json.loads(lines.stdout.readline()) == told | {"sequence": 5, "value": None}
        stats = member("space stats --json").json
        assert stats["records"] == 3
        assert member("space compact --json").json["records"] == 3
        listed = member("space ls --json").json
        # Watches that are open do not hold up the end.
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=8) == 0
        assert lines.wait(timeout=20) == 5
    member, process = start()
    assert member("space ls --json").json == listed
    assert member("space get notes/a --json").json["value"] == "hello"
    assert member("space put notes/a again").line == "6"


def test_bad_input_is_refused_by_name_and_changes_nothing(start):
    member, _ = start()
    member("space get nothing").fails(2, "not_found")
    member("space rm nothing").fails(2, "not_found")
    for path in ("a//b", "../a", "/a", "é", "a" * 1025, ":a"):
        for words in (["put", path, "x"], ["ls", path]):
            member(["space", *words]).fails(2, "argument_invalid")
    member(["space", "put", "", "x"]).fails(2, "argument_invalid")
    member("space get eve:a").fails(2, "peer_unknown")
    member("space watch eve:").fails(2, "peer_unknown")
    member(["space", "put", "large", "-"], stdin=bytes(2**20 + 1)).fails(4, "too_large")
    member("space put large").fails(2, "argument_invalid")
    assert member("space ls --json").json == {"records": []}
    call("space get a", home=member.home.parent / "none").fails(2, "home_invalid")


def test_a_kill_loses_nothing_that_was_acknowledged(start):
    member, process = start()
    calls = Core(member.home)
    acked: dict[str, tuple[int, bytes]] = {}
    unanswered: dict[str, bytes] = {}

    def put(number):
        for count in range(100_000):
            path, value = f"{number}/{count % 50}", os.urandom(20 + 200 * (count % 30))
            try:
                acked[path] = (
                    calls.ask(api.space.PUT, value, at=path)["sequence"],
                    value,
                )
            except NodeUnreachable:
                unanswered[path] = value
                return

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(acked) > 150)
    process.kill()
    process.wait()
    for thread in threads:
        thread.join()
    last = max(sequence for sequence, _ in acked.values())
    found = member("node fsck --json").json
    assert (found["whole"], found["space_faults"]) == (True, [])
    start()
    for path, (sequence, value) in acked.items():
        shown = calls.ask(api.space.GET, at=path)
        assert shown["sequence"] >= sequence
        assert value_of(shown["value"]) in (value, unanswered.get(path)), path
    assert calls.ask(api.space.PUT, b"x", at="after")["sequence"] > last


def test_a_backup_brings_the_space_back(start, tmp_path):
    member, process = start(options="--name alice")
    member("space put notes/a hello")
    large = os.urandom(900_000)
    member("space put large -", stdin=large)
    found = member("node fsck --json").json
    assert (found["space_records"], found["space_faults"]) == (3, [])
    file = tmp_path / "backup"
    assert member(["node", "backup", file, "--no-bodies"]).code == 0
    member("space put notes/a later")
    listed = member("space ls --json").json
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert member("node fsck --json").json["space_records"] == 3
    new = Member(tmp_path / "new")
    done = new(["node", "restore", file, "--json"])
    assert done.code == 0, done.err
    assert done.json["backup"]["space_records"] == 3
    start("new")
    assert new("space get notes/a").out == b"hello"
    assert new("space get large").out == large
    assert len(new("space ls --json").json["records"]) == len(listed["records"])
    assert int(new("space put notes/b x").line) > 3


def test_a_put_is_watched_at_a_peer_and_who_was_killed_gets_what_it_missed(small_net):
    small_net.up(2)
    ada, bea = small_net[0], small_net[1]
    with watching(bea, f"{ada.id}:notes") as text:
        sequence = ada("space put notes/a hello").line
        assert text.stdout.readline() == f"notes/a  {sequence}  hello\n".encode()
    assert bea(f"space get {ada.id}:notes/a").out == b"hello"
    ada("space put large -", stdin=bytes(100_000))
    assert bea(f"space get {ada.id}:large").out == bytes(100_000)
    small_net.kill(small_net.status()[1:])
    for number in range(20):
        ada(f"space put nodes/{number} {number}")
    small_net.up()

    def numbered():
        rows = bea(f"space ls {ada.id}:nodes --json").json["records"]
        return [row["path"] for row in rows if row["path"].removeprefix("nodes/").isdigit()]

    wait_for(lambda: len(numbered()) == 20)
    assert bea(f"space get {ada.id}:nodes/7").out == b"7"
    stats = bea("space stats --json").json
    assert stats["subscriptions"] == 6, "what nodes publish, sign, offer, need and grant"
    assert 0 < stats["received_bytes"] < 100_000


def test_on_seven_nodes_a_put_is_watched_and_who_was_away_gets_a_thousand_updates(small_net):
    """Node 3 is killed, and fetches what it missed and nothing else when it returns."""
    small_net.up(7)
    first, third, last = small_net[0], small_net[3], small_net[6]
    with watching(last, f"{first.id}:notes") as text:
        sequence = first("space put notes/a hello").line
        assert text.stdout.readline() == f"notes/a  {sequence}  hello\n".encode()
    calls = Core(first.home)
    for number in range(1_000):
        calls.ask(api.space.PUT, b"before", at=f"nodes/{number}")

    def held(member):
        return {
            row["path"]: row["sequence"]
            for row in member(f"space ls {first.id}:nodes --json").json["records"]
        }

    wait_for(lambda: held(third) == held(first))
    received = third("space stats --json").json["received_bytes"]
    small_net.kill([small_net.status()[3]])
    for number in range(1_000):
        calls.ask(api.space.PUT, b"after %d" % number, at=f"nodes/{number % 100}")
    small_net.up()
    wait_for(lambda: held(third) == held(first))
    assert third(f"space get {first.id}:nodes/99").out == b"after 999"
    # A hundred records were changed, ten times each. Others come again that no head had proven yet.
    assert 0 < third("space stats --json").json["received_bytes"] < received * 3 // 4


async def test_the_client_puts_gets_and_watches(start):
    member, _ = start(options="--name alice")
    async with connect(member.home) as node:
        assert await node.space.put("notes/a", "text") == 2
        assert await node.space.get("alice:notes/a") == b"text"
        changes = node.space.watch("notes")
        first = asyncio.ensure_future(anext(changes))
        while not first.done():
            sequence = await node.space.put("notes/b", b"\xff")
        change = await first
        assert change == SpaceChange(node.id, "notes/b", change.sequence, b"\xff")
        assert change.sequence <= sequence
        await changes.aclose()
        await node.space.remove("notes/b")
        assert [row.path for row in await node.space.records("notes")] == ["notes/a"]
        assert (await node.space.compact())["records"] == (await node.space.stats())["records"] == 2
