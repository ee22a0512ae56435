from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, Done, Member, call, wait_for
from xsc.cli.devnet import holds


@dataclass(frozen=True)
class Devnet:
    folder: Path

    def __getitem__(self, index: int) -> Member:
        return Member(self.folder / f"node-{index}")

    def up(self, nodes: int | None = None) -> Done:
        count = [] if nodes is None else ["--nodes", nodes]
        return call(["devnet", "up", "--dir", self.folder, *count])

    def down(self) -> Done:
        return call(["devnet", "down", "--dir", self.folder])

    def status(self) -> list[dict]:
        return call(["devnet", "status", "--dir", self.folder, "--json"]).json["nodes"]

    def kill(self, rows: list[dict]) -> None:
        for row in rows:
            os.kill(row["pid"], signal.SIGKILL)
        wait_for(lambda: all(not holds(row["pid"], Path(row["home"])) for row in rows))


@pytest.fixture
def small_net(tmp_path):
    """A devnet, not started yet, stopped at the end."""
    devnet = Devnet(tmp_path / "net")
    yield devnet
    devnet.down()


def test_up_down_and_up_again(small_net):
    up = small_net.up(2)
    assert up.code == 0, up.err
    assert up.text.startswith("2 nodes run in ")
    before = small_net.status()
    assert [row["state"] for row in before] == ["running", "running"]
    small_net.up().fails(2, "home_locked")
    assert small_net.status() == before

    small_net.kill(before[1:])
    assert [row["state"] for row in small_net.status()] == ["running", "stopped"]
    assert small_net.up().code == 0
    assert [row["id"] for row in small_net.status()] == [row["id"] for row in before]
    assert small_net.status()[0] == before[0]

    down = small_net.down()
    assert down.line == "stopped 2 nodes"
    assert all(not holds(row["pid"], Path(row["home"])) for row in before)
    stopped = small_net.status()
    assert [(row["state"], row["pid"], row["api_url"]) for row in stopped] == [
        ("stopped", None, None)
    ] * 2
    assert [row["id"] for row in stopped] == [row["id"] for row in before]
    assert small_net.down().line == "stopped 0 nodes"

    assert small_net.up(3).code == 0
    assert [row["id"] for row in small_net.status()][:2] == [row["id"] for row in before]
    peers = small_net[2]("node status --json").json["peers"]
    assert (peers["known"], peers["healthy"]) == (2, 2)
    small_net.up(2).fails(2, "argument_invalid")


def test_down_leaves_a_stranger_with_the_same_number_alone(small_net):
    assert small_net.up(1).code == 0
    (row,) = small_net.status()
    assert set(row) == {"name", "id", "home", "pid", "api_url", "peer_url", "state"}
    assert (row["name"], row["state"]) == ("node-0", "running")
    assert row["home"] == str(small_net[0].home)
    assert (small_net[0].home / "node.pid").read_text().strip() == str(row["pid"])
    assert re.fullmatch(r"[a-z2-7]{52}", row["id"])
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", row["api_url"])
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        small_net.kill([row])
        (small_net[0].home / "node.pid").write_text(f"{stranger.pid}\n")
        assert small_net.status()[0]["state"] == "stopped"
        assert small_net.down().line == "stopped 0 nodes"
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")


def test_a_node_that_was_started_otherwise_is_seen_and_stopped(small_net):
    assert small_net.up(1).code == 0
    small_net.kill(small_net.status())
    started = call(["--home", small_net[0].home, "node", "start", "--wait", "--json"])
    assert started.code == 0, started.err
    assert [row["pid"] for row in small_net.status()] == [started.json["pid"]]
    assert small_net.down().text == "stopped 1 node\n"
    assert not holds(started.json["pid"], small_net[0].home)


def test_a_node_that_cannot_start_is_named_and_nothing_stays(small_net):
    home = small_net.folder / "node-1"
    home.mkdir(parents=True)
    (home / "config.toml").write_text("nonsense")
    done = small_net.up(2)
    done.fails(2, "config_invalid")
    assert str(home) in done.err
    assert "config_invalid" in (home / "node.log").read_text()
    assert {row["state"] for row in small_net.status()} == {"stopped"}


def test_the_demo_holds(tmp_path):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "demo.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "all of it held" in done.stdout
    assert re.search(
        r"\n\$ xsc --home net/node-0 dashboard\nhttp://127\.0\.0\.1:[0-9]+/login\?", done.stdout
    )
    drawn = {path.name for path in (tmp_path / "try").glob("terminal-*.svg")}
    assert drawn >= {
        f"terminal-{name}.svg" for name in ("capacity", "runs", "availability", "payments")
    }
