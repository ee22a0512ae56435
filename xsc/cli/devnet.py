"""xsc devnet: a whole network of nodes on this machine, to try things and to test.

Each node is a process of its own with a home of its own; they are joined by
invitations like any others. DIR/devnet.json says which processes they are, by
number and start time: a number alone may belong to somebody else by now.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Final

import click

from xsc import api
from xsc.base.errors import (
    ArgumentInvalid,
    ConfigInvalid,
    HomeInvalid,
    HomeLocked,
    NodeUnreachable,
    XscError,
)
from xsc.cli.background import LOG, launch, poll, serving, start_ticks
from xsc.cli.options import DIRECTORY, DURATION, WHOLE, Group, Settings
from xsc.cli.output import Columns, count_of, or_dash, say, short, show, show_rows, warn
from xsc.client.calls import Calls
from xsc.client.core import Document

_COLUMNS: Final[Columns] = {
    "name": "name",
    "id": ("id", short),
    "state": "state",
    "<pid": ("pid", or_dash),
    "API": ("api_url", or_dash),
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
_FORMAT = 1
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


@dataclass(frozen=True, slots=True)
class Member:
    """A node of the devnet, and the process that last ran it."""

    name: str
    home: str
    id: str = ""
    pid: int = 0
    start_ticks: int = 0

    @property
    def path(self) -> Path:
        """The node's home."""
        return Path(self.home)

    @property
    def runs(self) -> bool:
        """Whether that very process runs."""
        return self.pid > 0 and start_ticks(self.pid) == self.start_ticks

    def calls(self) -> Calls:
        """Return the calls of the node."""
        return Calls(self.path)


@click.group(cls=Group)
def devnet() -> None:
    """Run a network of nodes on this machine."""


def _default_directory() -> Path:
    from platformdirs import user_data_path

    return user_data_path("xsc-devnet")


directory_option = click.option(
    "--dir",
    "directory",
    type=DIRECTORY,
    default=_default_directory,
    help="Where the homes are.  [xsc-devnet in the user's data directory]",
)


@devnet.command()
@click.option("--nodes", type=WHOLE, help=f"How many.  [as before, else {NODES_DEFAULT}]")
@directory_option
@click.option(
    "--timeout",
    type=DURATION,
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
    with _locked(directory, make=True):
        members = _grown(directory, _read(directory), nodes)
        if all(member.runs for member in members):
            raise HomeLocked(
                f"the devnet in {directory} runs already",
                hint=f"xsc devnet down --dir {shlex.quote(str(directory))}",
            )
        deadline = time.monotonic() + timeout / 1000
        before = {member.name for member in members if member.runs}
        try:
            _start_all(directory, members, deadline)
            _introduce(members)
            _wait_until_healthy(members, deadline)
        except BaseException:
            _stop([member for member in members if member.name not in before])
            raise
    answer = {"nodes": [_row(member) for member in members]}
    settings.view(answer, lambda _: _show_started(directory, members))


def _show_started(directory: Path, members: list[Member]) -> None:
    show(f"{len(members)} nodes run in {directory}; each sees all others")
    for member in members:
        show(f"  {member.name}  {short(member.id)}  {_place(member)['url']}")
    show(f"use one:  xsc --home {shlex.quote(members[0].home)} store put FILE")
    show(f"stop all: xsc devnet down --dir {shlex.quote(str(directory))}")


@devnet.command()
@directory_option
def down(settings: Settings, directory: Path) -> None:
    """Stop the nodes; what they hold stays."""
    with _locked(directory):
        running = [member for member in _read(directory) if member.runs]
        _stop(running)
    stopped = [member.name for member in running]
    settings.view({"stopped": stopped}, f"stopped {count_of(len(stopped), 'node')}")


@devnet.command()
@directory_option
def status(settings: Settings, directory: Path) -> None:
    """Show the nodes and which of them run."""
    rows = [_row(member) for member in _read(directory)]
    if not rows:
        raise HomeInvalid(
            f"there is no devnet in {directory}", hint="`xsc devnet up --dir DIR` makes one"
        )
    settings.view({"nodes": rows}, lambda _: show_rows(rows, _COLUMNS, "it has no nodes"))


def _row(member: Member) -> Document:
    place = _place(member) if member.runs else {}
    if not member.runs:
        state = "stopped"
    elif member.calls().alive():
        state = "running"
    else:
        state = "silent"
    return {
        "name": member.name,
        "id": member.id,
        "home": member.home,
        "pid": member.pid if member.runs else None,
        "api_url": place.get("url"),
        "peer_url": place.get("peer_url"),
        "state": state,
    }


def _place(member: Member) -> Document:
    try:
        place = json.loads((member.path / "api.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return place if isinstance(place, dict) else {}


# What devnet.json says


@contextmanager
def _locked(directory: Path, *, make: bool = False) -> Iterator[None]:
    """Keep other commands away from this devnet meanwhile."""
    if not make and not (directory / "devnet.json").exists():
        raise HomeInvalid(
            f"there is no devnet in {directory}", hint="`xsc devnet up --dir DIR` makes one"
        )
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


def _read(directory: Path) -> list[Member]:
    try:
        document = json.loads((directory / "devnet.json").read_text())
        if document["v"] != _FORMAT:
            raise HomeInvalid(f"the devnet in {directory} is of a newer format")
        return [_present(Member(**row)) for row in document["nodes"]]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as fault:
        raise HomeInvalid(f"{directory} cannot be read: {fault.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise HomeInvalid(f"{directory / 'devnet.json'} is damaged") from None


def _present(member: Member) -> Member:
    """Return a node with the process that runs it now, whoever has started that."""
    if member.runs or not member.id:
        return member
    try:
        pid = int((member.path / "node.pid").read_text())
        ticks = start_ticks(pid)
        # The number alone may be a stranger's by now: the node proves that it is this home's.
        if ticks is not None and member.calls().alive():
            return replace(member, pid=pid, start_ticks=ticks)
    except (FileNotFoundError, ValueError, HomeInvalid):
        pass
    return member


def _write(directory: Path, members: list[Member]) -> None:
    partial = directory / "devnet.json.part"
    rows = [asdict(member) for member in members]
    partial.write_text(json.dumps({"v": _FORMAT, "nodes": rows}, indent=1) + "\n")
    partial.replace(directory / "devnet.json")


def _grown(directory: Path, members: list[Member], nodes: int | None) -> list[Member]:
    """Return the members, and as many new ones as are missing."""
    wanted = nodes or len(members) or NODES_DEFAULT
    if wanted < len(members):
        raise ArgumentInvalid(
            f"the devnet in {directory} has {len(members)} nodes already",
            hint="give another directory for a smaller one",
        )
    new = [
        Member(f"node-{index}", str(directory / f"node-{index}"))
        for index in range(len(members), wanted)
    ]
    return members + new


# Processes


def _start_all(directory: Path, members: list[Member], deadline: float) -> None:
    """Start what does not run, a few at a time; `members` and devnet.json tell what was done."""
    stopped = [index for index, member in enumerate(members) if not member.runs]
    for first in range(0, len(stopped), STARTS_AT_ONCE):
        batch = stopped[first : first + STARTS_AT_ONCE]
        for index in batch:
            members[index] = _launch(members[index])
            _write(directory, members)
        for index in batch:
            members[index] = _wait_until_serving(members[index], deadline)
            _write(directory, members)


def _launch(member: Member) -> Member:
    home = member.path
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        config = home / "config.toml"
        if not config.exists():
            config.write_text(
                f'name = "{member.name}"\n'
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
    process = launch(home, environment)
    # Popen's child exists until it is waited for, so its start time can be had.
    return Member(member.name, member.home, member.id, process.pid, start_ticks(process.pid) or 0)


def _log_hint(member: Member) -> str:
    return f"its log says why: {member.path / LOG}"


def _wait_until_serving(member: Member, deadline: float) -> Member:
    for _ in poll(deadline):
        if not member.runs:
            raise NodeUnreachable(f"{member.name} ended at its start", hint=_log_hint(member))
        answer = serving(member.path)
        if answer is not None:
            return replace(member, id=str(answer["id"]))
    raise NodeUnreachable(f"{member.name} did not start in time", hint=_log_hint(member))


def _introduce(members: list[Member]) -> None:
    """Let all pairs that do not know each other directly exchange an invitation."""
    known = {member.name: _direct_peers(member) for member in members}
    for host, guest in combinations(members, 2):
        if guest.id in known[host.name] and host.id in known[guest.name]:
            continue
        invitation = host.calls().ask(api.peers.INVITE)["invitation"]
        try:
            guest.calls().ask(api.peers.JOIN, api.peers.Join(invitation=invitation))
        except XscError as fault:
            raise NodeUnreachable(
                f"{guest.name} could not join {host.name}: {fault.message}", hint=_log_hint(guest)
            ) from None


def _direct_peers(member: Member) -> set[str]:
    rows = member.calls().ask(api.peers.LIST)["peers"]
    return {str(row["id"]) for row in rows if row["introducer"] is None}


def _unseen(member: Member, members: list[Member]) -> list[Member]:
    """Return the others that a member does not see as up."""
    states = {row["id"]: row["state"] for row in member.calls().ask(api.peers.LIST)["peers"]}
    return [other for other in members if other != member and states.get(other.id) != "up"]


def _wait_until_healthy(members: list[Member], deadline: float) -> None:
    """Return when every member sees every other as up, and soon after knows what it offers."""
    blind = _wait(members, deadline, lambda member: not _unseen(member, members))
    if blind is not None:
        unseen = [*_unseen(blind, members), blind][0]
        raise NodeUnreachable(
            f"{blind.name} did not see {unseen.name} in time", hint=_log_hint(unseen)
        )
    ids = {member.id for member in members}

    def knows_offers(member: Member) -> bool:
        rows = member.calls().ask(api.market.SLOTS)["slots"]
        return ids <= {row["node"] for row in rows if row["role"] == "offer"}

    # One that offers nothing is not waited for to the end.
    _wait(members, min(deadline, time.monotonic() + OFFERED_S), knows_offers)


def _wait(members: list[Member], deadline: float, holds: Callable[[Member], bool]) -> Member | None:
    """Return when something holds of each member, or else one of which it does not in time."""
    waiting = list(members)
    for _ in poll(deadline):
        while waiting and holds(waiting[0]):
            waiting.pop(0)
        if not waiting:
            return None
    return waiting[0]


def _stop(members: list[Member]) -> None:
    """Stop exactly these processes: ask, wait, and end by force what does not answer."""
    for member in members:
        _signal(member, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for _ in poll(deadline):
        if not any(member.runs for member in members):
            return
    for member in members:
        if member.runs:
            warn(f"{member.name} did not stop within {STOP_TIMEOUT_S:.0f}s and was killed")
            _signal(member, signal.SIGKILL)


def _signal(member: Member, number: signal.Signals) -> None:
    if member.runs:
        try:
            os.kill(member.pid, number)
        except ProcessLookupError:
            return
        except PermissionError:
            say(f"{member.name} (process {member.pid}) belongs to another user")
