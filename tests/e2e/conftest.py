"""Real nodes, in real processes, driven by the real command line."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.forks import Process
from xsc.cli import devnet
from xsc.client.core import Core

NODES = 7
CONFIG = """name = "{}"
peer_listen = "127.0.0.1:0"
api_listen = "127.0.0.1:0"
services_listen = "127.0.0.1:0"
compute_workers = 1
probe_interval = "2s"
"""
REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = REPOSITORY / "fixtures" / "wasm"


@dataclass(frozen=True)
class Done:
    """How a call of the command line ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def line(self) -> str:
        """The one line on standard output."""
        assert self.code == 0, self.err
        assert self.text.count("\n") == 1
        assert self.text.endswith("\n")
        return self.text[:-1]

    @property
    def json(self):
        return json.loads(self.line)

    def fails(self, code: int, name: str) -> Done:
        """Make sure that it failed as it should, in one sentence and without a result."""
        assert (self.code, self.out) == (code, b""), (self.code, self.err)
        lines = self.err.splitlines()
        assert lines[0].startswith("error: ")
        assert lines[0].endswith(f" ({name})"), self.err
        assert [line for line in lines[1:] if not line.startswith("hint: ")] == []
        assert len(lines) <= 2
        assert "Traceback" not in self.err
        return self


def call(words: str | list[str], *, home: Path | None = None, stdin: bytes = b"", **env) -> Done:
    """Run one command line, in a process of its own."""
    given = shlex.split(words) if isinstance(words, str) else [str(word) for word in words]
    place = [] if home is None else ["--home", str(home)]
    process = Process([*place, *given], stdin=stdin, **env)
    out, err = process.communicate()
    return Done(process.returncode, out, err.decode())


@dataclass(frozen=True)
class Member:
    """A node."""

    home: Path

    def __call__(self, words: str | list[str], *, stdin: bytes = b"", **env) -> Done:
        return call(words, home=self.home, stdin=stdin, **env)

    @property
    def id(self) -> str:
        return self("node status --json").json["id"]

    def put(self, content: bytes, options: str = "") -> str:
        done = self(f"store put - --name test {options}", stdin=content)
        assert done.code == 0, done.err
        return done.line

    def get(self, capability: str) -> bytes:
        done = self("store get - -o -", stdin=capability.encode())
        assert done.code == 0, done.err
        return done.out


class Net:
    """Nodes that see each other, like those of a devnet."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self._env = env
        self._processes: list[Process] = []
        self._ids: dict[int, str] = {}

    def __getitem__(self, index: int) -> Member:
        return Member(self.folder / f"node-{index}")

    def up(self, nodes: int | None = None) -> None:
        """Start what does not run, and return once each sees all others."""
        started = [
            index
            for index in range(nodes or len(self._processes))
            if index >= len(self._processes) or self._processes[index].poll() is not None
        ]
        for index in started:
            self.start(index)
        for index in started:
            self.wait_for_start(index)
        homes = [self[index].home for index in range(len(self._processes))]
        devnet.introduce(homes)
        devnet.wait_until_healthy(homes, time.monotonic() + 60)

    def start(self, index: int) -> None:
        home = self[index].home
        if not (home / "config.toml").exists():
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            (home / "config.toml").write_text(CONFIG.format(home.name))
        with (home / "node.log").open("ab") as log:
            # All that is ever logged is logged in tests: one of them looks for secrets in it.
            env = {"XSC_LOG_LEVEL": "debug", **self._env}
            process = Process(["--home", str(home), "node", "start"], log=log, **env)
        self._processes[index : index + 1] = [process]

    def wait_for_start(self, index: int) -> None:
        process, member = self._processes[index], self[index]
        wait_for(lambda: process.poll() is not None or serves(member, process.pid))
        assert process.poll() is None, (member.home / "node.log").read_text()[-2000:]
        self._ids.setdefault(index, member.id)

    def process(self, index: int) -> Process:
        return self._processes[index]

    def down(self) -> None:
        """Stop all by asking; a node that does not end well is a failure."""
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.terminate()
        assert [process.wait(60) for process in running] == [0] * len(running)

    def status(self) -> list[dict]:
        return [
            {
                "name": self[index].home.name,
                "home": str(self[index].home),
                "id": self._ids[index],
                "pid": process.pid,
                "state": "running" if process.poll() is None else "stopped",
            }
            for index, process in enumerate(self._processes)
        ]

    def kill(self, rows: list[dict]) -> None:
        for row in rows:
            process = self._processes[int(row["name"].removeprefix("node-"))]
            process.kill()
            process.wait(60)


def serves(member: Member, pid: int) -> bool:
    """Say whether that process serves the home: a killed one leaves its files behind."""
    try:
        ours = (member.home / "node.pid").read_text().strip() == str(pid)
    except FileNotFoundError:
        return False
    return ours and Core(member.home).alive()


def wait_for(condition, seconds: float = 120.0):
    """Return what the condition gives, once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.05)
    return value


def told(owner) -> int:
    """Return the newest generation of the directory that every peer has."""
    whole, _, _ = (owner.home / "node.log").read_text().rpartition("\n")
    rows = [json.loads(line) for line in whole.splitlines() if "directory.told" in line]
    return max((row["generation"] for row in rows), default=0)


def have_told(owner) -> None:
    """Return once every peer has a directory with all that was there before this call.

    What is being told now may have been written before. The one after it was not, and
    two more versions of an object see to it that there is one.
    """
    for given in (b"one", b"two"):
        before = told(owner)
        assert owner("store put - --name passing", stdin=given).code == 0
        wait_for(lambda before=before: told(owner) > before, 60)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """One worker plays all tests of the shared nodes: others would start nodes of their own."""
    for item in items:
        if "net" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("net"))


@pytest.fixture(scope="session")
def net(tmp_path_factory):
    """Seven nodes for all tests that add things under names of their own, and take none away."""
    shared = Net(tmp_path_factory.mktemp("net"))
    shared.up(NODES)
    yield shared
    shared.down()


@pytest.fixture
def small_net(tmp_path):
    """Nodes of the test's own, not started yet, stopped at the end."""
    own = Net(tmp_path / "net")
    yield own
    own.down()


@contextmanager
def starting(folder: Path):
    """Start single nodes, each in a home under a folder; all are stopped at the end."""
    processes: list[Process | subprocess.Popen] = []

    def starter(name: str = "home", options: str = "", *, ready: bool = True, prefix=(), **env):
        member = Member(folder / name)
        words = ["--home", str(member.home), "node", "start", *shlex.split(options)]
        if prefix:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "xsc", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **env},
            )
        else:
            process = Process(words, **env)
        processes.append(process)
        if ready:
            wait_for(lambda: process.poll() is not None or serves(member, process.pid))
            assert process.poll() is None, process.communicate()[1].decode()
        return member, process

    try:
        yield starter
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture
def start(tmp_path):
    """Start single nodes, each in a home under tmp_path; all are stopped at the end."""
    with starting(tmp_path) as starter:
        yield starter
