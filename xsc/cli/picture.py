"""Pictures: of `xsc top`, what a node says of itself, as panels that fill a terminal; of cubes.

What matters most is first in each panel: what has no room is cut off at its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from xsc.base import units
from xsc.base.text import count_of, cut, printable
from xsc.cli import show

if TYPE_CHECKING:
    from rich.layout import Layout
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from xsc.client.core import Document

CHARS_MAX: Final = 300
"""Of a text: some characters take no place on a terminal."""
_TIERS: Final = ("mutual", "one_way", "open")


class Heard(NamedTuple):
    """What the node said."""

    measures: Document
    alerts: Sequence[Document]
    slots: Sequence[Document]
    """What was cleared, here and elsewhere."""
    lines: Sequence[Document]
    """Of the log, the newest last."""


def picture(heard: Heard, foot: str, *, away: bool = False) -> Layout:
    """Return the picture.

    Args:
        heard: what the node said.
        foot: the last line.
        away: whether the node does not answer any more, which the last line says.
    """
    from rich.layout import Layout

    status = heard.measures["status"]
    page, now, others = Layout(), Layout(size=6), Layout(minimum_size=11)
    page.split_column(
        Layout(_text(_head(status), "bold"), size=1),
        now,
        others,
        Layout(_panel("alerts and log", _log(heard)), minimum_size=5),
        Layout(_text(foot or " ", "bold red" if away else "dim"), size=1),
    )
    now.split_row(
        Layout(_panel("storage", _pairs(_storage(heard.measures)))),
        Layout(_panel("jobs and traffic", _pairs(_jobs(heard.measures)))),
    )
    peers = status["peers"]
    others.split_row(
        Layout(_panel(f"peers: {peers['healthy']} of {peers['known']} answer", _peers(heard))),
        Layout(_panel("market and tiers", _market(heard))),
    )
    return page


def cubes(levels: Sequence[Document]) -> list[str]:
    """Return the lines of cubes beside each other, each of three faces of three by three cells.

    A cell is full, empty, or the one in which something differs.
    """
    names = [f"{27 ** (row['level'] - 1)} a cell" for row in levels]
    lines = ["  ".join(f"{name:11}" for name in names)]
    for row in range(3):
        drawn = []
        for level in levels:
            at = [[9 * face + 3 * row + column for column in range(3)] for face in range(3)]
            drawn.append(" ".join("".join(_cell(level, cell) for cell in face) for face in at))
        lines.append("  ".join(drawn))
    return [line.rstrip() for line in lines]


def _cell(level: Document, cell: int) -> str:
    if cell == level["differs"]:
        return "×"
    return "■" if cell < level["full"] else "□"


def _text(said: object, style: str = "") -> Text:
    """Return one line as it is, without what steers a terminal or is markup."""
    from rich.text import Text

    text = cut(printable(str(said)), CHARS_MAX)
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _panel(title: str, content: Table | Text) -> Panel:
    from rich.panel import Panel

    return Panel(content, title=_text(title, "bold"), title_align="left")


def _table(rows: Sequence[Sequence[Text]], numbers: int = 0) -> Table:
    """Return a table, its first row in bold if columns of numbers are at its end."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    words = len(rows[0]) - numbers
    wide = 0 if numbers else words - 1
    for index in range(len(rows[0])):
        table.add_column(
            justify="left" if index < words else "right",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if index == wide else None,
        )
    for index, row in enumerate(rows):
        table.add_row(*row, style="bold" if numbers and index == 0 else "")
    return table


def _pairs(pairs: Sequence[tuple[str, str]]) -> Table:
    return _table([(_text(name), _text(value)) for name, value in pairs])


def _hint(text: str) -> Text:
    """Return what an empty panel says: which command fills it."""
    from rich.text import Text

    return Text(text, "dim")


def _head(status: Document) -> str:
    # Seconds would change the line each time.
    up_for = units.format_duration(max(1, status["uptime_s"] // 60) * 60_000)
    alerts = f", {count_of(status['alerts'], 'alert')}" if status["alerts"] else ""
    return (
        f"{cut(status['name'], 24)} ({show.short(status['id'])}), {status['state']} for {up_for}, "
        f"XSC {status['version']}{alerts}"
    )


def _storage(measures: Document) -> list[tuple[str, str]]:
    part = measures["status"]["storage"]
    size = units.format_size
    share = units.format_share(part["used_bytes"] * 1_000_000 // max(1, part["capacity_bytes"]))
    margins = ", ".join(f"{row['objects']} at {row['margin']}" for row in measures["margins"])
    leases = Counter[str]()
    for row in measures["leases"]:
        leases[row["role"]] += row["leases"]
    return [
        ("held", f"{size(part['used_bytes'])} of {size(part['capacity_bytes'])}, {share}"),
        ("disk", f"{size(part['disk_free_bytes'])} left"),
        ("margins", margins or "none: xsc store put FILE"),
        ("leases", f"{leases['customer']} taken, {leases['provider']} given"),
    ]


def _jobs(measures: Document) -> list[tuple[str, str]]:
    part, traffic = measures["status"]["compute"], measures["status"]["traffic"]
    done = {
        row["event"]: f"{count_of(row['lines'], 'job')}, {row['fuel']:,} fuel"
        for row in measures["events"]
    }
    workers = count_of(part["workers"], "worker")
    return [
        ("now", f"{part['running']} running, {part['queued']} queued, {workers}"),
        ("ran", done.get("compute.ran", "no job yet")),
        ("asked", done.get("compute.invoked", "none: xsc compute run MODULE")),
        ("net", f"{_size(traffic, 'sent')} sent, {_size(traffic, 'received')} got"),
    ]


def _size(part: Document, name: str) -> str:
    return units.format_size(part[f"{name}_bytes"])


def _state(row: Document) -> str:
    """Return how a peer is: of one that answers, what it lost, or how badly it is judged."""
    lost = row["up"] and row["outcome"] in {"missing", "bad_proof"}
    if row["up"] and not lost and row["grade"] in {"watch", "suspended", "barred"}:
        return str(row["grade"])
    return str(row["outcome"]).replace("_", " ") if lost else str(row["state"])


def _peers(heard: Heard) -> Table | Text:
    """Return the peers, first those that do not answer or have lost something."""
    peers = [(_state(row), row) for row in heard.measures["peers"]]
    if not peers:
        return _hint("none: xsc peer invite, and xsc peer add at the other node")
    peers.sort(key=lambda each: (each[0] == "up", each[1]["name"]))
    cells = [
        (
            _text(show.named(row, "peer"), "" if state == "up" else "red"),
            _text(state, "" if state == "up" else "red"),
            _text(units.format_share(row["availability_ppm"])),
            _text(units.format_credits(row["balance_micro"])),
        )
        for state, row in peers
    ]
    heads = tuple(map(_text, ("name", "state", "there", "balance")))
    return _table([heads, *cells], numbers=2)


def _market(heard: Heard) -> Table | Text:
    """Return what is offered and needed, what each tier has of it, and at which prices."""
    kinds = heard.measures["kinds"]
    if not any(row["offered"] or row["needed"] for row in kinds):
        return _hint("nothing offered or needed: xsc market offer, xsc market need")
    given = Counter[tuple[str, str]]()
    for slot in heard.slots:
        if slot["node"] == heard.measures["status"]["id"]:
            for tier in slot["tiers"]:
                given[tier["tier"], slot["kind"]] += tier["given"]
    paid = {
        row["kind"]: row["lease_price_micro"]
        for row in heard.measures["leases"]
        if row["role"] == "customer"
    }
    names = [row["kind"] for row in kinds]
    levels = {
        "offered": [row["offered"] for row in kinds],
        **{f" {tier.replace('_', ' ')}": [given[tier, kind] for kind in names] for tier in _TIERS},
        "needed": [row["needed"] for row in kinds],
        " received": [row["received"] for row in kinds],
    }
    prices = {
        "asked": [row["reserve_micro"] for row in kinds],
        "paid": [paid.get(kind, 0) for kind in names],
    }
    rows = [["", *names]]
    for name, found in levels.items():
        rows.append([name, *map(units.format_level, names, found)])
    for name, found in prices.items():
        rows.append([name, *map(units.format_credits, found)])
    return _table([[_text(cell) for cell in row] for row in rows], numbers=len(names))


def _log(heard: Heard) -> Table | Text:
    """Return the alerts, and below them the lines of the log, the newest first."""
    rows = [
        (_clock(row["since_ms"]), _text(row["says"], "bold red" if row["over_ms"] is None else ""))
        for row in heard.alerts
    ]
    rows += [
        (_clock(row["at_ms"]), _text(row["says"], "" if row["level"] == "info" else "yellow"))
        for row in reversed(heard.lines)
    ]
    return _table(rows) if rows else _hint("no line yet: xsc store put FILE makes one")


def _clock(at_ms: int) -> Text:
    """Return the time of a day, in UTC."""
    return _text(units.format_time(at_ms)[11:19])
