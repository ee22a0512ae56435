"""xsc compute verify: run the order of a receipt again, and hold the receipt against it."""

from __future__ import annotations

import re
from pathlib import Path

import click

from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import (
    BATCH_ITEMS_MAX,
    INPUT_BYTES_MAX,
    MIB,
    PEER_BODY_BYTES_MAX,
    STDIN_BYTES_MAX,
)
from xsc.cli.options import PAIR, PATH, WHOLE, Command, Settings, pass_settings
from xsc.cli.output import say, short, show, show_json
from xsc.client.calls import read_file, read_module
from xsc.client.core import Document

RESULTS_BYTES_MAX = 64 * MIB
"""Lines of JSON are longer than the table that they show."""
EXITS = {"agrees": 0, "convicts": 0, "differs": 6, "cannot_tell": 7}


@click.command(cls=Command)
@click.argument("receipt", metavar="RECEIPT", type=PATH)
@click.argument("arguments", metavar="[-- ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--module", type=PATH, required=True, metavar="MOD", help="The module that was run.")
@click.option("--stdin", type=PATH, metavar="FILE", help="The standard input that it had.")
@click.option("--env", type=PAIR, multiple=True, metavar="K=V", help="A variable that it had.")
@click.option(
    "--input",
    "inputs",
    type=PAIR,
    multiple=True,
    metavar="NAME=FILE",
    help="A file that it read as /in/NAME.",
)
@click.option("--batch", type=PATH, metavar="FILE", help="The lines of a batch.")
@click.option("--item-fuel", type=WHOLE, metavar="N", help="Most fuel for a line of the batch.")
@click.option("--results", type=PATH, metavar="FILE", help="What the batch had printed.")
@click.option("--lines", metavar="LIST", help="Run only these lines of it again, like 3,7-9.")
@pass_settings
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
    results: Path | None,
    lines: str | None,
) -> int:
    """Run the order of an execution receipt again, here, and compare every bit.

    Needs neither a node nor the network. Exits with 0 if the receipt agrees,
    with 6 if it differs, and with 7 if nothing can be told: another engine, or a
    run that was ended for its time. Of `xsc compute evidence`, both receipts are
    compared, and 0 means that at least one is false.
    """
    if batch is not None and (arguments or stdin or env or inputs):
        raise ArgumentInvalid("with --batch there is no other input than its lines")
    if (results is None) != (lines is None) or (results is not None and batch is None):
        raise ArgumentInvalid("--results and --lines go together, and with --batch")
    printed = None if results is None else read_file(results, "file of results", RESULTS_BYTES_MAX)
    raw = read_file(receipt, "receipt", PEER_BODY_BYTES_MAX)
    code = read_module(module)
    source = stdin if batch is None else batch
    text = b"" if source is None else read_file(source, "standard input", STDIN_BYTES_MAX)
    files = {name: read_file(Path(path), "input", INPUT_BYTES_MAX) for name, path in inputs}
    from xsc.node.replay import Given, replay_file

    answer: Document = replay_file(
        raw,
        code,
        Given(arguments, dict(env), text, files, item_fuel, printed, _numbers(lines or "")),
    )
    if settings.json:
        show_json(answer)
    else:
        for row in answer.get("providers", [answer]):
            who = f"{short(row['provider'])} " if "provider" in row else ""
            show(who + row["verdict"].replace("_", " "))
            for reason in row["reasons"]:
                say(reason)
    return EXITS[answer["verdict"]]


def _numbers(text: str) -> list[int]:
    """Return the numbers of a list like 3,7-9."""
    found: list[int] = []
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= BATCH_ITEMS_MAX:
            raise ArgumentInvalid(f"'{text}' names no lines", hint="write for example 3,7-9")
        found += range(first, last + 1)
    return found
