"""xsc compute evidence: what providers signed that cannot be true."""

from __future__ import annotations

from pathlib import Path

import click

from xsc.base.errors import ArgumentInvalid
from xsc.cli.options import PATH, Command, Settings, pass_settings
from xsc.cli.output import moment, short, show_json, show_table
from xsc.client.files import check_target, write_whole


@click.command(cls=Command)
@click.argument("evidence_id", metavar="[ID]", required=False)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Write the record ID there.")
@pass_settings
def evidence(settings: Settings, evidence_id: str | None, output: Path | None) -> None:
    """List receipts of two providers for one order that cannot both be true.

    With ID and -o, one signed record is written to a file: `xsc verify` checks it
    without a node, and `xsc compute verify` says whose receipt is wrong.
    """
    if (evidence_id is None) != (output is None):
        raise ArgumentInvalid("ID and --output go together")
    if evidence_id is not None and output is not None:
        check_target(output)
        with settings.calls().evidence_record(evidence_id) as download:
            size = write_whole(output, download.blocks())
        if settings.json:
            show_json({"file": str(output), "size_bytes": size})
        return
    answer = settings.calls().evidence()
    if settings.json:
        show_json(answer)
        return
    show_table(
        ["id", "found", "believed", "against", "function", "module", "differ in"],
        [
            [
                short(row["id"]),
                moment(row["found_ms"]),
                row["first_name"],
                row["second_name"],
                row["function"],
                row["module"][:16],
                ", ".join(row["differs"]),
            ]
            for row in answer["evidence"]
        ],
        "no provider has contradicted another",
    )
