"""Looks whether this machine and this home can run a node well, and says what would not.

Every check says one thing: `ok`, `warn` (it works, but not as it should) or
`fail` (a node would not start, would lose something, or would give something
away). A check that cannot be made is a `fail`. Nothing is changed; what is tried
is tried beside the home's data, in files that are removed again.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import itertools
import os
import platform
import resource
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from xsc.base import errors, limits, merkle, units
from xsc.base.text import cause
from xsc.compute.wasm.sandbox import Job
from xsc.compute.worker.main import WARM_UP
from xsc.db.leveldb import LevelDBKeyValue
from xsc.net.transport.addresses import is_loopback, split
from xsc.node import config as configs
from xsc.node.home import folder as homes
from xsc.node.home.stores import check_complete
from xsc.node.offline.compute import sandbox
from xsc.storage.object import erasure, segment

Verdict = Literal["ok", "warn", "fail"]

DESCRIPTORS_MIN = 1024
MEMORY_BYTES_MIN = 1 << 30
SYNC_MS_WARN = 50
SYNCS = 9
RECIPES: Final = (
    "set advertise to what reaches it, or open that port in firewall and router; if you cannot, "
    "use WireGuard, or Tailscale if no friend can open a port: docs/running.md, 'Behind routers'"
)
"""How a node becomes reachable, and where that is described."""
_NET_FILESYSTEMS = ("nfs", "cifs", "smb", "fuse.sshfs", "9p")
_CLOCK_UNSYNCHRONISED = 5
_CLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    verdict: Verdict
    text: str
    hint: str = ""
    check: str = ""


ok = partial(Finding, "ok")
"""Makes the finding that nothing is wrong."""
warn = partial(Finding, "warn")
"""Makes the finding that it works, but not as it should."""
fail = partial(Finding, "fail")
"""Makes the finding that it does not work."""


Ask = Callable[[], Mapping[str, Any]]


def examine(home: Path, ask: Ask, names: Iterable[str] = ()) -> list[Finding]:
    """Return what checks find of this machine and a home, which need not be there.

    One that cannot be made fails, and the others are made.

    Args:
        home: its directory.
        ask: returns the status of the node that runs there (`GET /v1/status`).
        names: of the checks; all of them if none is named.
    """
    found: list[Finding] = []
    for name, check in CHECKS:
        if names and name not in names:
            continue
        try:
            found.extend(replace(each, check=each.check or name) for each in check(home, ask))
        except errors.XscError as fault:
            found.append(fail(fault.message, fault.hint, name))
        except OSError as fault:
            where = f"{fault.filename}: " if fault.filename else ""
            found.append(fail(f"it cannot be checked: {where}{cause(fault)}", check=name))
    return found


# The machine


def _machine(_home: Path, _ask: Ask) -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = (
        f"Python {platform.python_version()} on {sys.platform} {platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores, {units.format_size(memory)}"
    )
    yield judge_memory(text, memory)


def judge_memory(text: str, memory_bytes: int) -> Finding:
    """Return what a machine's memory allows."""
    if memory_bytes < MEMORY_BYTES_MIN:
        least = units.format_size(MEMORY_BYTES_MIN)
        return warn(f"{text}: less memory than {least}", "set compute_workers = 1")
    return ok(text)


def _descriptors(_home: Path, _ask: Ask) -> Iterator[Finding]:
    yield judge_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def judge_descriptors(limit: int) -> Finding:
    """Return what a limit of open files allows."""
    if 0 <= limit < DESCRIPTORS_MIN:
        return warn(
            f"{limit} are allowed: with many peers or objects that is too few",
            f"ulimit -n {DESCRIPTORS_MIN}, or LimitNOFILE= of the unit",
        )
    return ok("unlimited" if limit < 0 else f"{limit} are allowed")


def _clock(_home: Path, _ask: Ask) -> Iterator[Finding]:
    libc = ctypes.CDLL(None, use_errno=True)
    yield judge_clock(libc.adjtimex(ctypes.create_string_buffer(_CLOCK_BYTES)))


def judge_clock(state: int) -> Finding:
    """Return what the kernel's word on its clock (adjtimex) means."""
    window_s = limits.REQUEST_WINDOW_MS // 1000
    if 0 <= state < _CLOCK_UNSYNCHRONISED:
        return ok("the kernel says that it is synchronised")
    return warn(
        f"nothing says that it is synchronised; peers refuse what is {window_s} s off",
        "run an NTP client (systemd-timesyncd, chrony); in a container, the host does",
    )


# The home

_GO_ON: Mapping[homes.Stage, tuple[str, str]] = {
    "recovering": ("its recovery is not finished", "go on with `xsc node recover`"),
    "restoring": ("its restore is not finished", "begin it again with `xsc node restore`"),
    "restored": ("its restore is not finished", "`xsc node start` finishes it"),
}


def _home(home: Path, _ask: Ask) -> Iterator[Finding]:
    if not homes.is_home(home):
        yield ok(f"there is none at {home} yet; `xsc node start` makes one")
        return
    homes.check_format(home)
    stage = homes.stage_of(home)
    if stage is not None:
        yield warn(*_GO_ON[stage])
    about = home.stat()
    if about.st_uid != os.geteuid():
        yield fail(f"{home} belongs to another user", "run xsc as the one who owns it")
    for name in ("", "identity.key", "api.token", "config.toml"):
        path = home / name
        if path.exists():
            yield from judge_mode(
                path, stat.S_IMODE(path.stat().st_mode), private=name != "config.toml"
            )
    if homes.has_key(home):
        yield ok(f"{home}, format {homes.FORMAT}")
    else:
        yield fail("its identity.key is missing", "see `xsc node recover`")
    check_complete(home / "db")


def judge_mode(path: Path, mode: int, *, private: bool) -> Iterator[Finding]:
    """Yield what is wrong with a file's mode: others must not write, nor read what is private."""
    wrong = mode & (0o077 if private else 0o022)
    if wrong:
        what = "read" if wrong & 0o044 else "write"
        yield fail(f"others can {what} {path}", f"chmod go-rwx {path}")


def _settings(home: Path, _ask: Ask) -> Iterator[Finding]:
    loaded = configs.load(home, os.environ, {})
    yield judge_addresses(loaded.peer_listen, loaded.advertise)


def judge_addresses(listen: str, advertise: Sequence[str]) -> Finding:
    """Return what the addresses mean at which a node listens and that it tells others."""
    if is_loopback(split(listen)[0]):
        return ok("peers of this machine alone can reach the node (peer_listen)")
    if advertise:
        return ok(f"peers are told to reach the node at {', '.join(advertise)}")
    return warn(
        f"peer_listen is {listen} and advertise is not set: peers are told the address that this "
        "machine has in its own network",
        "set advertise to the address or name that reaches this machine from outside",
    )


# The disk and what is stored on it


def _disk(home: Path, _ask: Ask) -> Iterator[Finding]:
    reserve_ppm = configs.load(home, os.environ, {}).disk_reserve_ppm
    place = next(folder for folder in (home, *home.parents) if folder.is_dir())
    usage = shutil.disk_usage(place)
    yield judge_space(usage.free, usage.total, reserve_ppm)
    yield judge_filesystem(_filesystem_of(place, Path("/proc/self/mounts").read_text()))
    yield judge_syncs(_sync_times_us(place))


def judge_space(free: int, total: int, reserve_ppm: int) -> Finding:
    """Return whether a disk has more left than is kept free."""
    kept = total * reserve_ppm // limits.PPM
    text = f"{units.format_size(free)} of {units.format_size(total)} are free"
    if free <= kept:
        return fail(f"{text}, and {units.format_size(kept)} are kept free", "see disk_reserve")
    return ok(text)


def _capacity(home: Path, _ask: Ask) -> Iterator[Finding]:
    loaded = configs.load(home, os.environ, {})
    capacity = homes.capacity_of(home, loaded.storage_capacity_bytes)
    if capacity is None or not home.is_dir():
        return  # it is chosen at the first start
    fault = homes.capacity_fault(home, capacity, loaded.disk_reserve_ppm)
    if fault:
        yield warn(fault, "lower storage_capacity, or free the disk")
    else:
        yield ok(f"the disk has room for the {units.format_size(capacity)} that are offered")


def _filesystem_of(path: Path, mounts: str) -> str:
    """Return the kind of the filesystem that a path is on."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        _, point, found, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = path == Path(point) or Path(point) in path.parents
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind


def judge_filesystem(kind: str) -> Finding:
    """Return what a kind of filesystem means for what is stored."""
    if kind in ("tmpfs", "ramfs"):
        return warn(f"the home is in memory ({kind}): a reboot loses all of it")
    if kind.startswith(_NET_FILESYSTEMS):
        return warn(f"the home is on a network filesystem ({kind}): locks and syncs are its")
    return ok(f"its filesystem is {kind}")


def _sync_times_us(folder: Path) -> list[int]:
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:  # without a name: nothing can be left
        for _ in range(SYNCS):
            file.write(os.urandom(4096))
            file.flush()
            began = time.perf_counter_ns()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter_ns() - began) // 1000)
    return times


def judge_syncs(times_us: list[int]) -> Finding:
    """Return how fast a disk makes writes durable: every receipt waits for it."""
    median = sorted(times_us)[len(times_us) // 2]
    text = f"a synced write takes {median // 1000}.{median % 1000 // 100} ms"
    if median > SYNC_MS_WARN * 1000:
        return warn(f"{text}: puts will be slow", "a disk with a write cache that survives")
    return ok(text)


def _storage(home: Path, _ask: Ask) -> Iterator[Finding]:
    code, data = erasure.Code(), os.urandom(100_001)
    shards = dict(enumerate(erasure.encode(data, code)))
    for left in itertools.combinations(shards, code.k):
        if erasure.decode({column: shards[column] for column in left}, code, len(data)) != data:
            yield fail(f"the erasure code does not give back what {left} have")
    place = segment.Place(bytes(32), 0, len(data), final=True)
    key, nonce = os.urandom(32), os.urandom(12)
    sealed, tag = segment.seal(key, nonce, place, data)
    if segment.open_sealed(key, nonce, tag, place, bytes(sealed)) != data:
        yield fail("the cipher does not give back what it sealed")
    with tempfile.TemporaryDirectory(dir=home if homes.is_home(home) else None) as folder:
        database = LevelDBKeyValue(Path(folder) / "db")
        database.write([(b"key", data)], sync=True)
        database.close()
        database = LevelDBKeyValue(Path(folder) / "db")
        kept = database.get(b"key")
        database.close()
    if kept is None or merkle.root_of(kept) != merkle.root_of(data):
        yield fail("the database does not give back what was synced")
        return
    yield ok("code, cipher and database give everything back")


# The sandbox


def _sandbox(_home: Path, _ask: Ask) -> Iterator[Finding]:
    said = asyncio.run(_try_sandbox())
    confined = said["confined"]
    assert isinstance(confined, Mapping)
    yield ok(f"a program ran; {said['engine']}")
    yield from judge_confinement(confined, root=os.geteuid() == 0)


async def _try_sandbox() -> dict[str, Any]:
    async with sandbox() as pool:
        job = Job(hashlib.sha256(WARM_UP).digest(), WARM_UP, function="run")
        result = await pool.run(job)
        assert result.trap is None
        return dict(pool.describe())


_GIVEN_UP = {
    "no_new_privileges": "a program that broke out could gain privileges",
    "no_descriptors": "a program that broke out could use open files",
    "capabilities_dropped": "a program that broke out would have the node's capabilities",
    "not_traceable": "other processes of the user can look into the sandbox",
    "dies_with_parent": "a worker may outlive the node",
}


def judge_confinement(confined: Mapping[str, Any], *, root: bool) -> Iterator[Finding]:
    """Yield what a sandbox worker could not give up (`xsc.compute.worker.confine`)."""
    for name, meaning in _GIVEN_UP.items():
        if not confined.get(name):
            yield fail(f"{name.replace('_', ' ')} does not hold here: {meaning}")
    version = confined.get("landlock", 0)
    if version:
        yield ok(f"landlock {version} denies every path")
    else:
        yield warn(
            "this kernel has no landlock: what denies files is that none can be opened",
            "Linux 5.13 or newer, with landlock among its security modules",
        )
    if root:
        yield warn(
            "the node would run as root, whom the kernel does not hold to the limit of processes",
            "run it as a user of its own",
        )


# The node that runs


def _node(home: Path, ask: Ask) -> Iterator[Finding]:
    if not (home / "api.json").exists():
        yield _port(home)
        return
    status = ask()
    peers = status["peers"]
    yield judge_peers(peers["healthy"], peers["known"])
    yield from judge_reach(peers["reached_by"], peers["not_reached_by"], status["addresses"])
    yield from judge_clock_of_peers(peers["clock_refused_by"], peers["known"])
    ending = status["leases"]["ending"]
    if ending:
        yield warn(f"{ending} leases end soon", "xsc store ls --ending")


def judge_reach(
    reached_by: int, not_reached_by: int, addresses: Sequence[str]
) -> Iterator[Finding]:
    """Yield what it means that so many peers say they reach this node, and so many do not."""
    if not_reached_by:
        where = ", ".join(addresses) or "no address"
        of = f"{not_reached_by} of {reached_by + not_reached_by} peers"
        yield (warn if reached_by else fail)(
            f"{of} that this node reaches cannot reach it at {where}",
            RECIPES,
        )
    elif reached_by:
        yield ok(f"{reached_by} peers say that they reach it")


def judge_clock_of_peers(refused_by: int, known: int) -> Iterator[Finding]:
    """Yield what it means that so many peers refuse requests for the time that they name."""
    if not refused_by:
        return
    window_s = limits.REQUEST_WINDOW_MS // 1000
    mine = 2 * refused_by > known
    yield (fail if mine else warn)(
        f"{refused_by} of {known} peers say that this node's clock and theirs are more than "
        f"{window_s} s apart",
        "set this machine's clock" if mine else "xsc peer ls names them; their clock may be wrong",
        "clock",
    )


def _port(home: Path) -> Finding:
    """Return whether a node that starts now could listen where it wants to."""
    host, _, port = configs.load(home, os.environ, {}).peer_listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host.strip("[]"), int(port)))
        except OSError as fault:
            return fail(f"it could not listen at {host}:{port}: {fault.strerror}")
    return ok("it does not run; it could listen where it is told to")


def judge_peers(healthy: int, known: int) -> Finding:
    """Return what the number of peers that answer means."""
    text = f"it runs; {healthy} of {known} peers answer"
    if not known:
        return warn("it runs, and knows no peer", "xsc peer invite")
    return ok(text) if healthy else warn(text, "xsc peer ls")


CHECKS: Final[Sequence[tuple[str, Callable[[Path, Ask], Iterator[Finding]]]]] = (
    ("machine", _machine),
    ("open files", _descriptors),
    ("clock", _clock),
    ("home", _home),
    ("settings", _settings),
    ("disk", _disk),
    ("capacity", _capacity),
    ("storage", _storage),
    ("sandbox", _sandbox),
    ("node", _node),
)
