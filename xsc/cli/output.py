"""What is printed, and how: results on standard output, everything else on standard error.

Progress shows on terminals only. Texts that come from peers or objects are shown
without control characters, which would steer the terminal.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from xsc.base.errors import XscError
from xsc.base.text import printable
from xsc.base.units import format_level, format_time

if TYPE_CHECKING:
    from xsc.client.core import Document, Progress

GAP = "  "
"""Between two columns of a table, and before those that stand below others."""


def show_json(document: object) -> None:
    """Print one JSON document on one line."""
    click.echo(_line_of(document))


def _line_of(document: object) -> str:
    """Return JSON that is UTF-8, also with names of files that are not: these are escaped."""
    import json

    text = json.dumps(document, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(document)
    return text


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
        from xsc.api import serial
        from xsc.api.problems import problem

        document = {
            **serial.document(problem(error)),
            "code": code,
            "title": code.replace("_", " "),
        }
        click.echo(_line_of(document), err=True)
        return
    say(f"error: {error.message} ({code})")
    if error.hint:
        say(f"hint: {error.hint}")
    elif error.retry_after_s:
        say(f"hint: try again in {error.retry_after_s} s")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Print a table; `<` before a column's name puts its numbers to the right.

    On a terminal, columns that do not fit beside the others stand below them.

    Args:
        columns: the heads.
        rows: the cells.
        empty: said on standard error where there are no rows.
    """
    if not rows:
        say(empty)
        return
    on_terminal = sys.stdout.isatty()
    width = None
    if on_terminal:
        import shutil

        width = shutil.get_terminal_size().columns
    cells = [[printable(cell) for cell in row] for row in rows]
    for number, lines in enumerate(table_lines(columns, cells, width)):
        for line in lines:
            click.echo(click.style(line, bold=True) if on_terminal and number == 0 else line)


Cell: TypeAlias = "str | tuple[str, Callable[[Any], str]] | Callable[[Document], str]"
"""The key of a field, that key with what makes a text of it, or what makes a text of the row."""
Columns: TypeAlias = Mapping[str, Cell]
"""The cells of a row by the heads of their columns, as `show_table` takes these."""


def show_rows(rows: Iterable[Document], columns: Columns, empty: str) -> None:
    """Print the rows of an answer as a table.

    Args:
        rows: the rows.
        columns: what of them is shown.
        empty: said on standard error where there are no rows.
    """
    cells = [[_text_of(row, cell) for cell in columns.values()] for row in rows]
    show_table(list(columns), cells, empty)


def show_fields(answer: Document, fields: Columns) -> None:
    """Print fields of an answer, one a line, by their names for people."""
    show_pairs([(name, _text_of(answer, cell)) for name, cell in fields.items()])


def _text_of(row: Document, cell: Cell) -> str:
    if callable(cell):
        return cell(row)
    key, form = (cell, str) if isinstance(cell, str) else cell
    return form(row[key])


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> list[list[str]]:
    """Return the lines of each row of a table, that of its heads first; no cell is ever broken.

    A row is one line where all of its columns fit. Else its last columns stand on further
    lines, indented, the same ones in every row; a cell that is wider than the terminal has a
    line of its own, so that it can be marked and copied as a whole.

    Args:
        columns: the heads, with `<` before those whose cells stand to the right.
        rows: the cells.
        width: of the terminal; None where lines may have any length.
    """
    table = [[column.removeprefix("<") for column in columns], *rows]
    widths = [max(map(width_of, column)) for column in zip(*table, strict=True)]
    groups: list[list[int]] = []
    used = 0
    for index, needed in enumerate(widths):
        if groups and (width is None or used + len(GAP) + needed <= width):
            groups[-1].append(index)
            used += len(GAP) + needed
        else:
            used = needed + (len(GAP) if groups else 0)
            groups.append([index])

    def padded(row: Sequence[str], index: int) -> str:
        blanks = " " * (widths[index] - width_of(row[index]))
        return blanks + row[index] if columns[index].startswith("<") else row[index] + blanks

    return [
        [
            (GAP if number else "") + GAP.join(padded(row, index) for index in group).rstrip()
            for number, group in enumerate(groups)
        ]
        for row in table
    ]


Branch: TypeAlias = "tuple[str, Sequence[Branch]]"
"""A line, and the branches under it."""


def show_tree(line: str, branches: Sequence[Branch]) -> None:
    """Print a line with what is under it, each on a line of its own that is never broken."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(printable(line)))
    left: list[tuple[Tree, Sequence[Branch]]] = [(tree, branches)]
    while left:
        parent, under = left.pop()
        for text, deeper in under:
            left.append((parent.add(Text(printable(text))), deeper))
    Console(highlight=False).print(tree, soft_wrap=True)


def width_of(text: str) -> int:
    """Return how many places a text takes on a terminal."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


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
        yield lambda _: None
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


def by_name(key: str) -> Callable[[Document], str]:
    """Return the cell of a peer that a row is about: its name, else its short id."""
    return lambda row: named(row, row[key])


def level_of(key: str) -> Callable[[Document], str]:
    """Return the cell of a quantity of a row's kind, which may be unknown."""
    return lambda row: "?" if row[key] is None else format_level(row["kind"], row[key])


def or_dash(text: object) -> str:
    """Return a text that may be missing."""
    return "-" if text is None else str(text) or "-"


def yes_or_no(holds: object) -> str:
    """Return what a condition is for people."""
    return "yes" if holds else "no"


def moment(at_ms: int | None) -> str:
    """Return a time for people, in UTC: a time that is typed without a zone is read so, too."""
    if at_ms is None:
        return "never"
    return format_time(at_ms)
