"""What shows on a terminal only: tables of its width, progress, and questions."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from contextlib import contextmanager

STORED = {
    "capability": "xsc:r:abc",
    "size_bytes": 3,
    "name": "f",
    "hosts": [{"shard": 0, "node": "n"}],
    "survives_nodes": 2,
    "survives": "2nodes,1site",
    "warnings": [],
    "passed_over": [],
}


class Screen:
    """What a terminal shows."""

    def __init__(self) -> None:
        self.shown = b""
        self._changed = threading.Condition()

    @property
    def text(self) -> str:
        return self.shown.decode()

    def read(self, terminal: int) -> None:
        while data := self._read(terminal):
            with self._changed:
                self.shown += data
                self._changed.notify()

    @staticmethod
    def _read(terminal: int) -> bytes:
        try:
            return os.read(terminal, 65536)
        except OSError:  # Linux: the other side has been closed
            return b""

    def wait_for(self, end: bytes) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.shown.endswith(end), 20), self.shown


@contextmanager
def terminal():
    """Give both ends of a terminal, and the screen that shows what the program writes."""
    ours, theirs = pty.openpty()
    screen = Screen()
    thread = threading.Thread(target=screen.read, args=(ours,))
    thread.start()
    yield ours, theirs, screen
    os.close(theirs)
    thread.join()
    os.close(ours)


def xsc(*words, home, **streams):
    return subprocess.run(
        [sys.executable, "-m", "xsc", "--home", str(home), *words],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        check=False,
        **streams,
    )


def test_a_capability_stands_below_its_row_where_the_terminal_is_narrow(stand_in):
    row = {"name": "f", "version": 1, "capability": "xsc:r:" + "a" * 110}
    row |= {"size_bytes": 1, "created_ms": 0, "margin": 2, "ending": []}
    stand_in.answers("GET", "/v1/objects", {"objects": [row]})
    with terminal() as (_, theirs, screen):
        assert xsc("store", "ls", home=stand_in.home, stdout=theirs).returncode == 0
    heads, below, first, capability = screen.text.splitlines()
    assert heads.startswith("\x1b[1mname  version  size")
    assert "capability" in below
    assert first.startswith("f           1   1 B")
    assert capability == "  " + row["capability"]


def test_progress_shows_on_the_terminal_and_the_result_beside_it(stand_in, tmp_path):
    stand_in.answers("POST", "/v1/objects", STORED, 201)
    (tmp_path / "f").write_bytes(bytes(3_000_000))
    with terminal() as (_, theirs, screen):
        done = xsc(
            *["store", "put", str(tmp_path / "f")],
            home=stand_in.home,
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
    assert done.stdout == b"xsc:r:abc\n"
    assert "storing f" in screen.text
    assert "stored 3 B on 1 node, survives the loss of 2nodes,1site" in screen.text


def test_who_types_a_capability_is_told_who_can_read_it(stand_in):
    stand_in.streams("/v1/object", b"abc")
    get = ["store", "get", "xsc:r:abc", "-o", "-"]
    with terminal() as (_, theirs, screen):
        xsc(*get, home=stand_in.home, stdout=subprocess.PIPE, stderr=theirs)
        assert (
            xsc(
                *["store", "get", "-", "-o", "-"],
                home=stand_in.home,
                stdout=subprocess.PIPE,
                stderr=theirs,
                input=b"xsc:r:abc",
            ).returncode
            == 0
        )
    assert screen.text.count("@FILE or - keep it out of there") == 1
    done = xsc(*get, home=stand_in.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b""), "scripts are not bothered"


def test_a_passphrase_is_asked_for_and_not_shown(tmp_path):
    home = tmp_path / "home"
    with terminal() as (ours, theirs, screen):
        process = subprocess.Popen(
            [sys.executable, "-m", "xsc", "--home", str(home), "node", "init", "--passphrase"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            start_new_session=True,
        )
        for question in (b"Passphrase: ", b"Repeat for confirmation: "):
            screen.wait_for(question)  # what is typed before it is thrown away
            os.write(ours, b"secret\n")
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0, screen.text
    assert len(out) == 53
    assert (home / "identity.key").read_text().startswith("xsc-identity-1-scrypt:")
    assert "secret" not in screen.text


def test_without_a_terminal_nobody_is_asked(tmp_path):
    done = xsc(
        *["node", "init", "--passphrase"],
        home=tmp_path / "home",
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert done.returncode == 2
    assert b"set XSC_PASSPHRASE" in done.stderr
    assert not (tmp_path / "home").exists()
