"""Real nodes, in real processes, driven by the real command line."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from xsc.cli.devnet import start_ticks
from xsc.client.core import Core

NODES = 7
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
    """Run one command line."""
    given = shlex.split(words) if isinstance(words, str) else [str(word) for word in words]
    place = [] if home is None else ["--home", str(home)]
    done = subprocess.run(
        [sys.executable, "-m", "xsc", *place, *given],
        input=stdin,
        capture_output=True,
        env={**os.environ, **env},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


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


@dataclass(frozen=True)
class Net:
    """A devnet."""

    folder: Path

    def __getitem__(self, index: int) -> Member:
        return Member(self.folder / f"node-{index}")

    def up(self, nodes: int | None = None) -> Done:
        count = [] if nodes is None else ["--nodes", nodes]
        # All that is ever logged is logged in tests: one of them looks for secrets in it.
        return call(["devnet", "up", "--dir", self.folder, *count], XSC_LOG_LEVEL="debug")

    def down(self) -> Done:
        return call(["devnet", "down", "--dir", self.folder])

    def status(self) -> list[dict]:
        return call(["devnet", "status", "--dir", self.folder, "--json"]).json["nodes"]

    def kill(self, rows: list[dict]) -> None:
        for row in rows:
            os.kill(row["pid"], signal.SIGKILL)
        wait_for(lambda: all(start_ticks(row["pid"]) is None for row in rows))


def serves(member: Member, pid: int) -> bool:
    """Say whether that process serves the home: a killed one leaves its files behind."""
    try:
        ours = (member.home / "node.pid").read_text().strip() == str(pid)
    except FileNotFoundError:
        return False
    return ours and Core(member.home).alive()


def wait_for(condition, seconds: float = 30.0):
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


@pytest.fixture(scope="session")
def net(tmp_path_factory):
    """Seven nodes that see each other, for all tests; who takes one away brings it back."""
    devnet = Net(tmp_path_factory.mktemp("devnet"))
    started = devnet.up(NODES)
    assert started.code == 0, started.err
    rows = devnet.status()
    yield devnet
    rows += devnet.status()
    assert devnet.down().code == 0
    assert [row for row in rows if start_ticks(row["pid"] or 0)] == []


@pytest.fixture
def small_net(tmp_path):
    """A devnet of the test's own, not started yet, stopped at the end."""
    devnet = Net(tmp_path / "net")
    yield devnet
    devnet.down()


@contextmanager
def starting(folder: Path):
    """Start single nodes, each in a home under a folder; all are stopped at the end."""
    processes: list[subprocess.Popen] = []

    def starter(name: str = "home", options: str = "", *, ready: bool = True, prefix=(), **env):
        member = Member(folder / name)
        words = ["--home", str(member.home), "node", "start", *shlex.split(options)]
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "xsc", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
        )
        processes.append(process)
        if ready:
            wait_for(lambda: process.poll() is not None or serves(member, process.pid))
            assert process.poll() is None, process.stderr.read().decode()
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
