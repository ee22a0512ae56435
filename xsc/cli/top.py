"""xsc top and xsc dashboard: the node in one picture, here or in a browser."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import click
from click import option

from xsc import api
from xsc.base import errors, units
from xsc.cli import show
from xsc.cli.options import Command, Settings
from xsc.cli.picture import Heard, picture

if TYPE_CHECKING:
    from rich.console import Console, ConsoleDimensions, RenderableType
    from rich.segment import Segment

    from xsc.client.calls import Calls

INTERVAL_S: Final = 2.0
"""Between two looks at the node."""
SLOTS_SHOWN: Final = 48
ANSWER_S: Final = 5.0
"""The node answers from its memory."""
_FOOT: Final = "q ends; times are UTC"
_ENDS: Final = (b"q", b"Q", b"")
"""Keys that end it; nothing comes of a terminal that is gone."""
_LEADS: Final = '<!doctype html><meta http-equiv="refresh" content="0; url={}"><title>XSC</title>\n'


@click.command(cls=Command)
@option("--once", is_flag=True, help="Print the picture once.")
def top(settings: Settings, *, once: bool) -> None:
    """Follow the node in one picture.

    It shows storage, jobs, peers, market, tiers, alerts and log, and changes every 2 seconds at
    most; q or Ctrl-C ends it. While the node does not answer, the last picture stays. Where the
    output is no terminal, or one that cannot move its cursor, the picture is printed once. With
    --json that is the document of GET /v1/measures.
    """
    calls = settings.calls()
    if settings.json:
        settings.view(calls.ask(api.monitor.MEASURES, timeout_s=ANSWER_S))
        return
    heard = _ask(calls)
    from rich.console import Console

    console = Console()
    if once or not sys.stdout.isatty() or console.is_dumb_terminal:
        # A line is left for the prompt.
        console.print(picture(heard, ""), height=console.height - 1)
    else:
        _follow(console, calls, heard)


def _ask(calls: Calls) -> Heard:
    ask = partial(calls.ask, timeout_s=ANSWER_S)
    return Heard(
        ask(api.monitor.MEASURES),
        ask(api.monitor.ALERTS)["alerts"],
        ask(api.market.SHOW, slots=SLOTS_SHOWN)["slots"],
        ask(api.monitor.LOG)["lines"],
    )


def _follow(console: Console, calls: Calls, heard: Heard) -> None:
    """Draw the picture anew as it changes, until the user ends it.

    Raises:
        UnavailableError: the node did not answer when it was ended.
    """
    fault: errors.UnavailableError | None = None
    foot = _FOOT
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _keys() as ended, console.screen(), suppress(KeyboardInterrupt):
        screen = _Screen(console)
        screen.draw(picture(heard, foot))
        while not ended():
            try:
                heard, fault, foot = _ask(calls), None, _FOOT
            except errors.UnavailableError as silent:
                if fault is None:
                    foot = f"no answer since {units.format_time(int(time.time() * 1000))}: {silent}"
                fault = silent
            screen.draw(picture(heard, foot, away=fault is not None))
    if fault is not None:
        raise fault


class _Screen:
    """A terminal that shows a picture; of the next one it is sent the lines that differ."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._size: ConsoleDimensions | None = None
        self._lines: list[list[Segment]] = []

    def draw(self, page: RenderableType) -> None:
        """Show a picture as large as the terminal is now."""
        console, size = self._console, self._console.size
        lines = console.render_lines(page, console.options.update(height=size.height))
        with console:  # all of it is written at once
            if size != self._size:
                console.clear()
                self._size, self._lines = size, []
            for row, line in enumerate(lines):
                if self._lines[row : row + 1] != [line]:
                    console.update_screen_lines([line], y=row)
        self._lines = lines


@contextmanager
def _keys() -> Iterator[Callable[[], bool]]:
    """Give what waits for the next look, and says whether the user ends the command before it."""
    keyboard = [sys.stdin.fileno()] if sys.stdin.isatty() else []

    def ended() -> bool:
        until_s = time.monotonic() + INTERVAL_S
        while (left_s := until_s - time.monotonic()) > 0:
            ready, _, _ = select.select(keyboard, [], [], left_s)
            if any(os.read(each, 1) in _ENDS for each in ready):
                return True
        return False

    before = [termios.tcgetattr(each) for each in keyboard]
    for each in keyboard:
        tty.setcbreak(each)
    try:
        yield ended
    finally:
        for each, state in zip(keyboard, before, strict=True):
            termios.tcsetattr(each, termios.TCSADRAIN, state)


@click.command(cls=Command)
@option("--open", "opens", is_flag=True, help="Open it in this machine's browser.")
def dashboard(settings: Settings, *, opens: bool) -> None:
    """Print a link that shows the node in a browser on this machine.

    The link is good once, for a minute. From another machine, forward the port of the API first:
    ssh -L PORT:127.0.0.1:PORT HOST.
    """
    link = settings.calls().ask(api.status.LOGIN)
    settings.view(link, link["url"])
    show.note(f"good once, for {units.format_duration(link['good_ms'])}")
    if opens:
        import webbrowser

        from xsc.node.home.folder import write_file

        # The link is no argument of the browser: every user of a machine can list those.
        page = settings.home / "dashboard.html"
        write_file(page, _LEADS.format(link["url"]))
        if not webbrowser.open(page.resolve().as_uri()):
            raise errors.NotFound("no browser was found", hint="open the link yourself")
