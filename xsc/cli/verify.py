"""xsc verify: what a receipt or a ledger entry proves, without any node."""

from __future__ import annotations

import sys
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import cast

import click
from click import argument, option

from xsc.base.errors import LimitError, PeerError, ProofInvalid
from xsc.base.limits import PEER_BODY_BYTES_MAX
from xsc.cli import options
from xsc.cli.options import Command, Settings
from xsc.client.files import opened, read_bounded, read_file, read_module


def _opened(path: Path) -> BufferedReader:
    """Return a file, or standard input for "-", to be read."""
    if path == options.STREAM:
        return BufferedReader(cast(RawIOBase, sys.stdin.buffer))
    return opened(path)


@click.command(cls=Command)
@argument("file", type=options.PATH)
@option("--module", type=options.PATH, help="Check that the run was of this very module, too.")
@option("--lease", type=options.PATH, help="Check that the run was billed by this lease, too.")
def verify(settings: Settings, file: Path, module: Path | None, lease: Path | None) -> None:
    """Say what a receipt, voucher, lease, clearing, provenance, entry or drain proof proves.

    Needs neither a node nor the network. Exits with 6, and the first thing
    that is wrong, if the file proves nothing.
    """
    from xsc.node.offline.verify import verify_drain, verify_file

    code = None if module is None else read_module(module)
    agreed = None if lease is None else read_file(lease, "lease", PEER_BODY_BYTES_MAX)
    try:
        with _opened(file) as source:
            # A drain proof may be of any size, and is read piece by piece.
            if source.peek(4)[:4] == b"XSC ":
                proved = verify_drain(source.read)
            else:
                proved = verify_file(
                    read_bounded(source, "file", PEER_BODY_BYTES_MAX), code, agreed
                )
    except (PeerError, LimitError) as fault:
        # A record that a peer would be blamed for is, in a file, simply no proof.
        raise ProofInvalid(fault.message, hint=fault.hint) from None
    settings.view({"ok": True, "text": proved}, proved)
