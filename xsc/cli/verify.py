"""xsc verify: what a receipt or a ledger entry proves, without any node."""

from __future__ import annotations

from pathlib import Path

import click
from click import argument, option

from xsc.base import limits
from xsc.cli import options, show
from xsc.cli.options import Command, Settings
from xsc.client.files import read_file, read_module


@click.command(cls=Command)
@argument("file", type=options.PATH)
@option("--module", type=options.PATH, help="Check that the run was of this very module, too.")
@option("--lease", type=options.PATH, help="Check that the run was billed by this lease, too.")
def verify(settings: Settings, file: Path, module: Path | None, lease: Path | None) -> None:
    """Say what a signed file proves, as a receipt, a lease or a ledger entry.

    FILE is a receipt, deployment, voucher, lease, clearing, provenance, entry, drain proof,
    checkpoint, proof of a fork or passport.
    Needs neither a node nor the network. Exits with 6, and the first thing
    that is wrong, if the file proves nothing.
    """
    from xsc.node.offline.verify import proving, verify_file
    from xsc.storage.repair.drain_proof import DRAIN_PROOF_BYTES_MAX

    code = None if module is None else read_module(module)
    agreed = None if lease is None else read_file(lease, "lease", limits.PEER_BODY_BYTES_MAX)
    with proving():
        proved = verify_file(options.read_given(file, "file", DRAIN_PROOF_BYTES_MAX), code, agreed)
    settings.view({"ok": True, "text": proved})
    for line in [] if settings.json else proved.split("\n"):
        show.line(line)
