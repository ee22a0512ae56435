"""What is printed, and how: results on standard output, everything else on standard error.

With `--json` a result is one document, and what is made for people of it is not printed.
Progress is drawn on terminals, and said once a minute elsewhere. Texts that come from peers or
objects are shown without control characters, which would steer the terminal.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from xsc.base import errors, units
from xsc.base.text import printable

if TYPE_CHECKING:
    from xsc.base.progress import Progress
    from xsc.client.core import Document

GAP = "  "
"""Between two columns of a table, and before those that stand below others."""
LINE_S = 60.0
"""Between two lines that say how far something is."""


def for_people() -> bool:
    """Say whether results are for people: with --json they are one document."""
    ctx = click.get_current_context(silent=True)
    return ctx is None or not ctx.obj.json


def json(document: object) -> None:
    """Print one JSON document on one line."""
    click.echo(_json_of(document))


def _json_of(document: object) -> str:
    """Return JSON that is UTF-8, also with names of files that are not: these are escaped."""
    from json import dumps

    text = dumps(document, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return dumps(document)
    return text


def line(text: str = "") -> None:
    """Print a line of the result for people."""
    if for_people():
        click.echo(printable(text))


def note(text: str) -> None:
    """Print a line beside the result for people."""
    if for_people():
        say(text)


def detail(text: str) -> None:
    """Print a line beside the result with `--verbose`."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and ctx.obj.verbose:
        say(text)


def say(text: str) -> None:
    """Print a line beside the result."""
    click.echo(printable(text), err=True)


def warn(text: str) -> None:
    """Print a warning."""
    say(f"warning: {text}")


def error(fault: errors.XscError, *, as_json: bool) -> None:
    """Print an error on standard error: a sentence and a hint, or a problem document."""
    code = "bug" if type(fault) is errors.XscError else fault.code
    if as_json:
        from xsc.api import serial
        from xsc.api.problems import problem

        named_so = {"code": code, "title": code.replace("_", " ")}
        click.echo(_json_of(serial.document(problem(fault)) | named_so), err=True)
        return
    say(f"error: {fault.message} ({code})")
    if fault.hint:
        say(f"hint: {fault.hint}")
    elif fault.retry_after_s:
        say(f"hint: try again in {fault.retry_after_s} s")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Print a table; `<` before a column's name puts its numbers to the right.

    On a terminal, columns that do not fit beside the others stand below them.

    Args:
        columns: the heads.
        rows: the cells.
        empty: said on standard error where there are no rows.
    """
    if not rows:
        note(empty)
    if not rows or not for_people():
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


Cell: TypeAlias = "tuple[str, Callable[[Any], str]] | Callable[[Document], str]"
"""What makes a text of a row, or the key of a field and what makes a text of that."""


def rows(found: Iterable[Document], columns: str, empty: str = "", **cells: Cell) -> None:
    """Print the rows of an answer as a table.

    Args:
        found: the rows.
        columns: each as HEAD=FIELD, or as FIELD where that is the head, too; the last word of a
            field, its unit, may be left out. Of heads `_` is a blank, or stands behind one that is
            there twice; `<` before one puts its numbers to the right.
        empty: said on standard error where there are no rows.
        cells: what stands under a head that is more than the field.
    """
    if for_people():
        heads = [column.partition("=")[0] for column in columns.split()]
        names = columns.replace("<", "").split()
        texts = [[_text_of(row, name, cells) for name in names] for row in found]
        table([head.replace("_", " ").rstrip() for head in heads], texts, empty)


def fields(answer: Document, columns: str, **cells: Cell) -> None:
    """Print fields of an answer, one a line, by their names for people (`rows`)."""
    if for_people():
        names = [(column.partition("=")[0], column) for column in columns.split()]
        pairs([(head.replace("_", " "), _text_of(answer, it, cells)) for head, it in names])


def _text_of(row: Document, column: str, cells: Mapping[str, Cell]) -> str:
    head, _, name = column.partition("=")
    cell = cells.get(head)
    if callable(cell):
        return cell(row)
    if cell is not None:
        key, form = cell
        return form(row[key])
    name = name or head
    key = next((whole for unit in _FORMS if (whole := f"{name}_{unit}") in row), name)
    value = row[key]
    if isinstance(value, bool):
        return yes_or_no(value)
    if key in {"node", "peer"}:
        return named(row, key)
    if key in _LEVELS and "kind" in row:
        return "?" if value is None else units.format_level(row["kind"], value)
    return _FORMS.get(key.rpartition("_")[2], or_dash)(value)


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


def branches(under: Sequence[Document], told: Callable[[Document], str], before: str = "") -> None:
    """Print what is under a line as a tree, each step with its inputs under it.

    Args:
        under: the steps.
        told: returns the line of one.
        before: stands before each line.
    """
    for number, step in enumerate(under, 1):
        fork, beside = ("└── ", "    ") if number == len(under) else ("├── ", "│   ")
        line(before + fork + told(step))
        branches(step["inputs"], told, before + beside)


def width_of(text: str) -> int:
    """Return how many places a text takes on a terminal."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def pairs(named_values: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one a line."""
    width = max(len(name) for name, _ in named_values)
    for name, value in named_values:
        line(f"{name.ljust(width)}  {value}")


Form: TypeAlias = Callable[[float], str]
"""Returns an amount for people."""


def in_bytes(amount: float) -> str:
    """Return bytes for people."""
    return units.format_size(int(amount))


def in_number(amount: float) -> str:
    """Return a number, with one decimal where it has any."""
    return f"{amount:.1f}".removesuffix(".0")


def how_far(
    moved: float, total: float | None, rate: float | None, waited_s: float, form: Form
) -> str:
    """Return how far something is.

    Args:
        moved: what is done of it.
        total: all of it, where that is known.
        rate: what is done a second, where that is known.
        waited_s: seconds since it began.
        form: of amounts.
    """
    if not moved and not total:
        return f"{units.format_duration(int(waited_s) * 1000)} so far"
    said = form(moved) if total is None else f"{form(moved)} of {form(total)}"
    if rate:
        said += f", {form(rate)}/s"
    if rate and total:
        left_s = max(1, int((total - moved) / rate))
        said += f", {units.format_duration(1000 * left_s)} left"
    return said


class _Lines(Thread):
    """Says once a minute how far something is, where nothing can be drawn."""

    def __init__(self, what: str, total: int | None, form: Form) -> None:
        super().__init__(daemon=True)
        self._what = what
        self._total = total
        self._form = form
        self._lock = Lock()
        self._moved = 0
        self.over = Event()

    def add(self, moved: int) -> None:
        """Count what was moved."""
        with self._lock:
            self._moved += moved

    def run(self) -> None:
        """Say it until it is over."""
        before, waited_s = 0, 0.0
        while not self.over.wait(LINE_S):
            waited_s += LINE_S
            moved, rate = self._moved, (self._moved - before) / LINE_S
            say(f"{self._what}: {how_far(moved, self._total, rate, waited_s, self._form)}")
            before = moved


@contextmanager
def progress(what: str, total: int | None, form: Form = in_bytes) -> Iterator[Progress]:
    """Give a callback for what was done; show how far it is, with rate and time left.

    A terminal gets a bar, else there is a line each minute.

    Args:
        what: the text before it.
        total: how much there is in all, where that is known.
        form: of amounts.
    """
    if not sys.stderr.isatty():
        lines = _Lines(what, total, form)
        lines.start()
        try:
            yield lines.add
        finally:
            lines.over.set()
            lines.join()
        return
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class HowFar(ProgressColumn):
        def render(self, task: Task) -> Text:
            waited_s = task.elapsed or 0
            return Text(how_far(task.completed, task.total, task.speed, waited_s, form))

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), HowFar())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(what), total=total)
        yield lambda moved: bar.advance(task, moved)


def short(node: str | None) -> str:
    """Return the form of a node id for people; of a node that is not known, a dash."""
    return "-" if node is None else node[:10]


def named(row: Document, key: str) -> str:
    """Return how the node of a row is called: by its name, else by its short id."""
    return str(row.get("name") or short(row[key]))


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
    return units.format_time(at_ms)


_LEVELS = {"available", "capacity", "drawn", "granted", "quantity", "used"}
"""Fields of what is traded: how much it is depends on the kind of the row, and may be unknown."""
_FORMS: Mapping[str, Callable[[Any], str]] = {
    **dict.fromkeys(("clearing", "customer", "evidence", "need", "provider", "slot"), short),
    "bytes": units.format_size,
    "micro": units.format_credits,
    "price": units.format_credits,
    "ms": moment,
    "ppm": units.format_share,
}
"""What makes a text of a field, by the last word of its name: a unit, or what has an id."""
