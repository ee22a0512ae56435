"""A backup: the home's files, the state, the space and the shards stored here, in one file.

    file    magic ‖ head length (4) ‖ head ‖ frame …
    head    the record `backup`: {v, node, network, created_ms, seal, salt}
    frame   last (1 bit) and length (31 bits), 4 bytes ‖ AES-256-GCM of a part of the records
    record  letter (1) ‖ key length (4) ‖ value length (4) ‖ key ‖ value

The frames, opened and put together, are the records: files of the home (`f`), rows of
the state (`s`), of the space (`p`) and of the shard store (`b`). The key is of this file
alone, and each frame's number, the head and the end are bound: a part that was changed,
moved or left out does not open. Where nobody's secret seals the backup anybody can
make the key, and only damage is found.

Each store is read as it is at one moment, while the node runs: a scan sees
the store at its start and keeps no writer waiting. The state's moment comes
first, so that whatever it names lies in the bodies; what is put between the two
is in the bodies alone, and is found there as a leftover. docs/design/backup.md; vectors:
tests/vectors/backup.json.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import Field

from xsc.base import encoding, limits, log
from xsc.base.errors import HomeInvalid, IdentityInvalid, RecordInvalid, StoreDamaged
from xsc.base.keyvalue import KeyValue, Stores
from xsc.identity import envelope, keys
from xsc.ledger.chain import ENTRY as LEDGER_ENTRY
from xsc.market.lease_store import CUSTOMER
from xsc.net.peers import invitation, roster
from xsc.node.home import folder as homes
from xsc.node.home.stores import open_stores
from xsc.node.system import SystemClock, SystemEntropy
from xsc.space.replicas import CLOCK, META
from xsc.storage.catalogue.objects import OBJECTS
from xsc.storage.transfer import journal

MAGIC: Final = b"XSC backup\n"
HEAD_BYTES_MAX: Final = 4 * limits.KIB
FRAME_BYTES: Final = limits.MIB
"""Plain bytes of a full frame."""
KEY_BYTES_MAX: Final = 4 * limits.KIB
VALUE_BYTES_MAX: Final = 128 * limits.MIB
"""Above any body: an object record has a manifest of at most MANIFEST_BYTES_MAX."""
SALT_BYTES: Final = 16
KEY_FILE: Final = "identity.key"
FILES: Final = ("format", "network", "config.toml", "capacity", "peer.port", KEY_FILE)
"""Of the home; all else in it is made anew, or belongs to the process that runs."""
FILE, STATE, SPACE, BODY = b"f", b"s", b"p", b"b"
LEFT_OUT: Final = {STATE: (invitation.PREFIX, journal.PREFIX, *CUSTOMER), SPACE: (CLOCK,)}
"""What a restore leaves out, since it must not be used a second time: open invitations, puts that
were under way, whose objects may be complete by now, leases as a customer, which the
hosts tell with the last voucher that was signed, and the node's interval in the space."""
_LETTERS: Final = (FILE, STATE, SPACE, BODY)
_RECORD: Final = struct.Struct(">cII")
_TAG_BYTES: Final = 16
_LAST: Final = 1 << 31

SealKind: TypeAlias = Literal["nothing", "passphrase", "identity"]
Unlock: TypeAlias = Callable[[str], keys.KeyPair]
"""Opens the text of a key file."""


class Head(envelope.Record):
    """What a backup says of itself before anything is opened; bound to every frame."""

    KIND = "backup"
    node: envelope.Id32
    network: str
    created_ms: envelope.Count
    seal: SealKind
    salt: Annotated[bytes, Field(min_length=SALT_BYTES, max_length=SALT_BYTES)]

    @property
    def identity(self) -> bool:
        """Whether the key of the node is in it."""
        return self.seal != "identity"


def new_head(node: bytes, network: str, seal: SealKind, now_ms: int) -> Head:
    """Return the head of a new backup, with a salt of its own."""
    salt = SystemEntropy().token(SALT_BYTES)
    return Head(node=node, network=network, created_ms=now_ms, seal=seal, salt=salt)


class Seal:
    """Closes and opens the frames of one file, in their order."""

    def __init__(self, head: Head, secret: bytes) -> None:
        self._cipher = AESGCM(keys.derive(secret + head.salt, "backup/file"))
        self._secret = bool(secret)
        self._bound = encoding.domain("backup-frame") + head.to_bytes()
        self._number = 0

    def _place(self, last: bool) -> tuple[bytes, bytes]:
        nonce = self._number.to_bytes(12, "big")
        self._number += 1
        return nonce, self._bound + bytes([last])

    def close(self, payload: bytes, *, last: bool) -> bytes:
        """Return the frame of a payload."""
        nonce, bound = self._place(last)
        return _frame(self._cipher.encrypt(nonce, payload, bound), last=last)

    def open(self, sealed: bytes, *, last: bool) -> bytes:
        """Return the payload of what a frame seals.

        Raises:
            StoreDamaged, IdentityInvalid: it is another, or in another place.
        """
        nonce, bound = self._place(last)
        try:
            return self._cipher.decrypt(nonce, sealed, bound)
        except (InvalidTag, ValueError):
            if self._number == 1 and self._secret:
                raise IdentityInvalid(
                    "the passphrase or the key is wrong, or the backup is damaged"
                ) from None
            raise StoreDamaged("the backup is damaged: a part of it does not open") from None


def seal_of(head: Head, *, passphrase: str = "", key: keys.KeyPair | None = None) -> Seal:
    """Return what closes and opens the frames under a head.

    Raises:
        IdentityInvalid: the secret that it needs was not given, or is another node's; or
            one was given that does not seal it.
    """
    given = {"passphrase": bool(passphrase), "identity": key is not None}
    if any(there and kind != head.seal for kind, there in given.items()):
        raise IdentityInvalid(
            "the backup is not sealed by the key or passphrase that was given, and may be forged",
            hint="anybody can make a backup without a seal: leave the key or passphrase out only "
            "if you know where this one comes from",
        )
    if head.seal == "nothing":
        return Seal(head, b"")
    if head.seal == "passphrase":
        if not passphrase:
            raise IdentityInvalid(
                "the backup is locked by a passphrase",
                hint="give it with --passphrase-file, or run on a terminal to be asked",
            )
        scrypt = Scrypt(salt=head.salt, length=32, n=2**15, r=8, p=1)
        return Seal(head, scrypt.derive(passphrase.encode()))
    if key is None:
        raise IdentityInvalid(
            "the backup holds no identity, and only its node's key opens it",
            hint="give the exported key file with --identity",
        )
    if key.node_id != head.node:
        raise IdentityInvalid("that is the key of another node than the one backed up")
    return Seal(head, key.derive("backup"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One record: a file of the home, or a row of a store."""

    letter: bytes
    key: bytes
    value: bytes

    def to_bytes(self) -> bytes:
        """Return its bytes."""
        sizes = _RECORD.pack(self.letter, len(self.key), len(self.value))
        return b"".join((sizes, self.key, self.value))


def _opening(head: Head) -> bytes:
    raw = head.to_bytes()
    return MAGIC + len(raw).to_bytes(4, "big") + raw


def _frame(sealed: bytes, *, last: bool) -> bytes:
    return (len(sealed) | (_LAST if last else 0)).to_bytes(4, "big") + sealed


def frames(head: Head, entries: Iterable[Entry], seal: Seal) -> Iterator[bytes]:
    """Yield the bytes of a backup, the head first, then frame by frame."""
    yield _opening(head)
    waiting = bytearray()
    for entry in entries:
        waiting += entry.to_bytes()
        while len(waiting) >= FRAME_BYTES:
            yield seal.close(bytes(waiting[:FRAME_BYTES]), last=False)
            del waiting[:FRAME_BYTES]
    yield seal.close(bytes(waiting), last=True)


class _Blocks:
    """Gives so many bytes at a time of what comes in blocks of any size."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._kept = bytearray()

    def has(self, size: int) -> bool:
        """Say whether so many bytes are left."""
        while len(self._kept) < size:
            block = next(self._blocks, None)
            if block is None:
                return False
            self._kept += block
        return True

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        if not self.has(size):
            raise StoreDamaged("the backup is cut short")
        taken = bytes(self._kept[:size])
        del self._kept[:size]
        return taken


class Reader:
    """Reads a backup, and proves each frame before it gives what is in it."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        """Read the head.

        Raises:
            HomeInvalid: no backup, or of a newer format. StoreDamaged: cut short, or damaged.
        """
        self._blocks = _Blocks(blocks)
        if not self._blocks.has(len(MAGIC)) or self._blocks.take(len(MAGIC)) != MAGIC:
            raise HomeInvalid("that is no backup of an XSC node")
        size = int.from_bytes(self._blocks.take(4), "big")
        if size > HEAD_BYTES_MAX:
            raise StoreDamaged("the head of the backup is damaged")
        try:
            self.head = Head.from_bytes(self._blocks.take(size))
        except RecordInvalid as fault:
            if fault.hint:  # of another version
                raise HomeInvalid(fault.message, hint=fault.hint) from None
            raise StoreDamaged(f"the head of the backup is damaged: {fault.message}") from None

    def _frames(self) -> Iterator[tuple[bytes, bool]]:
        last = False
        while not last:
            word = int.from_bytes(self._blocks.take(4), "big")
            last, size = bool(word & _LAST), word & (_LAST - 1)
            if size > FRAME_BYTES + _TAG_BYTES:
                raise StoreDamaged("the backup is damaged: a part of it is too large")
            yield self._blocks.take(size), last
        if self._blocks.has(1):
            raise StoreDamaged("the backup is damaged: something follows its end")

    def whole(self) -> Iterator[bytes]:
        """Yield the backup as it came, the head again, up to its last frame.

        Raises:
            StoreDamaged: it is cut short, or longer than it should be.
        """
        yield _opening(self.head)
        for sealed, last in self._frames():
            yield _frame(sealed, last=last)

    def entries(self, seal: Seal) -> Iterator[Entry]:
        """Yield the records, and return once all of them were there.

        What was yielded counts only then: who writes it down must take it back where
        this raises.

        Raises:
            StoreDamaged: damaged, cut short, or longer than it should be.
            IdentityInvalid: the secret is wrong, as far as can be told.
        """
        plain = _Blocks(seal.open(sealed, last=last) for sealed, last in self._frames())
        while plain.has(1):
            letter, key, value = _RECORD.unpack(plain.take(_RECORD.size))
            if letter not in _LETTERS or key > KEY_BYTES_MAX or value > VALUE_BYTES_MAX:
                raise StoreDamaged("the backup is damaged: a record is of no known kind or size")
            yield Entry(letter, plain.take(key), plain.take(value))


def home_files(path: Path, *, identity: bool) -> Iterator[Entry]:
    """Yield the files of a home that a backup holds.

    Raises:
        HomeInvalid, IdentityInvalid: one cannot be read, or the key is not there.
    """
    for name in FILES if identity else FILES[:-1]:
        try:
            yield Entry(FILE, name.encode(), (path / name).read_bytes())
        except FileNotFoundError:
            if name == KEY_FILE:
                raise IdentityInvalid(f"the home {path} has lost its {KEY_FILE}") from None
        except OSError as fault:
            raise HomeInvalid(f"{path / name} cannot be read: {fault.strerror}") from None


def letters_of(stores: Stores, *, bodies: bool = True) -> dict[bytes, KeyValue]:
    """Return the databases of a home that a backup holds by their letters; the state first."""
    found = {STATE: stores.state, SPACE: stores.space}
    return found | {BODY: stores.bodies} if bodies else found


def rows_of(stores: Mapping[bytes, KeyValue]) -> Iterator[Entry]:
    """Return the rows of databases by their letters, as everything is at this call.

    Raises:
        StoreDamaged: while they are read: a store cannot be read to its end.
    """
    scans = [(letter, store.scan(b"")) for letter, store in stores.items()]
    return (Entry(letter, key, value) for letter, scan in scans for key, value in scan)


def stream(
    home: homes.Home, stores: Stores, *, identity: bool, bodies: bool, now_ms: int
) -> Iterator[bytes]:
    """Return the bytes of a backup as everything is at this call, a frame at a time.

    With the identity in it nobody's secret seals it; without, the node's key does.

    Raises:
        XscError: as `home_files`, and while it is read as `rows_of`.
    """
    seal: SealKind = "nothing" if identity else "identity"
    head = new_head(home.key.node_id, home.network, seal, now_ms)
    files = list(home_files(home.path, identity=identity))
    locks = seal_of(head, key=None if identity else home.key)
    return frames(head, chain(files, rows_of(letters_of(stores, bodies=bodies))), locks)


def stream_stopped(path: Path, passphrase: str, *, identity: bool, bodies: bool) -> Iterator[bytes]:
    """Yield the bytes of a backup of a home whose node does not run.

    Raises:
        HomeInvalid, HomeLocked: no whole home, or its node runs.
        XscError: as `stream`.
    """
    homes.check_format(path)
    homes.check_whole(path)
    with homes.lock(path):
        home = homes.open_home(path, passphrase)
        if not (home.databases / "state").exists():
            raise HomeInvalid(
                f"the node of {path} never ran", hint="`xsc node identity export` keeps its key"
            )
        stores = open_stores(home.databases, log.SilentLog())
        try:
            now_ms = SystemClock().now_ms()
            yield from stream(home, stores, identity=identity, bodies=bodies, now_ms=now_ms)
        finally:
            stores.close()


_COUNTED: Final = {
    "objects": (STATE, OBJECTS),
    "peers": (STATE, roster.PREFIX),
    "entries": (STATE, LEDGER_ENTRY),
    "space_records": (SPACE, META),
    "bodies": (BODY, b""),
}
"""Letter and prefix of what people are told of: own objects with those that are hidden, entries of
the ledger, records of the space with tombstones and those of other owners, and shards and records
that lie here, own ones and others'."""


@dataclass(frozen=True, slots=True)
class Brought:
    """What a backup brings back."""

    head: Head
    counts: dict[str, int]
    """As `_COUNTED` says, and `bodies_bytes`."""
    files: dict[str, bytes]


def read_into(
    reader: Reader, seal: Seal, stores: Mapping[bytes, KeyValue], unlock: Unlock
) -> Brought:
    """Read all of a backup, write its rows into empty stores, and return what it brings back.

    Args:
        reader: of the backup.
        seal: what opens its frames.
        stores: by their letters; rows of others are not written.
        unlock: opens the key file that the backup holds.

    Raises:
        StoreDamaged, IdentityInvalid: it is damaged or forged, or does not open; the stores are
            worth nothing then.
    """
    head, files = reader.head, dict[str, bytes]()
    counts = dict.fromkeys((*_COUNTED, "bodies_bytes"), 0)
    for entry in reader.entries(seal):
        for name, (letter, prefix) in _COUNTED.items():
            counts[name] += entry.letter == letter and entry.key.startswith(prefix)
        if entry.letter == BODY:
            counts["bodies_bytes"] += len(entry.value)
        if entry.letter == FILE:
            name = entry.key.decode("utf-8", "replace")
            if name not in FILES or (name == KEY_FILE and not head.identity):
                raise StoreDamaged("the backup holds a file that has no place in a home")
            files[name] = entry.value
        if entry.letter in stores and not entry.key.startswith(LEFT_OUT.get(entry.letter, ())):
            stores[entry.letter].write([(entry.key, entry.value)], sync=False)
    for store in stores.values():
        store.write([], sync=True)
    if head.identity:
        if KEY_FILE not in files:
            raise StoreDamaged("the backup lacks the key that should be in it")
        if unlock(files[KEY_FILE].decode("utf-8", "replace")).node_id != head.node:
            raise IdentityInvalid(
                "the backup is forged: the key in it is not that of the node that it names"
            )
    return Brought(head, counts, files)


def restore_home(
    reader: Reader, seal: Seal, path: Path, key_line: str | None, unlock: Unlock
) -> Brought:
    """Make a home in an empty directory out of a backup; return what came.

    Where it fails nothing is left. Where it is killed, the same call begins anew.

    Args:
        reader: of the backup.
        seal: what opens its frames.
        path: the directory, empty or absent.
        key_line: the key file's text, where the backup holds none.
        unlock: opens the key file that the backup holds.

    Raises:
        HomeInvalid: the directory holds something.
        StoreDamaged, IdentityInvalid: the backup is damaged or forged, or does not open.
    """
    _check_empty(path)
    with homes.lock(path):
        _check_empty(path)
        homes.mark(path, "restoring")
        _clear(path)
        try:
            found = _fill(reader, seal, path, key_line, unlock)
        except BaseException:
            _clear(path)
            homes.finish(path)
            raise
        homes.mark(path, "restored")
        return found


def _check_empty(path: Path) -> None:
    if homes.names_in(path) - {"lock"} and homes.stage_of(path) != "restoring":
        raise HomeInvalid(
            f"{path} is not empty", hint="a backup is restored into an empty or a new directory"
        )


def _clear(path: Path) -> None:
    shutil.rmtree(path / "db", ignore_errors=True)
    for name in FILES:
        (path / name).unlink(missing_ok=True)


def _fill(reader: Reader, seal: Seal, path: Path, key_line: str | None, unlock: Unlock) -> Brought:
    stores = open_stores(path / "db", log.SilentLog())
    try:
        found = read_into(reader, seal, letters_of(stores), unlock)
    finally:
        stores.close()
    files = found.files
    if not reader.head.identity:
        if key_line is None:
            raise HomeInvalid("the backup holds no identity", hint="give it with --identity FILE")
        files[KEY_FILE] = key_line.encode()
    # The key last: a home without it is told apart from one that lost it.
    for name in sorted(files, key=lambda name: (name == KEY_FILE, name)):
        homes.write_file(path / name, files[name])
    homes.check_format(path)
    return found
