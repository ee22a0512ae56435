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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import combinations, count, takewhile
from pathlib import Path

import click
from click import option

from xsc import api
from xsc.base import errors, text
from xsc.base.errors import ArgumentInvalid, ConfigInvalid, HomeLocked, NodeUnreachable
from xsc.base.progress import Progress, ignore_progress
from xsc.cli import options, show
from xsc.cli.options import Group, Settings
from xsc.client.calls import Calls
from xsc.client.core import Document, problem_of

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
    "XSC_METRICS_LISTEN",
)
"""Variables that cannot hold for several nodes; all others hold for each."""
_CONFIG = """\
peer_listen = "127.0.0.1:0"
api_listen = "127.0.0.1:0"
services_listen = "127.0.0.1:0"
# One machine runs all of them.
compute_workers = 1
probe_interval = "2s"
"""


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


def start_and_wait(
    home: Path,
    words: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
    deadline: float = float("inf"),
) -> Document:
    """Start the node of a home, which nobody runs; return what it says once it serves.

    Its process stays when this one ends.

    Args:
        home: the home, which exists.
        words: options of `xsc node start`.
        environment: of its process.
        deadline: when it is given up, by `time.monotonic`.

    Raises:
        errors.XscError: why it did not start, as it said itself.
    """
    import subprocess

    words = ("-m", "xsc", "--home", str(home), "--json", "node", "start", *words)
    try:
        log = (home / LOG).open("ab")
    except OSError as fault:
        raise ConfigInvalid(f"{home / LOG} cannot be written: {fault.strerror}") from None
    with log:
        written = log.tell()
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            env=environment,
            start_new_session=True,
        )
    try:
        for _ in poll(deadline):
            if process.poll() is not None:
                raise _why(home, written)
            with suppress(
                errors.HomeInvalid, NodeUnreachable
            ):  # what is there may be of an earlier one
                return {**Calls(home).ask(api.status.STATUS), "pid": process.pid}
        raise NodeUnreachable(f"{home.name} did not start in time", hint=_log_hint(home))
    except BaseException:
        process.terminate()
        raise


def _why(home: Path, written: int) -> errors.XscError:
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
        return errors.SpaceExhausted(
            f"the disk under {home} is full", hint="free space there, then try again"
        )
    return NodeUnreachable("the node ended at its start", hint=_log_hint(home))


@click.group(cls=Group)
def devnet() -> None:
    """Run a network of nodes on this machine."""


def _default_directory() -> Path:
    from platformdirs import user_data_path

    return user_data_path("xsc-devnet")


directory_option = option(
    "--dir",
    "directory",
    type=options.DIRECTORY,
    default=_default_directory,
    help="Where the homes are.  [xsc-devnet in the user's data directory]",
)


@devnet.command()
@option("--nodes", type=options.WHOLE, help=f"How many.  [as before, else {NODES_DEFAULT}]")
@directory_option
@option(
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
        try:
            with (
                show.progress("starting nodes", len(stopped), show.in_number) as progress,
                ThreadPoolExecutor(STARTS_AT_ONCE) as pool,
            ):
                for _ in pool.map(partial(_start, deadline), stopped):
                    progress(1)
            pairs = len(homes) * (len(homes) - 1) // 2
            with show.progress("introducing nodes", pairs, show.in_number) as progress:
                introduce(homes, progress)
            what = "waiting until each sees all others"
            with show.progress(what, 2 * len(homes), show.in_number) as progress:
                wait_until_healthy(homes, deadline, progress)
        except BaseException:
            _stop(_running(stopped))
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
        running = _running(homes)
        _stop(running)
    stopped = [home.name for home in running]
    settings.view({"stopped": stopped}, f"stopped {text.count_of(len(stopped), 'node')}")


@devnet.command()
@directory_option
def status(settings: Settings, directory: Path) -> None:
    """Show the nodes and which of them run."""
    rows = [_row(home) for home in _there(directory)]
    settings.view({"nodes": rows})
    show.rows(rows, "name id state <pid API=api_url home", id=("id", show.short))


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
        raise errors.HomeInvalid(
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


def _start(deadline: float, home: Path) -> None:
    """Start one of the nodes; the first time, its home is made."""
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if not (home / "config.toml").exists():
            (home / "config.toml").write_text(f'name = "{home.name}"\n{_CONFIG}')
    except OSError as fault:
        raise ConfigInvalid(f"the home {home} cannot be made: {fault.strerror}") from None
    environment = {name: value for name, value in os.environ.items() if name not in _EACH_ITS_OWN}
    start_and_wait(home, (), environment, deadline)


def _running(homes: list[Path]) -> dict[Path, int]:
    """Return the processes of those homes whose nodes run."""
    return {home: pid for home in homes if (pid := process_of(home)) is not None}


def _log_hint(home: Path) -> str:
    return f"its log says why: {home / LOG}"


def _peers(home: Path) -> list[Document]:
    return list(Calls(home).ask(api.peers.LIST)["peers"])


def introduce(homes: list[Path], progress: Progress = ignore_progress) -> None:
    """Let all pairs that do not know each other directly exchange an invitation."""
    ids = {home: Calls(home).ask(api.status.STATUS)["id"] for home in homes}
    known = {home: {row["id"] for row in _peers(home) if not row["introducer"]} for home in homes}
    for host, guest in combinations(homes, 2):
        if ids[guest] not in known[host] or ids[host] not in known[guest]:
            invitation = Calls(host).ask(api.peers.INVITE)["invitation"]
            Calls(guest).ask(api.peers.JOIN, invitation=invitation)
        progress(1)


def wait_until_healthy(
    homes: list[Path], deadline: float, progress: Progress = ignore_progress
) -> None:
    """Return when every node sees every other as up, and soon after knows what it offers.

    Args:
        homes: of the nodes.
        deadline: when it fails.
        progress: told of each home that sees all, and again once it knows what they offer.

    Raises:
        NodeUnreachable: one did not see another.
    """
    ids = {Calls(home).ask(api.status.STATUS)["id"]: home for home in homes}

    def unseen(home: Path) -> list[Path]:
        up = {row["id"] for row in _peers(home) if row["state"] == "up"}
        return [other for id_, other in ids.items() if other != home and id_ not in up]

    def unoffered(home: Path) -> list[Path]:
        rows = Calls(home).ask(api.market.SLOTS)["slots"]
        offering = {row["node"] for row in rows if row["role"] == "offer"}
        return [other for id_, other in ids.items() if id_ not in offering]

    if missed := _missed(homes, deadline, unseen, progress):
        blind, other = missed
        raise NodeUnreachable(
            f"{blind.name} did not see {other.name} in time", hint=_log_hint(other)
        )
    # One that offers nothing is not waited for to the end.
    _missed(homes, min(deadline, time.monotonic() + OFFERED_S), unoffered, progress)


def _missed(
    homes: list[Path],
    deadline: float,
    missing: Callable[[Path], list[Path]],
    progress: Progress,
) -> tuple[Path, Path] | None:
    """Return when no node misses another one, or else one that does in the end, and whom."""
    for home in homes:
        for _ in poll(deadline):
            if not (others := missing(home)):
                progress(1)
                break
        else:
            return home, others[0]
    return None


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
