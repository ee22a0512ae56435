"""xsc devnet: a whole network of nodes on this machine; and how one node is put in the background.

Each node is a process of its own with a home of its own, DIR/node-0 and so on; they are
joined by invitations like any others.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations, count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from xsc import api
from xsc.base.errors import (
    ArgumentInvalid,
    ConfigInvalid,
    HomeInvalid,
    HomeLocked,
    NodeUnreachable,
    SpaceExhausted,
    XscError,
)
from xsc.base.text import count_of
from xsc.cli import options, show
from xsc.cli.options import Group, Settings
from xsc.client.calls import Calls
from xsc.client.core import Document, problem_of

if TYPE_CHECKING:
    import subprocess

_COLUMNS: Final[show.Columns] = {
    "name": "name",
    "id": ("id", show.short),
    "state": "state",
    "<pid": "pid",
    "API": "api_url",
    "home": "home",
}
NODES_DEFAULT = 7
"""Six hold the shards of an object; the seventh is what heals it."""
NODES_MAX = 64
STARTS_AT_ONCE = 3
READY_TIMEOUT_MS = 60_000
STOP_TIMEOUT_S = 20.0
OFFERED_S = 10.0
"""For so long the slots of new nodes are waited for."""
LOG = "node.log"
POLL_FIRST_S = 0.05
POLL_MOST_S = 0.5
_EACH_ITS_OWN = (
    "XSC_HOME",
    "XSC_NAME",
    "XSC_PEER_LISTEN",
    "XSC_API_LISTEN",
    "XSC_ADVERTISE",
    "XSC_SERVICES_LISTEN",
    "XSC_SERVICES_URL",
)
"""Variables that cannot hold for several nodes; all others hold for each."""


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
    home: Path, environment: Mapping[str, str], words: Sequence[str] = ()
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
            [sys.executable, "-m", "xsc", "--home", str(home), "node", "start", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            env=environment,
            start_new_session=True,
        )


def until_serving(
    home: Path, process: subprocess.Popen[bytes], deadline: float = float("inf")
) -> Document | None:
    """Return what a node says of itself once it serves; None where its process has ended.

    Raises:
        NodeUnreachable: it does neither in time.
    """
    for _ in poll(deadline):
        if process.poll() is not None:
            return None
        with suppress(HomeInvalid, NodeUnreachable):  # what is there may be of an earlier process
            return Calls(home).ask(api.status.STATUS)
    raise NodeUnreachable(f"{home.name} did not start in time", hint=_log_hint(home))


def start_and_wait(home: Path, words: Sequence[str], passphrase: str) -> Document:
    """Start the node of a home, which nobody runs, and return what it says once it serves.

    Raises:
        XscError: why it did not start, as it said itself.
    """
    written = (home / LOG).stat().st_size if (home / LOG).exists() else 0
    environment = {**os.environ, **({options.PASSPHRASE: passphrase} if passphrase else {})}
    process = launch(home, environment, ["--json", *words])
    try:
        answer = until_serving(home, process)
    except BaseException:
        process.terminate()
        raise
    if answer is None:
        raise _why(home, written)
    return {**answer, "pid": process.pid}


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
    return NodeUnreachable("the node ended at its start", hint=_log_hint(home))


@click.group(cls=Group)
def devnet() -> None:
    """Run a network of nodes on this machine."""


def _default_directory() -> Path:
    from platformdirs import user_data_path

    return user_data_path("xsc-devnet")


directory_option = click.option(
    "--dir",
    "directory",
    type=options.DIRECTORY,
    default=_default_directory,
    help="Where the homes are.  [xsc-devnet in the user's data directory]",
)


@devnet.command()
@click.option("--nodes", type=options.WHOLE, help=f"How many.  [as before, else {NODES_DEFAULT}]")
@directory_option
@click.option(
    "--timeout",
    type=options.DURATION,
    default=READY_TIMEOUT_MS,
    help=f"Give up after that long.  [{READY_TIMEOUT_MS // 1000}s]",
)
def up(settings: Settings, nodes: int | None, directory: Path, timeout: int) -> None:
    """Start N nodes and return when each sees all others.

    The homes are DIR/node-0 and so on; where they exist, their nodes are
    started again with all that they hold.
    """
    if nodes is not None and nodes > NODES_MAX:
        raise ArgumentInvalid(f"a devnet has at most {NODES_MAX} nodes")
    with _locked(directory):
        before = len(_homes(directory))
        if nodes is not None and nodes < before:
            raise ArgumentInvalid(
                f"the devnet in {directory} has {before} nodes already",
                hint="give another directory for a smaller one",
            )
        homes = [directory / f"node-{number}" for number in range(nodes or before or NODES_DEFAULT)]
        stopped = [home for home in homes if process_of(home) is None]
        if not stopped:
            raise HomeLocked(
                f"the devnet in {directory} runs already",
                hint=f"xsc devnet down --dir {shlex.quote(str(directory))}",
            )
        deadline = time.monotonic() + timeout / 1000
        started: dict[Path, int] = {}
        try:
            _start(stopped, started, deadline)
            introduce(homes)
            wait_until_healthy(homes, deadline)
        except BaseException:
            _stop(started)
            raise
    rows = [_row(home) for home in homes]
    settings.view({"nodes": rows})
    show.line(f"{len(rows)} nodes run in {directory}; each sees all others")
    for row in rows:
        show.line(f"  {row['name']}  {show.short(row['id'])}  {row['api_url']}")
    show.line(f"use one:  xsc --home {shlex.quote(rows[0]['home'])} store put FILE")
    show.line(f"stop all: xsc devnet down --dir {shlex.quote(str(directory))}")


@devnet.command()
@directory_option
def down(settings: Settings, directory: Path) -> None:
    """Stop the nodes; what they hold stays."""
    homes = _there(directory)
    with _locked(directory):
        running = {home: pid for home in homes if (pid := process_of(home)) is not None}
        _stop(running)
    stopped = [home.name for home in running]
    settings.view({"stopped": stopped}, f"stopped {count_of(len(stopped), 'node')}")


@devnet.command()
@directory_option
def status(settings: Settings, directory: Path) -> None:
    """Show the nodes and which of them run."""
    rows = [_row(home) for home in _there(directory)]
    settings.view({"nodes": rows})
    show.rows(rows, _COLUMNS)


def _row(home: Path) -> Document:
    pid, place, state = process_of(home), {}, "stopped"
    if pid is not None:
        state = "running" if Calls(home).alive() else "silent"
        with suppress(FileNotFoundError):  # it ends
            place = json.loads((home / "api.json").read_text())
    return {
        "name": home.name,
        "id": _id_of(home),
        "home": str(home),
        "pid": pid,
        "api_url": place.get("url"),
        "peer_url": place.get("peer_url"),
        "state": state,
    }


def _id_of(home: Path) -> str:
    """Return a node's id; nothing of one that never got as far as a key."""
    from xsc.base.ids import to_text
    from xsc.node.home.folder import read_identity

    if not (home / "identity.key").exists():
        return ""
    return to_text(read_identity(home, os.environ.get(options.PASSPHRASE, "")).node_id)


# Homes


def _homes(directory: Path) -> list[Path]:
    """Return the homes of a devnet, in order."""
    return list(takewhile(Path.is_dir, (directory / f"node-{number}" for number in count())))


def _there(directory: Path) -> list[Path]:
    """Return the homes of a devnet that exists."""
    homes = _homes(directory)
    if not homes:
        raise HomeInvalid(
            f"there is no devnet in {directory}", hint="`xsc devnet up --dir DIR` makes one"
        )
    return homes


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other commands away from this devnet meanwhile."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (directory / "devnet.lock").open("a")
    except OSError as fault:
        raise ArgumentInvalid(f"{directory} cannot be used: {fault.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HomeLocked(f"another command is at work on the devnet in {directory}") from None
        yield


# Processes


def _start(homes: list[Path], started: dict[Path, int], deadline: float) -> None:
    """Start nodes, a few at a time; `started` tells which, and their processes."""
    for first in range(0, len(homes), STARTS_AT_ONCE):
        processes = {}
        for home in homes[first : first + STARTS_AT_ONCE]:
            processes[home] = _launch(home)
            started[home] = processes[home].pid
        for home, process in processes.items():
            if until_serving(home, process, deadline) is None:
                raise NodeUnreachable(f"{home.name} ended at its start", hint=_log_hint(home))


def _launch(home: Path) -> subprocess.Popen[bytes]:
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        config = home / "config.toml"
        if not config.exists():
            config.write_text(
                f'name = "{home.name}"\n'
                'peer_listen = "127.0.0.1:0"\n'
                'api_listen = "127.0.0.1:0"\n'
                'services_listen = "127.0.0.1:0"\n'
                "# One machine runs all of them.\n"
                "compute_workers = 1\n"
                'probe_interval = "2s"\n'
            )
    except OSError as fault:
        raise ConfigInvalid(f"the home {home} cannot be made: {fault.strerror}") from None
    environment = {name: value for name, value in os.environ.items() if name not in _EACH_ITS_OWN}
    return launch(home, environment)


def _log_hint(home: Path) -> str:
    return f"its log says why: {home / LOG}"


def _peers(home: Path) -> list[Document]:
    return list(Calls(home).ask(api.peers.LIST)["peers"])


def introduce(homes: list[Path]) -> None:
    """Let all pairs that do not know each other directly exchange an invitation."""
    ids = {home: Calls(home).ask(api.status.STATUS)["id"] for home in homes}
    known = {
        home: {row["id"] for row in _peers(home) if row["introducer"] is None} for home in homes
    }
    for host, guest in combinations(homes, 2):
        if ids[guest] in known[host] and ids[host] in known[guest]:
            continue
        invitation = Calls(host).ask(api.peers.INVITE)["invitation"]
        try:
            Calls(guest).ask(api.peers.JOIN, api.peers.Join(invitation=invitation))
        except XscError as fault:
            raise NodeUnreachable(
                f"{guest.name} could not join {host.name}: {fault.message}", hint=_log_hint(guest)
            ) from None


def wait_until_healthy(homes: list[Path], deadline: float) -> None:
    """Return when every node sees every other as up, and soon after knows what it offers."""
    ids = {Calls(home).ask(api.status.STATUS)["id"]: home for home in homes}

    def unseen(home: Path) -> list[Path]:
        up = {row["id"] for row in _peers(home) if row["state"] == "up"}
        return [other for id_, other in ids.items() if other != home and id_ not in up]

    def knows_offers(home: Path) -> bool:
        rows = Calls(home).ask(api.market.SLOTS)["slots"]
        return ids.keys() <= {row["node"] for row in rows if row["role"] == "offer"}

    blind = _wait(homes, deadline, lambda home: not unseen(home))
    if blind is not None:
        other = [*unseen(blind), blind][0]
        raise NodeUnreachable(
            f"{blind.name} did not see {other.name} in time", hint=_log_hint(other)
        )
    # One that offers nothing is not waited for to the end.
    _wait(homes, min(deadline, time.monotonic() + OFFERED_S), knows_offers)


def _wait(homes: list[Path], deadline: float, holds_of: Callable[[Path], bool]) -> Path | None:
    """Return when something holds of each node, or else one of which it does not in time."""
    waiting = list(homes)
    for _ in poll(deadline):
        while waiting and holds_of(waiting[0]):
            waiting.pop(0)
        if not waiting:
            return None
    return waiting[0]


def _stop(processes: dict[Path, int]) -> None:
    """Stop the nodes of homes by their processes: ask, wait, and end what does not answer."""
    for home, pid in processes.items():
        _signal(home, pid, signal.SIGTERM)
    for _ in poll(time.monotonic() + STOP_TIMEOUT_S):
        if not any(holds(pid, home) for home, pid in processes.items()):
            return
    for home, pid in processes.items():
        if holds(pid, home):
            show.warn(f"{home.name} did not stop within {STOP_TIMEOUT_S:.0f}s and was killed")
            _signal(home, pid, signal.SIGKILL)


def _signal(home: Path, pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        show.say(f"{home.name} (process {pid}) belongs to another user")
