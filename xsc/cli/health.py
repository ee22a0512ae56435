"""xsc health: what this node's probes say of its peers."""

from __future__ import annotations

import click

from xsc.base.units import format_share
from xsc.cli.options import Command, Settings, pass_settings
from xsc.cli.output import moment, named, short, show_json, show_table


@click.command(cls=Command)
@pass_settings
def health(settings: Settings) -> None:
    """Show how the peers answer this node's probes."""
    answer = settings.calls().health()
    if settings.json:
        show_json(answer)
        return
    show_table(
        [
            *("peer", "state", "<availability", "<quality", "<response", "<probes", "<missed"),
            *("<wrong", "seen", "false clearing"),
        ],
        [
            [
                named(row, row["id"]),
                row["state"],
                format_share(row["availability_ppm"]),
                format_share(row["quality_ppm"]),
                f"{row['response_ms']}ms",
                str(row["probes"]),
                str(row["misses"]),
                str(row["wrong"]),
                moment(row["last_seen_ms"]),
                short(row["false_clearing"]) if row["false_clearing"] else "",
            ]
            for row in answer["peers"]
        ],
        "this node knows no peers; `xsc peer invite` makes an invitation for one",
    )
