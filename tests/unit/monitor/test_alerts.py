"""Targets are told once; what they are, how they fail and what they answer harms nothing."""

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from tests.settle import until
from tests.unit.monitor.test_conditions import PEER, PEER_ROW, WELL, with_status
from xsc.base.clock import ManualClock
from xsc.base.errors import NotFound, SpaceExhausted, StoreDamaged
from xsc.base.ids import to_text
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.keys import KeyPair
from xsc.monitor import alerts
from xsc.monitor.conditions import RETRY_MS

KEY = KeyPair(bytes([1]) * 32)
ME = KEY.node_id
BAD = with_status("leases", ending=2)


class Told:
    """Takes lines of the log."""

    def __init__(self):
        self.lines = []

    def info(self, event, **fields):
        self.lines.append((event, fields))

    warning = error = info


class Board:
    """Alerts with a store of their own."""

    def __init__(self, *targets):
        self.full = False
        self.clock, self.log, self.state, self.targets = (
            ManualClock(),
            Told(),
            MemoryKeyValue(),
            targets,
        )
        self.reopen()

    def reopen(self):
        async def commit(changes):
            if self.full:
                raise SpaceExhausted("the disk is full")
            self.state.write(changes, sync=True)

        ports = (self.clock, None, None, None, self.log, self.state, commit)
        names = {ME: "bob", PEER: "eve"}
        self.alerts = alerts.Alerts(Context(KEY, b"", *ports), self.targets, names.get)

    async def look(self, measures=BAD):
        await self.alerts.look(measures)


def program(folder, text):
    """Return a target that runs a program, and where that writes what it heard."""
    path = folder / "told.py"
    path.write_text(text)
    return f"exec:{sys.executable} {path} '{folder / 'heard'}' $HOME"


HEARS = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + sys.stdin.read() + '\\n')"


async def test_a_program_hears_one_document_without_a_shell(tmp_path):
    board = Board(program(tmp_path, HEARS))
    await board.look()
    await board.look()
    (line,) = (tmp_path / "heard").read_text().splitlines()
    assert line.startswith("$HOME")
    said = json.loads(line.removeprefix("$HOME"))
    assert said["kind"] == "lease"
    assert said["name"] == "bob"
    board.reopen()
    await board.look()
    assert len((tmp_path / "heard").read_text().splitlines()) == 1
    assert [each.kind for each in board.alerts.shown()] == ["lease"]


async def test_what_was_acknowledged_stays_so_after_a_restart(tmp_path):
    board = Board()
    await board.look()
    with pytest.raises(NotFound):
        await board.alerts.acknowledge("debt/")
    assert await board.alerts.acknowledge() == 1
    board.reopen()
    await board.look()
    assert board.alerts.shown() == []


@pytest.mark.parametrize(
    "text", ["import sys; sys.exit(3)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
)
async def test_a_program_that_fails_is_run_again_later(tmp_path, text):
    board = Board(program(tmp_path, text))
    await board.look()
    assert [event for event, _ in board.log.lines] == ["node.alert", "node.alert_not_told"]
    await board.look()
    assert len(board.log.lines) == 2
    (tmp_path / "told.py").write_text(HEARS)
    board.clock.advance_to(board.clock.now_ms() + RETRY_MS)
    await board.look()
    assert (tmp_path / "heard").exists()


async def test_a_program_that_never_ends_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(alerts, "EXEC_MS_MAX", 300)
    text = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    board = Board(program(tmp_path, text))
    while not (tmp_path / "heard").exists() or not (tmp_path / "heard").read_text():
        board.clock.advance_to(board.clock.now_ms() + 2 * RETRY_MS * 64)
        await board.look()
    pid = (tmp_path / "heard").read_text()
    await until(lambda: not is_running(pid))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("target", ["exec:/no/such/program", "http://127.0.0.1:1/x"])
async def test_what_is_not_there_is_logged_without_the_target(target):
    board = Board(target)
    await board.look()
    event, fields = board.log.lines[-1]
    assert event == "node.alert_not_told"
    assert target not in str(fields)


async def test_a_test_alert_says_of_each_target_whether_it_took_it(tmp_path):
    async def refuse(_):
        return web.Response(status=403)

    async with Hook(refuse) as hook:
        host = hook.url.removeprefix("http://")
        well = program(tmp_path, HEARS)
        targets = (
            well,
            "exec:/no/such/program --token=hush",
            f"http://me:hush@{host}/hush?hush",
            f"{hook.url}?hush",
            "https://[",
            # Nobody but the system may listen there.
            "http://127.0.0.1:1/",
        )
        board = Board(*targets)
        told = await board.alerts.test()
        assert [(each.target, each.taken, each.reason) for each in told] == [
            (f"exec:{sys.executable}", True, ""),
            (
                "exec:/no/such/program",
                False,
                "the program does not start: No such file or directory",
            ),
            (hook.url, False, "the URL answers 403"),
            (hook.url, False, "the URL answers 404"),
            ("https://[", False, "the URL cannot be reached: InvalidUrlClientError"),
            (
                "http://127.0.0.1:1",
                False,
                "the URL cannot be reached: Connect call failed ('127.0.0.1', 1)",
            ),
        ]
    said = json.loads((tmp_path / "heard").read_text().removeprefix("$HOME"))
    assert (said["kind"], said["peer"], said["name"]) == ("test", None, "bob")
    assert "hush" not in str(board.log.lines)
    # It is no alert: nothing is shown or kept, and none counts as told.
    assert board.alerts.shown() == []
    assert board.state.get(alerts.STATE) is None


async def test_a_test_alert_without_a_target_is_refused():
    with pytest.raises(NotFound, match="notify names no target"):
        await Board().alerts.test()


class Hook:
    """A URL that answers as it is told to."""

    def __init__(self, answer):
        self.heard = []
        self.answer = answer

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/{name}", self.handle)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_):
        await self.runner.cleanup()

    async def handle(self, request):
        self.heard.append((request.path, await request.json()))
        return await self.answer(request)


async def test_a_url_hears_once():
    async def well(_):
        return web.Response(status=204)

    async with Hook(well) as hook:
        board = Board(f"{hook.url}/a", f"{hook.url}/b")
        await board.look()
        await board.look()
        assert sorted(path for path, _ in hook.heard) == ["/a", "/b"]
        assert hook.heard[0][1]["says"].endswith("2")


async def test_no_redirect_is_followed():
    async def elsewhere(request):
        return web.HTTPTemporaryRedirect(f"http://{request.host}/secret")

    async with Hook(elsewhere) as hook:
        board = Board(f"{hook.url}/a")
        await board.look()
        assert [path for path, _ in hook.heard] == ["/a"]
        assert board.log.lines[-1][0] == "node.alert_not_told"


async def test_a_url_that_hangs_or_never_stops_answering_holds_nothing_up(monkeypatch):
    monkeypatch.setattr(alerts, "URL_MS_MAX", 300)
    never = asyncio.Event()

    async def hang(_):
        await never.wait()

    async def flood(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(2**16))

    async with Hook(hang) as slow, Hook(flood) as endless:
        board = Board(f"{slow.url}/a", f"{endless.url}/b")
        await board.look()
        told = [fields["reason"] for event, fields in board.log.lines if "not_told" in event]
        assert told == ["the URL does not answer"]
        (kept,) = board.alerts.shown()
        assert len(kept.told) == 1
        never.set()


async def test_a_damaged_row_is_said():
    board = Board()
    await board.look()
    board.state.write([(alerts.STATE, b"\xff")], sync=True)
    with pytest.raises(StoreDamaged, match="alerts"):
        board.reopen()


async def test_nothing_is_written_while_nothing_changes():
    board = Board()
    await board.look(WELL)
    assert board.state.get(alerts.STATE) is None
    await board.look(replace(WELL, proofs=1))
    assert board.state.get(alerts.STATE) is not None


async def test_a_full_disk_does_not_silence_what_is_told_of_it(tmp_path):
    board = Board(program(tmp_path, HEARS))
    board.full = True
    bad = with_status("storage", disk_free_bytes=0)
    await board.look(bad)
    board.clock.advance_to(board.clock.now_ms() + RETRY_MS)
    for _ in range(3):
        await board.look(bad)
    assert len((tmp_path / "heard").read_text().splitlines()) == 1
    assert [event for event, _ in board.log.lines] == ["node.alert", "node.alerts_not_kept"]


async def test_what_a_program_that_ended_well_has_left_runs_on(tmp_path):
    text = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
    )
    board = Board(program(tmp_path, text))
    await board.look()
    pid = (tmp_path / "heard").read_text()
    assert is_running(pid)
    os.kill(int(pid), signal.SIGKILL)


async def test_alerts_about_every_peer_are_read_again():
    board = Board("http://127.0.0.1:1/x")
    rows = [
        replace(PEER_ROW, peer=number.to_bytes(32, "big"), balance_micro=100)
        for number in range(2_000)
    ]
    await board.look(replace(WELL, peers=rows))
    board.reopen()
    assert len(board.alerts.shown()) == 2_000


async def test_a_program_does_not_hear_the_passphrase(tmp_path, monkeypatch):
    monkeypatch.setenv("XSC_PASSPHRASE", "secret")
    text = "import os, sys; open(sys.argv[1], 'w').write(str(dict(os.environ)))"
    board = Board(program(tmp_path, text))
    await board.look()
    assert "PATH" in (tmp_path / "heard").read_text()
    assert "XSC_" not in (tmp_path / "heard").read_text()


async def test_a_message_says_who_tells_it_and_whom_it_is_about(tmp_path):
    board = Board(program(tmp_path, HEARS))
    await board.look(replace(WELL, peers=[replace(PEER_ROW, balance_micro=100)]))
    said = json.loads((tmp_path / "heard").read_text().removeprefix("$HOME"))
    assert (said["node"], said["name"]) == (to_text(ME), "bob")
    assert (said["kind"], said["peer"], said["peer_name"]) == ("debt", to_text(PEER), "eve")


async def test_of_many_alerts_so_many_are_told_at_a_look():
    heard = []

    async def well(request):
        return web.Response()

    async with Hook(well) as hook:
        board = Board(f"{hook.url}/a")
        rows = [
            replace(PEER_ROW, peer=bytes([number]) * 32, balance_micro=100) for number in range(40)
        ]
        for _ in range(3):
            await board.look(replace(WELL, peers=rows))
            heard.append(len(hook.heard))
        assert heard == [16, 32, 40]
