"""The lines of a batch: one set of arguments each, parted by spaces."""

from __future__ import annotations

from xsc.base.errors import ArgumentInvalid, TooLarge
from xsc.base.limits import BATCH_ITEMS_MAX


def read_lines(raw: bytes) -> list[list[str]]:
    """Return the arguments of each line; an empty line is a call without arguments.

    Raises:
        ArgumentInvalid: not text, or not a line.
        TooLarge: too many lines.
    """
    try:
        lines = raw.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise ArgumentInvalid("the lines of a batch hold something else than numbers") from None
    if not lines[-1]:
        lines.pop()
    if len(lines) > BATCH_ITEMS_MAX:
        raise TooLarge(
            f"a batch has at most {BATCH_ITEMS_MAX} lines, this one {len(lines)}",
            hint="give the others to a second batch",
        )
    return [line.split() for line in lines]
