"""xsc node backup and xsc node restore."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from xsc import api
from xsc.base.errors import ArgumentInvalid, UnavailableError
from xsc.base.ids import to_text
from xsc.base.units import format_size
from xsc.cli.options import PATH, Command, Settings, ask_passphrase, key_passphrase, read_key_file
from xsc.cli.output import Columns, moment, progress_bar, say, show_fields, show_json, warn
from xsc.client.calls import read_file, unreadable
from xsc.client.core import Document, Progress
from xsc.client.files import check_target, write_whole

if TYPE_CHECKING:
    from xsc.node.home.backup import Brought

PASSPHRASE_BYTES_MAX = 4096
BLOCK_BYTES = 1024 * 1024


def read_passphrase(path: Path) -> str:
    """Return the passphrase that a file holds, or standard input (-): its first line.

    Raises:
        ArgumentInvalid: it cannot be read, or holds none.
    """
    if path == Path("-"):
        raw = sys.stdin.buffer.read(PASSPHRASE_BYTES_MAX)
    else:
        raw = read_file(path, "passphrase file", PASSPHRASE_BYTES_MAX)
    try:
        line = raw.decode().split("\n")[0].rstrip("\r")
    except UnicodeDecodeError:
        line = ""
    if not line:
        raise ArgumentInvalid(f"{path} holds no passphrase in its first line")
    return line


def _ask(*, twice: bool) -> str:
    return ask_passphrase("give it with --passphrase-file FILE", twice=twice)


passphrase_file = click.option(
    "--passphrase-file", type=PATH, help="Take it from FILE, or from - (stdin)."
)


@click.command(cls=Command)
@click.argument("file", type=PATH, metavar="FILE|DIR")
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase that locks the backup.")
@passphrase_file
@click.option("--no-identity", is_flag=True, help="Leave the key out; only the key opens it then.")
@click.option("--no-bodies", is_flag=True, help="Leave out the shards that lie on this node.")
def backup(
    settings: Settings,
    file: Path,
    passphrase_file: Path | None,
    *,
    passphrase: bool,
    no_identity: bool,
    no_bodies: bool,
) -> None:
    """Write all that the node knows, as of this moment, to FILE.

    In a DIR the file gets a name of its own. The node may run meanwhile.
    FILE appears when all of it is there, readable by its owner only. It holds
    the identity, so whoever reads it is this node: lock it by a passphrase, or
    leave the identity out; then the exported key alone opens it.
    """
    from xsc.node.home.backup import Reader, frames, new_head, seal_of, stream_stopped
    from xsc.node.home.folder import check_format, check_whole

    check_format(settings.home)
    check_whole(settings.home)
    if file.is_dir():
        from datetime import UTC, datetime

        file /= f"xsc-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.backup"
    check_target(file)
    if file.exists():
        raise ArgumentInvalid(f"{file} exists", hint="name a new file, or a directory")
    if no_identity and (passphrase or passphrase_file is not None):
        raise ArgumentInvalid(
            "a backup without the identity is locked by the identity, and by no passphrase",
            hint="leave out --no-identity or the passphrase",
        )
    secret = ""
    if passphrase_file is not None:
        secret = read_passphrase(passphrase_file)
    elif passphrase:
        secret = _ask(twice=True)
    identity, bodies = not no_identity, not no_bodies

    def write(blocks: Iterable[bytes]) -> tuple[Reader, int]:
        with progress_bar("backing up", None) as progress:
            reader = Reader(_told(blocks, progress))
            passed = reader.whole()
            if secret:
                told = reader.head
                head = new_head(told.node, told.network, "passphrase", told.created_ms)
                locks = seal_of(head, passphrase=secret)
                passed = frames(head, reader.entries(seal_of(told)), locks)
            return reader, write_whole(file, passed, mode=0o600)

    if settings.runs():
        asked = api.home.Backup(identity=identity, bodies=bodies)
        with settings.calls().download(api.home.BACKUP, asked) as download:
            reader, size = write(download)
    else:
        passphrase_of_key = key_passphrase(settings.home)
        reader, size = write(
            stream_stopped(settings.home, passphrase_of_key, identity=identity, bodies=bodies)
        )
    answer = {
        "file": str(file),
        "size_bytes": size,
        "id": to_text(reader.head.node),
        "created_ms": reader.head.created_ms,
        "identity": identity,
        "bodies": bodies,
        "locked": no_identity or bool(secret),
    }
    settings.view(answer, str(file))
    if not no_identity and not secret:
        warn(f"{file} is not locked: who can read it, is this node")


def _told(blocks: Iterable[bytes], progress: Progress) -> Iterator[bytes]:
    for block in blocks:
        yield block
        progress(len(block))


def _blocks(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as source:
            while block := source.read(BLOCK_BYTES):
                yield block
    except OSError as fault:
        raise unreadable(file, "backup", fault) from None


@click.command(cls=Command)
@click.argument("file", type=PATH, required=False)
@click.option(
    "--identity", type=PATH, metavar="KEY", help="Exported key, where the backup holds none."
)
@passphrase_file
@click.option("--check", is_flag=True, help="Only read it, and say what it would bring back.")
@click.option(
    "--without-silent", is_flag=True, help="Go on without peers and objects that do not answer."
)
def restore(
    settings: Settings,
    file: Path | None,
    identity: Path | None,
    passphrase_file: Path | None,
    *,
    check: bool,
    without_silent: bool,
) -> None:
    """Bring a node back from the backup FILE; the home must be empty.

    The node of the backup must not run any more, here or elsewhere. Then its
    peers are asked what it has signed and stored since the backup: the ledger
    goes on under a new incarnation. While peers are silent the restore is not
    finished; it goes on without FILE, and at each `xsc node start`.
    """
    from xsc.node.daemon import catch_up_home
    from xsc.node.home.backup import Reader, restore_home, seal_of
    from xsc.node.home.backup import check as read_through

    brought: Brought | None = None
    if file is not None:
        from xsc.identity import keyfile

        reader = Reader(_blocks(file))
        line = key = None
        if identity is not None:
            line = read_key_file(identity)
            key = keyfile.from_line(line, key_passphrase(identity))
        secret = ""
        if passphrase_file is not None:
            secret = read_passphrase(passphrase_file)
        elif reader.head.seal == "passphrase":
            secret = _ask(twice=False)
        seal = seal_of(reader.head, passphrase=secret, key=key)
        if check:
            with progress_bar("checking", None):
                found = read_through(reader, seal)
            _tell(settings, found, None)
            return
        with progress_bar("restoring", None):
            brought = restore_home(reader, seal, settings.home, line)
    elif check or identity is not None or passphrase_file is not None:
        raise ArgumentInvalid("no backup is named", hint="xsc node restore FILE")
    try:
        done = catch_up_home(
            settings.home,
            passphrase=key_passphrase(settings.home),
            without_silent=without_silent,
        )
    except UnavailableError as fault:
        if brought is not None:
            fault.message = f"all of the backup is there, but {fault.message}"
        raise
    warn_of_lost(done.found.lost)
    answer = {
        "peers": done.peers,
        "newer_objects": done.found.newer,
        "deleted_objects": done.found.gone,
        "newer_entries": done.newer_entries,
        "silent": [to_text(peer) for peer in done.silent],
        "lost": list(done.found.lost),
    }
    _tell(settings, brought, answer)


def warn_of_lost(names: Iterable[str]) -> None:
    """Say which objects are not found after a home was brought back."""
    for name in names:
        warn(
            f"the object {name or 'without a name'} is at no host that answers; "
            "it is looked for again"
        )


_BACKUP: Final[Columns] = {
    "id": "id",
    "of": ("created_ms", moment),
    "objects": ("objects", str),
    "peers": ("peers", str),
    "ledger": ("entries", "{} entries".format),
    "space": ("space_records", "{} records".format),
    "shards": lambda kept: f"{kept['bodies']} ({format_size(kept['bodies_bytes'])})",
    "key": lambda kept: "in the backup" if kept["identity"] else "not in the backup",
}


def _tell(settings: Settings, found: Brought | None, since: dict[str, object] | None) -> None:
    kept: Document | None = None
    if found is not None:
        kept = {
            "id": to_text(found.head.node),
            "created_ms": found.head.created_ms,
            **found.counts,
            "identity": found.head.identity,
        }
    if settings.json:
        show_json({"home": str(settings.home), "backup": kept, "since": since})
        return
    if kept is not None:
        show_fields(kept, _BACKUP)
    if since is not None:
        say(
            f"since then: {since['newer_objects']} objects and {since['newer_entries']} ledger "
            f"entries came from peers, {since['deleted_objects']} objects had been deleted; "
            "`xsc node start` runs it"
        )
