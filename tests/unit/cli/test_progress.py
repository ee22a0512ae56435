"""How far a long command is: a bar at a terminal, a line each minute elsewhere."""

import sys
import threading
from threading import Event

import pytest

from xsc.cli import show

MIB = 1024**2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            (3 * MIB, 12 * MIB, 1.5 * MIB, 2.0, show.in_bytes),
            "3.0 MiB of 12.0 MiB, 1.5 MiB/s, 6s left",
        ),
        ((MIB, None, MIB, 1.0, show.in_bytes), "1.0 MiB, 1.0 MiB/s"),
        ((0, MIB, 0.0, 60.0, show.in_bytes), "0 B of 1.0 MiB"),
        ((3, 4, 0.25, 12.0, show.in_number), "3 of 4, 0.2/s, 4s left"),
        ((0, None, None, 120.0, show.in_bytes), "2m so far"),
    ],
)
def test_what_is_said_of_how_far_something_is(given, said):
    assert show.how_far(*given) == said


class Lines:
    """A standard error that is no terminal; says when something was written."""

    def __init__(self):
        self.text = ""
        self.written = Event()

    def write(self, text):
        self.text += text
        self.written.set()

    def flush(self):
        pass

    def isatty(self):
        return False


def test_elsewhere_a_line_comes_though_nothing_moves_and_none_after_the_end(monkeypatch):
    monkeypatch.setattr(show, "LINE_S", 0.01)
    monkeypatch.setattr(sys, "stderr", lines := Lines())
    with show.progress("asking \x1b[2J", 100) as progress:
        progress(40)
        assert lines.written.wait(30)
    assert lines.text.startswith("asking \\x1b[2J: 40 B of 100 B")
    assert not [thread for thread in threading.enumerate() if isinstance(thread, show._Lines)]


def test_what_ends_within_a_minute_says_nothing(capsys):
    with show.progress("storing", 3) as progress:
        progress(3)
    assert capsys.readouterr().err == ""
