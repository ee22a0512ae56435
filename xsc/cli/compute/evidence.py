"""xsc compute evidence: what providers signed that cannot be true."""

from __future__ import annotations

from pathlib import Path

import click

from xsc import api
from xsc.api.endpoint import Id
from xsc.base.errors import ArgumentInvalid
from xsc.cli.options import PATH, Command, Settings, check_id
from xsc.cli.output import Columns, moment, short


@click.command(cls=Command)
@click.argument("evidence_id", metavar="[ID]", required=False)
@click.option("-o", "--output", type=PATH, help="Write the record ID there.")
def evidence(settings: Settings, evidence_id: str | None, output: Path | None) -> None:
    """List receipts of two providers for one order that cannot both be true.

    With ID and -o, one signed record is written to a file: `xsc verify` checks it
    without a node, and `xsc compute verify` says whose receipt is wrong.
    """
    if (evidence_id is None) != (output is None):
        raise ArgumentInvalid("ID and --output go together")
    if evidence_id is not None and output is not None:
        hint = "`xsc compute evidence` shows them"
        found = Id(id=check_id(evidence_id, r"[a-z0-9]{1,64}", "evidence id", hint))
        settings.save(api.jobs.EVIDENCE_RECORD, found, output)
        return
    columns: Columns = {
        "id": ("id", short),
        "found": ("found_ms", moment),
        "believed": "first_name",
        "against": "second_name",
        "function": "function",
        "module": lambda row: row["module"][:16],
        "differ in": ("differs", ", ".join),
    }
    answer = settings.ask(api.jobs.EVIDENCE)
    settings.table(answer, "evidence", columns, "no provider has contradicted another")
