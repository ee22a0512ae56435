"""What goes into a backup: the home's files, the state, the space, and the shards stored here.

Each store is read as it is at one moment, while the node runs: a scan sees
the store at its start and keeps no writer waiting. The state's moment comes
first, so that whatever it names lies in the bodies; what is put between the two
is in the bodies alone, and is found there as a leftover.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from xsc.base.errors import HomeInvalid, IdentityInvalid
from xsc.base.keyvalue import KeyValue
from xsc.base.log import SilentLog
from xsc.identity.keys import KeyPair
from xsc.node.home import folder as homes
from xsc.node.home.archive import (
    BODY,
    FILE,
    SALT_BYTES,
    SPACE,
    STATE,
    Entry,
    Head,
    SealKind,
    frames,
    seal_of,
)
from xsc.node.home.stores import open_stores
from xsc.node.system import SystemClock, SystemEntropy

KEY_FILE: Final = "identity.key"
FILES: Final = ("format", "network", "config.toml", "capacity", "peer.port", KEY_FILE)
"""Of the home; all else in it is made anew, or belongs to the process that runs."""
FILE_BYTES_MAX: Final = 1024 * 1024


def home_files(path: Path, *, identity: bool) -> Iterator[Entry]:
    """Yield the files of a home that a backup holds.

    Raises:
        HomeInvalid, IdentityInvalid: one cannot be read, or the key is not there.
    """
    for name in FILES:
        if name == KEY_FILE and not identity:
            continue
        try:
            with (path / name).open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            if name == KEY_FILE:
                raise IdentityInvalid(f"the home {path} has lost its {KEY_FILE}") from None
            continue
        except OSError as fault:
            raise HomeInvalid(f"{path / name} cannot be read: {fault.strerror}") from None
        if len(raw) > FILE_BYTES_MAX:
            raise HomeInvalid(f"{path / name} is too large for a file of a home")
        yield Entry(FILE, name.encode(), raw)


def entries(path: Path, stores: Mapping[bytes, KeyValue], *, identity: bool) -> Iterator[Entry]:
    """Return the records of a backup, as everything is at this call.

    Args:
        path: the home.
        stores: its databases by their letters, in the order of the records.
        identity: whether the key is among the files.

    Raises:
        HomeInvalid, IdentityInvalid: as `home_files`.
        StoreDamaged: while they are read: a store cannot be read to its end.
    """
    files = list(home_files(path, identity=identity))
    return _entries(files, [(letter, store.scan(b"")) for letter, store in stores.items()])


def _entries(
    files: Iterable[Entry],
    rows: Iterable[tuple[bytes, Iterator[tuple[bytes, bytes]]]],
) -> Iterator[Entry]:
    yield from files
    for letter, found in rows:
        for key, value in found:
            yield Entry(letter, key, value)


class Databases(Protocol):
    """The databases of a home that a backup can hold."""

    @property
    def state(self) -> KeyValue:
        """Everything but the others."""

    @property
    def space(self) -> KeyValue:
        """The records of the space."""

    @property
    def bodies(self) -> KeyValue:
        """The shards that are stored here."""


def letters_of(stores: Databases, *, bodies: bool) -> dict[bytes, KeyValue]:
    """Return the databases that a backup holds by their letters; the state first."""
    found = {STATE: stores.state, SPACE: stores.space}
    return found | {BODY: stores.bodies} if bodies else found


def new_head(
    node: bytes, network: str, *, identity: bool, bodies: bool, seal: SealKind, now_ms: int
) -> Head:
    """Return the head of a new backup, with a salt of its own."""
    salt = SystemEntropy().token(SALT_BYTES)
    return Head(node, network, now_ms, identity, bodies, seal, salt)


def stream(
    path: Path,
    network: str,
    key: KeyPair,
    stores: Mapping[bytes, KeyValue],
    *,
    identity: bool,
    now_ms: int,
) -> Iterator[bytes]:
    """Return the bytes of a backup as everything is at this call, a frame at a time.

    With the identity in it nobody's secret seals it; without, the node's key does.

    Raises:
        XscError: as `entries`.
    """
    head = new_head(
        key.node_id,
        network,
        identity=identity,
        bodies=BODY in stores,
        seal="nothing" if identity else "identity",
        now_ms=now_ms,
    )
    found = entries(path, stores, identity=identity)
    return frames(head, found, seal_of(head, key=key))


def stream_stopped(path: Path, passphrase: str, *, identity: bool, bodies: bool) -> Iterator[bytes]:
    """Yield the bytes of a backup of a home whose node does not run.

    Raises:
        HomeInvalid, HomeLocked: no whole home, or its node runs.
        XscError: as `entries`.
    """
    homes.check_format(path)
    homes.check_finished(path)
    with homes.lock(path):
        home = homes.open_home(path, passphrase)
        if not (home.databases / "state").exists():
            raise HomeInvalid(
                f"the node of {path} never ran", hint="`xsc node identity export` keeps its key"
            )
        clock = SystemClock()
        stores = open_stores(home.databases, SilentLog())
        try:
            yield from stream(
                path,
                home.network,
                home.key,
                letters_of(stores, bodies=bodies),
                identity=identity,
                now_ms=clock.now_ms(),
            )
        finally:
            stores.close()
