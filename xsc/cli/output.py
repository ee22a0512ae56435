"""What is printed, and how: results on standard output, everything else on standard error.

A table is drawn by rich on a terminal and is plain columns elsewhere; progress
shows on terminals only. Texts that come from peers or objects are shown
without control characters, which would steer the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import click

from xsc.base.errors import XscError
from xsc.base.text import printable
from xsc.client.core import Document, Progress, ignore_progress

INTERRUPTED = "interrupted"


def show_json(document: object) -> None:
    """Print one JSON document on one line."""
    click.echo(json.dumps(document, ensure_ascii=False))


def show(line: str = "") -> None:
    """Print a line of the result."""
    click.echo(printable(line))


def say(line: str) -> None:
    """Print a line beside the result."""
    click.echo(printable(line), err=True)


def warn(line: str) -> None:
    """Print a warning."""
    say(f"warning: {line}")


def show_error(error: XscError, *, as_json: bool) -> None:
    """Print an error on standard error: a sentence and a hint, or a problem document."""
    code = "bug" if type(error) is XscError else error.code
    if as_json:
        from xsc.api.problems import problem

        document = {**problem(error), "code": code, "title": code.replace("_", " ")}
        click.echo(json.dumps(document, ensure_ascii=False), err=True)
        return
    say(f"error: {error.message} ({code})")
    if error.hint:
        say(f"hint: {error.hint}")
    elif error.retry_after_s:
        say(f"hint: try again in {error.retry_after_s} s")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Print a table; `<` before a column's name puts its numbers to the right.

    Args:
        columns: the heads.
        rows: the cells.
        empty: said on standard error where there are no rows.
    """
    if not rows:
        say(empty)
        return
    heads = [column.removeprefix("<") for column in columns]
    right = [column.startswith("<") for column in columns]
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(heads, right, cells)
        return
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for row in [heads, *cells]:
        padded = [
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, right, strict=True)
        ]
        click.echo("  ".join(padded).rstrip())


def _draw(heads: list[str], right: list[bool], cells: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head, at_right in zip(heads, right, strict=True):
        table.add_column(head, justify="right" if at_right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(escape(cell) for cell in row))
    Console(highlight=False).print(table)


def show_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one a line."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        show(f"{name.ljust(width)}  {value}")


@contextmanager
def progress_bar(what: str, size_bytes: int | None) -> Iterator[Progress]:
    """Give a callback for bytes that were moved; it draws a bar with rate and time left.

    Args:
        what: the text before the bar.
        size_bytes: how many there are in all, where that is known.
    """
    if not sys.stderr.isatty():
        yield ignore_progress
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(what), total=size_bytes)
        yield lambda moved: bar.advance(task, moved)


def short(node: str | None) -> str:
    """Return the form of a node id for people; of a node that is not known, a dash."""
    return "-" if node is None else node[:10]


def named(row: Document, node: str) -> str:
    """Return how a peer is called: by its name, else by its short id."""
    return str(row.get("name") or short(node))


def moment(at_ms: int | None) -> str:
    """Return a time for people, in the local time zone."""
    if at_ms is None:
        return "never"
    local = datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S")
