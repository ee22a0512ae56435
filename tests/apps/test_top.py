"""`xsc top` in a real terminal: it follows the node, and leaves the terminal as it was."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.e2e.conftest import REPOSITORY, wait_for

if shutil.which("tmux") is None:
    pytest.skip("`apt install tmux` is needed", allow_module_level=True)


class Terminal:
    """A shell in a terminal of 80 columns and 24 lines."""

    def __init__(self, folder, **environment):
        self._tmux = ["tmux", "-f", "/dev/null", "-S", str(folder / "tmux")]
        words = [f"{name}={value}" for name, value in environment.items()]
        shell = [
            "env",
            "-u",
            "COLUMNS",
            "-u",
            "LINES",
            "PS1=$ ",
            f"PYTHONPATH={REPOSITORY}",
            *words,
            "sh",
        ]
        self("new-session", "-d", "-x", "80", "-y", "24", "-c", str(folder), shlex.join(shell))

    def __call__(self, *words):
        done = subprocess.run([*self._tmux, *words], capture_output=True, text=True, check=True)
        return done.stdout

    def types(self, line):
        self("send-keys", "-l", line)
        self("send-keys", "Enter")

    def presses(self, key):
        self("send-keys", key)

    @property
    def text(self):
        return self("capture-pane", "-p")

    @property
    def styled(self):
        return self("capture-pane", "-p", "-e")

    def close(self):
        self("kill-server")


@pytest.fixture
def open_terminal(tmp_path):
    opened = []

    def make(**environment):
        opened.append(Terminal(tmp_path, **environment))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def top(node):
    return shlex.join([sys.executable, "-m", "xsc", "--home", str(node.home), "top"])


@pytest.mark.timeout(600)
def test_it_follows_the_node_and_gives_the_terminal_back(small_net, tmp_path, open_terminal):
    net = small_net
    net.up(6)
    owner = net[0]
    terminal = open_terminal()
    for key in ("q", "C-c"):
        terminal.types("clear; stty -a > before; echo what was there")
        wait_for(lambda: terminal.text.startswith("what was there\n$"))
        terminal.types(f"{top(owner)}; echo ended with $?; stty -a > after")
        wait_for(lambda: "peers: 5 of 5 answer" in terminal.text)
        assert "what was there" not in terminal.text
        terminal.presses(key)
        wait_for(lambda: "ended with 0" in terminal.text)
        assert "what was there" in terminal.text
        assert "5 answer" not in terminal.text
        wait_for(lambda: (tmp_path / "after").exists() and (tmp_path / "after").read_text())
        assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()
        (tmp_path / "after").unlink()
    terminal.types(f"{top(owner)}; echo ended with $?")
    wait_for(lambda: "none: xsc store put FILE" in terminal.text)
    assert "\x1b[2m" in terminal.styled
    owner.put(b"x" * 100_000)
    wait_for(lambda: "1 at 2" in terminal.text)
    # Another size is another picture.
    terminal("resize-window", "-x", "120", "-y", "40")
    wait_for(lambda: len(terminal.text.splitlines()[1]) == 120)
    net.down()
    wait_for(lambda: "no answer since" in terminal.text)
    assert "1 at 2" in terminal.text
    net.up()
    wait_for(lambda: "no answer since" not in terminal.text)
    net.down()
    wait_for(lambda: "no answer since" in terminal.text)
    terminal.presses("q")
    wait_for(lambda: "ended with 5" in terminal.text)
    assert "error: no node runs" in terminal.text
    assert "answer since" not in terminal.text


@pytest.mark.timeout(600)
def test_it_needs_no_colour_and_no_cursor(small_net, open_terminal):
    net = small_net
    net.up(1)
    terminal = open_terminal(NO_COLOR="1")
    terminal.types(top(net[0]))
    wait_for(lambda: "peers: 0 of 0 answer" in terminal.text)
    assert re.search(r"[34][0-7]m", terminal.styled) is None
    terminal.presses("q")
    terminal.types(f"clear; TERM=dumb {top(net[0])}; echo ended with $?")
    wait_for(lambda: "ended with 0" in terminal.text)
    assert "peers: 0 of 0 answer" in terminal.text
    assert "\x1b" not in terminal.styled
