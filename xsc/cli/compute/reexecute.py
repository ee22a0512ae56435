"""xsc compute verify: run the order of a receipt again, and hold the receipt against it."""

from __future__ import annotations

from pathlib import Path

import click

from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import INPUT_BYTES_MAX, PEER_BODY_BYTES_MAX, STDIN_BYTES_MAX
from xsc.cli.options import PAIR, PATH, WHOLE, Command, Settings
from xsc.cli.output import say, short, show
from xsc.client.calls import read_file, read_module
from xsc.client.core import Document

EXITS = {"agrees": 0, "convicts": 0, "differs": 6, "cannot_tell": 7}


@click.command(cls=Command)
@click.argument("receipt", metavar="RECEIPT", type=PATH)
@click.argument("arguments", metavar="[-- ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--module", type=PATH, required=True, metavar="MOD", help="The module that was run.")
@click.option("--stdin", type=PATH, help="The standard input that it had.")
@click.option("--env", type=PAIR, multiple=True, metavar="K=V", help="A variable that it had.")
@click.option(
    "--input",
    "inputs",
    type=PAIR,
    multiple=True,
    metavar="NAME=FILE",
    help="A file that it read as /in/NAME.",
)
@click.option("--batch", type=PATH, help="The lines of a batch.")
@click.option("--item-fuel", type=WHOLE, help="Most fuel for a line of the batch.")
def verify(
    settings: Settings,
    *,
    receipt: Path,
    arguments: tuple[str, ...],
    module: Path,
    stdin: Path | None,
    env: tuple[tuple[str, str], ...],
    inputs: tuple[tuple[str, str], ...],
    batch: Path | None,
    item_fuel: int | None,
) -> int:
    """Run the order of an execution receipt again, here, and compare every bit.

    Needs neither a node nor the network. Exits with 0 if the receipt agrees,
    with 6 if it differs, and with 7 if nothing can be told: another engine, or a
    run that was ended for its time. Of `xsc compute evidence`, both receipts are
    compared, and 0 means that at least one is false.
    """
    if batch is not None and (arguments or stdin or env or inputs):
        raise ArgumentInvalid("with --batch there is no other input than its lines")
    raw = read_file(receipt, "receipt", PEER_BODY_BYTES_MAX)
    code = read_module(module)
    source = stdin if batch is None else batch
    text = b"" if source is None else read_file(source, "standard input", STDIN_BYTES_MAX)
    files = {name: read_file(Path(path), "input", INPUT_BYTES_MAX) for name, path in inputs}
    from xsc.node.offline.replay import Given, replay_file

    answer: Document = replay_file(
        raw,
        code,
        Given(arguments, dict(env), text, files, item_fuel),
    )
    settings.view(answer, _show_verdicts)
    return EXITS[answer["verdict"]]


def _show_verdicts(answer: Document) -> None:
    for row in answer.get("providers", [answer]):
        who = f"{short(row['provider'])} " if "provider" in row else ""
        show(who + row["verdict"].replace("_", " "))
        for reason in row["reasons"]:
            say(reason)
