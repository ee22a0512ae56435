"""xsc health: what this node's probes say of its peers."""

from __future__ import annotations

from typing import Final

import click

from xsc import api
from xsc.base.units import format_share
from xsc.cli.options import Command, Settings
from xsc.cli.output import Columns, by_name, moment, short

_PEERS: Final[Columns] = {
    "peer": by_name("id"),
    "state": "state",
    "<availability": ("availability_ppm", format_share),
    "<quality": ("quality_ppm", format_share),
    "<response": ("response_ms", "{}ms".format),
    "<probes": ("probes", str),
    "<missed": ("misses", str),
    "<wrong": ("wrong", str),
    "seen": ("last_seen_ms", moment),
    "false clearing": lambda row: short(row["false_clearing"]) if row["false_clearing"] else "",
}


@click.command(cls=Command)
def health(settings: Settings) -> None:
    """Show how the peers answer this node's probes."""
    empty = "this node knows no peers; `xsc peer invite` makes an invitation for one"
    settings.table(settings.ask(api.status.HEALTH), "peers", _PEERS, empty)
