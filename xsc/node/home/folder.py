"""The home of a node: its files, their modes, the format version and the lock.

format        text, the version of everything below
network       the network's name
identity.key  the private key, mode 0600
config.toml   settings, where there are any
lock          held by the node that runs
node.pid      its process id           api.json   where its API listens
api.token     the API's bearer token, mode 0600
metrics.token a bearer token that opens the metrics alone, mode 0600; it stays
db/           bodies, index, state, space
cache/        compiled modules
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TypeAlias, cast, get_args

from xsc.base.errors import ConfigInvalid, HomeInvalid, HomeLocked, IdentityInvalid
from xsc.base.ids import to_text
from xsc.base.limits import PPM
from xsc.base.text import cause
from xsc.identity import keyfile
from xsc.identity.keys import NETWORK_DEFAULT, KeyPair
from xsc.node import config, system

FORMAT = 1
TOKEN_BYTES = 32
Stage: TypeAlias = Literal["recovering", "restoring", "restored"]
"""Its peers were not asked yet what it was; or it is not yet whole out of a backup, or it is, and
of the past."""
STAGE = "unfinished"
"""Stands in a home that is being brought back, and says how far it is."""
_OPERATORS = frozenset({"config.toml", "node.log", "lock"})
"""What may stand in a directory before it is a home."""
_BEGUN = frozenset({"format", "network"})


@dataclass(frozen=True, slots=True)
class Home:
    """An opened home."""

    path: Path
    network: str
    key: KeyPair

    @property
    def databases(self) -> Path:
        """Where the LevelDB databases are."""
        return self.path / "db"


def write_file(path: Path, content: bytes | str) -> None:
    """Replace a file by one with mode 0600, whole or not at all."""
    partial = path.with_name(path.name + ".part")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def _text_of(path: Path, name: str) -> str | None:
    """Return what a small file of a home says; None where it is not there.

    Raises:
        HomeInvalid: it cannot be read.
    """
    try:
        return (path / name).read_text().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as fault:
        raise HomeInvalid(f"{path / name} cannot be read: {cause(fault)}") from None


def check_format(path: Path) -> None:
    """Return if the directory is a home of a format known here.

    Raises:
        HomeInvalid: no home, or of a newer format.
    """
    text = _text_of(path, "format")
    if text is None:
        raise HomeInvalid(
            f"{path} is no XSC home", hint="`xsc node init` makes one in an empty directory"
        )
    if not text.isdigit():
        raise HomeInvalid(f"{path / 'format'} does not hold a format version")
    if int(text) != FORMAT:
        raise HomeInvalid(
            f"the home {path} is of format {text}, this xsc knows format {FORMAT}",
            hint="use the xsc that made it, or a newer one",
        )


def is_home(path: Path) -> bool:
    """Say whether a directory holds a home, finished or not."""
    return (path / "format").exists()


def has_key(path: Path) -> bool:
    """Say whether a home has its key: it is written last."""
    return (path / "identity.key").exists()


def names_in(path: Path) -> set[str]:
    """Return what a directory holds; made where there is none.

    Raises:
        HomeInvalid: it cannot be read or made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return {entry.name for entry in path.iterdir()}
    except OSError as fault:
        raise HomeInvalid(f"the home {path} cannot be used: {fault.strerror}") from None


def init_home(
    path: Path,
    *,
    passphrase: str = "",
    name: str | None = None,
    network: str | None = None,
    recover: str | None = None,
) -> dict[str, str]:
    """Make a home in an empty or absent directory; return its id, path and network.

    The format is written first and the identity last, so that an interrupted
    start is told apart from a lost key and simply goes on.

    Args:
        path: the directory.
        passphrase: locks the key file; an empty one does not.
        name: written to `config.toml`, where given.
        network: the network's name; signatures of one are worth nothing in another.
        recover: text of an exported key file, instead of a new identity.

    Raises:
        HomeInvalid: the directory holds something else, or a finished home.
        IdentityInvalid: `recover` is no key file.
        ConfigInvalid: the name or the network's is none.
    """
    if name is not None:
        config.check("name", name, "the name")
    if network is not None and not (
        0 < len(network) <= 64 and network.isprintable() and network == network.strip()
    ):
        raise ConfigInvalid("a network's name has 1 to 64 characters, none of them at an end blank")
    there = names_in(path)
    if "identity.key" in there:
        raise HomeInvalid(f"{path} is a home already", hint="`xsc node start` runs it")
    foreign = there - _OPERATORS - _BEGUN - (set() if recover is None else {STAGE})
    if foreign or (there & _BEGUN and "format" not in there):
        raise HomeInvalid(
            f"{path} is not empty and no XSC home", hint="give an empty or a new directory"
        )
    entropy = system.SystemEntropy()
    key = KeyPair(entropy.token(32)) if recover is None else keyfile.from_line(recover, passphrase)
    write_file(path / "format", f"{FORMAT}\n")
    write_file(path / "network", f"{network or NETWORK_DEFAULT}\n")
    if name is not None:
        write_file(path / "config.toml", f"name = {json.dumps(name)}\n")
    keyfile.write(path / "identity.key", keyfile.to_line(key, entropy, passphrase))
    return {"id": to_text(key.node_id), "home": str(path), "network": network or NETWORK_DEFAULT}


def mark(path: Path, stage: Stage) -> None:
    """Mark a home as one that is being brought back; made where there is none yet."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(path / STAGE, f"{stage}\n")


def stage_of(path: Path) -> Stage | None:
    """Return how far a recovery or a restore came; None where nothing is unfinished.

    Raises:
        HomeInvalid: its mark cannot be read.
    """
    text = _text_of(path, STAGE)
    if text is None:
        return None
    if text not in get_args(Stage):
        raise HomeInvalid(f"{path / STAGE} does not say what is unfinished")
    return cast("Stage", text)


def finish(path: Path) -> None:
    """Take the mark away: everything is there."""
    (path / STAGE).unlink()


def check_whole(path: Path) -> None:
    """Return if a home has all that a node needs to ask its peers for the rest.

    Raises:
        HomeInvalid: a recovery or a restore was interrupted before.
    """
    stage = stage_of(path)
    if stage == "recovering" and not has_key(path):
        raise HomeInvalid(
            f"the recovery of {path} was interrupted",
            hint="begin it again: xsc node recover IDENTITY --peer PEER",
        )
    if stage == "restoring":
        raise HomeInvalid(
            f"the restore of {path} was interrupted", hint="begin it again: xsc node restore FILE"
        )


def read_identity(path: Path, passphrase: str = "") -> KeyPair:
    """Return the identity of a home.

    Raises:
        HomeInvalid, IdentityInvalid: no home, or the key cannot be had.
    """
    check_format(path)
    return keyfile.read(path / "identity.key", passphrase)


def open_home(path: Path, passphrase: str = "") -> Home:
    """Return the home at a directory, made first where there is none yet.

    Raises:
        HomeInvalid, IdentityInvalid: it cannot be used, and why.
    """
    unfinished = is_home(path) and not has_key(path)
    if unfinished and (path / "db").exists():
        raise IdentityInvalid(
            f"the home {path} has lost its identity.key",
            hint="put the exported key file back in its place",
        )
    if unfinished or not path.exists() or not is_home(path):
        init_home(path, passphrase=passphrase)
    key = read_identity(path, passphrase)
    network = network_of(path)
    path.chmod(0o700)
    return Home(path, network, key)


def network_of(path: Path) -> str:
    """Return the name of the network of a home.

    Raises:
        HomeInvalid: it is not there.
    """
    text = _text_of(path, "network")
    if text is None:
        raise HomeInvalid(f"the home {path} has lost its network's name")
    return text


def lock(path: Path) -> IO[str]:
    """Take the home for this process, until the returned file is closed.

    Raises:
        HomeLocked: another node runs on it.
        HomeInvalid: it is something else than a home.
    """
    foreign = names_in(path) - _OPERATORS
    if foreign and not is_home(path) and stage_of(path) is None:
        check_format(path)
    try:
        file = (path / "lock").open("a+")
    except OSError as fault:
        raise HomeInvalid(f"the home {path} cannot be used: {fault.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        pid = (path / "node.pid").read_text().strip() if (path / "node.pid").exists() else "?"
        raise HomeLocked(
            f"a node runs on {path} already (process {pid})",
            hint="stop it, or give another home with --home",
        ) from None
    return file


def publish(path: Path, *, api_url: str, peer_url: str, token: str) -> None:
    """Write where the running node is to be reached; the token first, the place last."""
    write_file(path / "api.token", token + "\n")
    write_file(path / "node.pid", f"{os.getpid()}\n")
    place = {"url": api_url, "token_file": str(path / "api.token"), "peer_url": peer_url}
    write_file(path / "api.json", json.dumps(place) + "\n")


def metrics_token(path: Path) -> str:
    """Return the token that opens the metrics alone, which is made at the first start.

    Raises:
        HomeInvalid: it cannot be read.
    """
    text = (_text_of(path, "metrics.token") or "").strip()
    if not text:
        text = to_text(system.SystemEntropy().token(TOKEN_BYTES))
        write_file(path / "metrics.token", f"{text}\n")
    return text


def unpublish(path: Path) -> None:
    """Take those files away again."""
    for name in ("api.json", "api.token", "node.pid"):
        (path / name).unlink(missing_ok=True)


def read_number(path: Path) -> int | None:
    """Return the number that a file of the home holds; None where there is none."""
    text = _text_of(path.parent, path.name)
    return int(text) if text and text.isdigit() and len(text) < 20 else None


def write_number(path: Path, number: int) -> None:
    """Keep a number in a file of the home, whole or not at all."""
    write_file(path, f"{number}\n")


def capacity_of(path: Path, configured_bytes: int) -> int | None:
    """Return what a node offers: as configured, or what it chose; None where it has not yet."""
    return configured_bytes or read_number(path / "capacity")


def free_bytes(path: Path, reserve_ppm: int) -> int:
    """Return what a disk has left, less the share that is kept free."""
    usage = shutil.disk_usage(path)
    return max(0, usage.free - usage.total * reserve_ppm // PPM)


def capacity_fault(path: Path, capacity_bytes: int, reserve_ppm: int) -> str:
    """Return what is wrong with a capacity on this disk now, as `xsc.node.config` says.

    Raises:
        ConfigInvalid: the disk can never have it.
    """
    held = 0
    with suppress(FileNotFoundError), os.scandir(path / "db" / "bodies") as files:
        for file in files:
            with suppress(FileNotFoundError):  # a node that runs replaces its files
                held += file.stat().st_size
    return config.check_capacity(
        capacity_bytes,
        held_bytes=held,
        free_bytes=free_bytes(path, reserve_ppm),
        total_bytes=shutil.disk_usage(path).total,
    )


def remember_port(path: Path, peer_url: str) -> None:
    """Keep the peer port, so that the next start takes the same and peers find the node."""
    port = peer_url.rstrip("/").rsplit(":", 1)[-1]
    if port.isdigit():
        write_number(path / "peer.port", int(port))
