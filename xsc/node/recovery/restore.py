"""Makes a home out of a backup, and brings it up to date before anything is signed.

A backup is of the past: since then the node may have signed entries, vouchers
and directories that it does not hold. So a restored home carries a mark, and no
node serves on it before its peers were asked what they hold of its ledger and
directory. What must not be used a second time is left out of the home: open
invitations, puts that were under way, whose objects may be complete by now, the
node's interval in the space, and leases as a customer, which the hosts tell with the
last voucher that was signed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from xsc.base.errors import HomeInvalid, PeerSilent, StoreDamaged
from xsc.base.ids import short
from xsc.base.keyvalue import Change, KeyValue
from xsc.base.limits import MIB
from xsc.base.log import SilentLog
from xsc.ledger.chain import HALF
from xsc.market.lease_store import CUSTOMER
from xsc.net.peers import invitation, roster
from xsc.node.build import Node
from xsc.node.home import folder as homes
from xsc.node.home.archive import BODY, FILE, SPACE, STATE, Entry, Head, Reader, Seal, batches
from xsc.node.home.backup import FILES, KEY_FILE, letters_of
from xsc.node.home.disk_trial import drop_left
from xsc.node.home.stores import open_stores
from xsc.node.recovery.recover import (
    adopt_all,
    call_peers,
    find_head,
    noted_of,
    read_directory,
    resume_ledger,
    resume_space,
)
from xsc.space.store import CLOCK, META
from xsc.storage.catalogue.directory import DirectoryEntry
from xsc.storage.catalogue.objects import OBJECTS
from xsc.storage.object.capability import parse_read
from xsc.storage.transfer import journal

BATCH_BYTES: Final = 4 * MIB
LEFT_OUT: Final = {STATE: (invitation.PREFIX, journal.PREFIX, *CUSTOMER), SPACE: (CLOCK,)}
_COUNTED: Final = {OBJECTS: "objects", roster.PREFIX: "peers", HALF: "entries"}


@dataclass(slots=True)
class Brought:
    """What a backup brings back."""

    head: Head
    objects: int = 0
    """Own ones, with those that are hidden."""
    peers: int = 0
    entries: int = 0
    """Of the ledger."""
    space_records: int = 0
    """Of the space, with tombstones and those of other owners."""
    bodies: int = 0
    """Shards and records that lie here, own ones and others'."""
    bodies_bytes: int = 0
    files: list[str] = field(default_factory=list)

    def count(self, letter: bytes, rows: Iterable[Change]) -> None:
        """Take note of rows."""
        for key, value in rows:
            if letter == BODY:
                self.bodies += 1
                self.bodies_bytes += len(value or b"")
            if letter == SPACE and key.startswith(META):
                self.space_records += 1
            for prefix, name in _COUNTED.items():
                if letter == STATE and key.startswith(prefix):
                    setattr(self, name, getattr(self, name) + 1)


def kept(letter: bytes, rows: Iterable[Change]) -> list[Change]:
    """Return the rows that may go into a store."""
    return [row for row in rows if not row[0].startswith(LEFT_OUT.get(letter, ()))]


def read_into(entries: Iterable[Entry], stores: Mapping[bytes, KeyValue], found: Brought) -> None:
    """Write the rows of a backup into empty stores, by their letters, synced at the end.

    Raises:
        StoreDamaged, IdentityInvalid: the backup is damaged; the stores are worth nothing then.
    """
    for letter, rows in batches(entries, BATCH_BYTES):
        stores[letter].write(kept(letter, rows), sync=False)
        found.count(letter, rows)
    for store in stores.values():
        store.write([], sync=True)


def check(reader: Reader, seal: Seal) -> Brought:
    """Read all of a backup and write nothing; return what it would bring back.

    Raises:
        StoreDamaged, IdentityInvalid: it is damaged, or does not open.
    """
    found = Brought(reader.head)
    for letter, rows in batches(reader.entries(seal), BATCH_BYTES):
        if letter == FILE:
            found.files += [key.decode("utf-8", "replace") for key, _ in rows]
        found.count(letter, rows)
    return found


def restore_home(reader: Reader, seal: Seal, path: Path, key_line: str | None) -> Brought:
    """Make a home in an empty directory out of a backup; return what came.

    Where it fails nothing is left. Where it is killed, the same call begins anew.

    Args:
        reader: of the backup.
        seal: what opens its frames.
        path: the directory, empty or absent.
        key_line: the key file's text, where the backup holds none.

    Raises:
        HomeInvalid: the directory holds something.
        StoreDamaged, IdentityInvalid: the backup is damaged, or does not open.
    """
    _check_empty(path)
    with homes.lock(path):
        _check_empty(path)
        homes.mark_restore(path, "writing")
        _clear(path)
        try:
            found = _fill(reader, seal, path, key_line)
        except BaseException:
            _clear(path)
            homes.end_restore(path)
            raise
        homes.mark_restore(path, "written")
        return found


def _check_empty(path: Path) -> None:
    try:
        if path.exists():
            drop_left(path)
        there = {entry.name for entry in path.iterdir()} - {"lock"} if path.exists() else set()
    except OSError as fault:
        raise HomeInvalid(f"the home {path} cannot be used: {fault.strerror}") from None
    if there and homes.restore_stage(path) != "writing":
        raise HomeInvalid(
            f"{path} is not empty", hint="a backup is restored into an empty or a new directory"
        )


def _clear(path: Path) -> None:
    shutil.rmtree(path / "db", ignore_errors=True)
    for name in FILES:
        (path / name).unlink(missing_ok=True)


def _fill(reader: Reader, seal: Seal, path: Path, key_line: str | None) -> Brought:
    found = Brought(reader.head)
    files: dict[str, bytes] = {}
    stores = open_stores(path / "db", SilentLog())

    def rows() -> Iterable[Entry]:
        for entry in reader.entries(seal):
            if entry.letter == FILE:
                files[_file_name(entry.key, reader.head)] = entry.value
            else:
                yield entry

    try:
        read_into(rows(), letters_of(stores, bodies=True), found)
    finally:
        stores.close()
    if not reader.head.identity:
        if key_line is None:
            raise HomeInvalid("the backup holds no identity", hint="give it with --identity FILE")
        files[KEY_FILE] = key_line.encode()
    found.files = sorted(files)
    # The key last: a home without it is told apart from one that lost it.
    for name in sorted(files, key=lambda name: (name == KEY_FILE, name)):
        homes.write_file(path / name, files[name])
    homes.check_format(path)
    return found


def _file_name(raw: bytes, head: Head) -> str:
    for name in FILES:
        if raw == name.encode() and (head.identity or name != KEY_FILE):
            return name
    raise StoreDamaged("the backup holds a file that has no place in a home")


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What a restored node learned from its peers."""

    peers: int
    objects: int
    """That it did not have."""
    gone: int
    """That it had and that were deleted since."""
    entries: int
    """Of its ledger that it did not have."""
    silent: tuple[bytes, ...]
    """Peers that were not asked, by the operator's word."""
    lost: tuple[str, ...]
    """Names of newer objects that nobody who answered has, by the operator's word; they are
    looked for again."""


async def catch_up(node: Node, *, without_silent: bool) -> CaughtUp:
    """Learn from the peers what this node has signed and stored since its backup.

    May be repeated after any failure. Nothing is signed before it is over; then the
    ledger goes on under a new incarnation, and vouchers from their own newest end.

    Args:
        node: built with `recovering` on a restored home, not started.
        without_silent: go on although peers are silent; what they hold of the ledger is
            taken when they answer.

    Raises:
        PeerSilent: peers do not answer, or newer objects are not found.
    """
    before, known = (
        node.ledger.settled_entries(),
        {ref for ref, _ in node.storage.catalogue.entries()},
    )
    unfound = {_ref(item) for item in node.storage.catalogue.unfound()}
    own_generation = node.directory.generation
    await call_peers(node)
    await node.shards.start()
    found = await find_head(node, own=node.directory.head)
    silent = set(found.silent)
    _check_silent(node, silent, without_silent)
    noted = noted_of(found.body)
    objects, gone, lost = 0, 0, list[str]()
    if found.body is not None:
        listed = await read_directory(node, found.body)
        refs = {_ref(item) for item in listed}
        missing = [item for item in await adopt_all(node, listed) if _ref(item) not in known]
        # What the home lists itself stays listed although nobody answers for it now.
        lost = [item.name for item in missing if _ref(item) not in unfound]
        if lost and not without_silent:
            raise PeerSilent(
                f"{len(lost)} newer objects are at no host that answers",
                hint="try again when more peers are back; --without-silent goes on, "
                "and looks for them again",
            )
        await node.storage.catalogue.keep_unfound(missing)
        objects = len(refs - known) - len(missing)
        if found.generation > own_generation:
            for ref in known - refs:
                gone += await node.storage.drop_gone(ref)
    if found.raw:
        await node.directory.go_on_from(found.raw)
    silent |= {*(await resume_ledger(node, noted)).silent}
    await resume_space(node)
    return CaughtUp(
        peers=len(node.peers.peers()),
        objects=objects,
        gone=gone,
        entries=node.ledger.settled_entries() - before,
        silent=tuple(sorted(silent)),
        lost=tuple(lost),
    )


def _check_silent(node: Node, silent: set[bytes], without_silent: bool) -> None:
    if silent and not without_silent:
        names = ", ".join(sorted(f"{node.name_of(peer)} ({short(peer)})" for peer in silent))
        raise PeerSilent(
            f"these peers do not answer, and may hold what was stored and signed since: {names}",
            hint="try again when they are back, or go on without them: "
            "xsc node restore --without-silent",
        )


def _ref(item: DirectoryEntry) -> bytes:
    return parse_read(item.capability).manifest_hash
