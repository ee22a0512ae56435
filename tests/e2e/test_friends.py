"""docs/twelve-friends.md, played by seven of them: every command after the making of a node."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, Member, serves, starting, wait_for

PAGE = REPOSITORY / "docs" / "twelve-friends.md"
FRIENDS = ("alice", "bob", "carol", "dave", "erin", "frank", "grace")
HOME = ".local/share/xsc"


def chapters() -> dict[str, list[str]]:
    """Return the command lines of each heading of the page."""
    found = {}
    for part in PAGE.read_text().split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        found[title] = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return found


class Circle:
    """Friends, each with a directory of its own and the node of its home."""

    def __init__(self, folder: Path, start) -> None:
        self.folder = folder
        self.start = start
        self.played: set[str] = set()

    def of(self, name: str) -> Member:
        return Member(self.folder / name / HOME)

    def serve(self, name: str, *, ready: bool = True):
        how = {"XSC_COMPUTE_WORKERS": "1", "XSC_PROBE_INTERVAL": "1s"}
        return self.start(f"{name}/{HOME}", ready=ready, **how)[1]

    def play(self, begin: str) -> None:
        """Run the commands under a heading, as the friend whom it names."""
        (title,) = [title for title in CHAPTERS if title.startswith(begin)]
        self.played.add(title)
        name = begin.partition(":")[0].lower()
        for line in CHAPTERS[title]:
            if line == "xsc node start --wait":
                self.serve(name)
                continue
            if line == "xsc peer ls":
                # It takes some seconds until everybody was introduced, as the page says.
                wait_for(lambda: self.sees(name) == {*FRIENDS} - {name}, 60)
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=self.folder / name,
                env={
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "HOME": str(self.folder / name),
                    "LC_ALL": "C.UTF-8",
                },
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{name}$ {line}\n{done.stdout}{done.stderr}"

    def give(self, name: str, file: str, to: str) -> None:
        shutil.copy(self.folder / name / file, self.folder / to / file)

    def invite(self, guest: str, file: str) -> None:
        (self.folder / guest / file).write_text(self.of("alice")("peer invite").text)

    def sees(self, name: str) -> set[str]:
        rows = self.of(name)("peer ls --json").json["peers"]
        return {row["name"] for row in rows if row["state"] == "up"}


CHAPTERS = chapters()


@pytest.fixture
def circle(tmp_path):
    with starting(tmp_path) as start:
        yield Circle(tmp_path, start)


def test_friends_go_from_nothing_to_a_file_that_comes_back(circle):
    processes = {}
    for name in FRIENDS:
        (circle.folder / name).mkdir()
        assert circle.of(name)(f"node init --name {name}").code == 0
        processes[name] = circle.serve(name, ready=False)
    for name, process in processes.items():
        wait_for(lambda name=name, process=process: serves(circle.of(name), process.pid), 60)
    home = circle.of("bob").home
    assert (
        circle.of("bob")(["node", "identity", "export", circle.folder / "bob" / "bob.key"]).code
        == 0
    )
    for name in FRIENDS[2:]:
        circle.invite(name, "invitation")
        there = circle.folder / name / "invitation"
        assert circle.of(name)(["peer", "add", f"@{there}"]).code == 0
    circle.play("Alice: invite")
    circle.give("alice", "bob.invitation", "bob")

    circle.play("Bob: join")

    photo, album = circle.folder / "bob" / "photo.jpg", circle.folder / "bob" / "album"
    photo.write_bytes(os.urandom(500_000))
    album.mkdir()
    (album / "notes").write_text("once")
    circle.play("Bob: store")
    circle.give("bob", "photo.cap", "carol")
    circle.play("Carol: read")
    assert (circle.folder / "carol" / "photo.jpg").read_bytes() == photo.read_bytes()
    circle.play("Bob: every now and then")

    before = photo.read_bytes()
    processes["bob"].kill()
    processes["bob"].wait()
    shutil.rmtree(home)
    photo.unlink()
    circle.invite("bob", "back.invitation")
    circle.play("Bob: the machine is gone")
    assert photo.read_bytes() == before
    assert {title for title in CHAPTERS if CHAPTERS[title]} - circle.played == {
        title for title in CHAPTERS if title.startswith("Everybody:")
    }
