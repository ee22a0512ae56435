"""Nodes in the background: each a process of its own, whose log is in its home."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xsc import api
from xsc.base.errors import ConfigInvalid, HomeInvalid, NodeUnreachable, SpaceExhausted, XscError
from xsc.client.calls import Calls
from xsc.client.core import Document, problem_of

LOG = "node.log"
POLL_FIRST_S = 0.05
POLL_MOST_S = 0.5

if TYPE_CHECKING:
    import subprocess


def holds(pid: int, home: Path) -> bool:
    """Say whether a process runs the node of a home: some thread of it has the home's lock.

    A number alone may belong to somebody else by now, and the first thread of a killed process is
    dead before the others.
    """
    for handle in Path(f"/proc/{pid}/task").glob("*/fd/*"):
        with suppress(OSError):  # it was closed meanwhile
            if handle.samefile(home / "lock"):
                return True
    return False


def process_of(home: Path) -> int | None:
    """Return the process that runs the node of a home; None where none serves it."""
    try:
        pid = int((home / "node.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if holds(pid, home) else None


def poll(deadline: float = float("inf")) -> Iterator[None]:
    """Yield now and then until the deadline, less and less often."""
    pause = POLL_FIRST_S
    yield
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(pause * 2, POLL_MOST_S)
        yield


def launch(
    home: Path, environment: Mapping[str, str], options: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start the node of a home, which exists, as a process that stays when this one ends.

    Raises:
        ConfigInvalid: its log cannot be written.
    """
    import subprocess

    try:
        log = (home / LOG).open("ab")
    except OSError as fault:
        raise ConfigInvalid(f"{home / LOG} cannot be written: {fault.strerror}") from None
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "xsc", "--home", str(home), "node", "start", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            env=environment,
            start_new_session=True,
        )


def serving(home: Path) -> Document | None:
    """Return what the node of a home says of itself; None as long as it does not serve."""
    if not (home / "api.json").exists():
        return None
    try:
        return Calls(home).ask(api.status.STATUS)
    except (HomeInvalid, NodeUnreachable):  # what is there may be of an earlier process
        return None


def start_and_wait(home: Path, options: Sequence[str], passphrase: str) -> Document:
    """Start the node of a home, which nobody runs, and return what it says once it serves.

    Raises:
        XscError: why it did not start, as it said itself.
    """
    written = (home / LOG).stat().st_size if (home / LOG).exists() else 0
    environment = {**os.environ, **({"XSC_PASSPHRASE": passphrase} if passphrase else {})}
    process, is_serving = launch(home, environment, ["--json", *options]), False
    try:
        for _ in poll():
            if process.poll() is not None:
                raise _why(home, written)
            if (answer := serving(home)) is not None:
                is_serving = True
                return {**answer, "pid": process.pid}
    finally:
        if not is_serving and process.poll() is None:
            process.terminate()
    raise AssertionError


def _why(home: Path, written: int) -> XscError:
    """Return the error that a node wrote last to its log, of which so much is older."""
    with (home / LOG).open("rb") as log:
        log.seek(written)
        lines = log.read().splitlines()
    for line in reversed(lines):
        try:
            document = json.loads(line)
            if "detail" in document:
                return problem_of(document)
        except (ValueError, TypeError):
            continue
    if not shutil.disk_usage(home).free:
        return SpaceExhausted(
            f"the disk under {home} is full", hint="free space there, then try again"
        )
    return NodeUnreachable("the node ended at its start", hint=f"its log says why: {home / LOG}")
