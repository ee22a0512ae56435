"""How values of the API are written in a page: filters of the templates.

Texts come from peers: they are escaped, shown without control characters, and cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from xsc.base import ids, units
from xsc.base.text import count_of, cut, printable
from xsc.dashboard.source import shown, total

PART_MIN: Final = 3
CHARS_MAX: Final = 200
"""Of a text: more are cut off."""


def _finished(value: object) -> object:
    """Return what a template prints: of null a dash, of a long text its beginning."""
    if value is None:
        return "–"
    if isinstance(value, str) and not isinstance(value, Markup):
        return cut(printable(value[: CHARS_MAX + 1]), CHARS_MAX)
    return value


def size(size_bytes: int | None) -> Markup | None:
    """Return bytes in their unit."""
    return None if size_bytes is None else shown(size_bytes, units.format_size(size_bytes))


def in_credits(micro: int | None) -> Markup | None:
    """Return micro-credits as credits."""
    return None if micro is None else shown(micro, units.format_credits(micro))


def owed(balance_micro: int) -> Markup:
    """Return who owes whom: of what is positive, the peer."""
    if balance_micro == 0:
        return Markup("even, ") + shown(balance_micro, units.format_credits(0))
    words = Markup("owes you ") if balance_micro > 0 else Markup("you owe ")
    return words + shown(balance_micro, units.format_credits(abs(balance_micro)))


def share(ppm: int | None) -> Markup | None:
    """Return parts per million in per cent."""
    return None if ppm is None else shown(ppm, units.format_share(ppm))


def duration(duration_ms: int | None) -> Markup | None:
    """Return milliseconds in their unit."""
    return None if duration_ms is None else shown(duration_ms, units.format_duration(duration_ms))


def seconds(duration_s: int | None) -> Markup | None:
    """Return seconds in their unit."""
    text = units.format_duration((duration_s or 0) * 1000)
    return None if duration_s is None else shown(duration_s, text)


def moment(at_ms: int | None) -> Markup | None:
    """Return a moment in UTC."""
    return None if at_ms is None else shown(at_ms, units.format_time(at_ms))


def level(quantity: int | None, kind: str) -> Markup | None:
    """Return a quantity of storage or compute in its unit."""
    return None if quantity is None else shown(quantity, units.format_level(kind, quantity))


def grouped(number: int | None) -> Markup | None:
    """Return a large number with its thousands apart."""
    return None if number is None else shown(number, f"{number:,}")


def node(name: str | None, node_id: str | None = None) -> Markup | None:
    """Return a node by its name, with its id for who points at it; without a name by its id."""
    if name is None and node_id is None:
        return None
    text = cut(printable(name or str(node_id)[: ids.SHORT_CHARS]), CHARS_MAX)
    return Markup('<span class="node" title="{}">{}</span>').format(node_id or text, text)


def whole(text: str) -> Markup:
    """Return a text that is not cut."""
    return escape(printable(text))


def urlencode(text: str) -> Markup:
    """Return a text for a link, encoded and not cut."""
    return Markup(quote(text))  # noqa: S704 (it has no character that HTML reads)


def part_of(part: int, whole: int, width: int) -> int:
    """Return the length of a bar, as long as `width` where the part is the whole.

    What is more than nothing is seen.
    """
    return 0 if min(part, whole) <= 0 else min(width, max(PART_MIN, part * width // whole))


def environment() -> Environment:
    """Return what renders the templates of this package."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finished,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = (size, owed, share, duration, seconds, moment, level, grouped, total)
    made.filters |= {each.__name__: each for each in (*numbers, node, whole, urlencode)}
    made.filters |= {"credits": in_credits, "count": count_of}
    made.globals["part_of"] = part_of
    return made
