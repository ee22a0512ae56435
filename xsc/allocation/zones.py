"""Looks up the offsets of a time zone from UTC (docs/design/slots.md, W1)."""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from xsc.allocation.windows import Offsets
from xsc.base.errors import ArgumentInvalid

_STEP_MS = 3_600_000
"""No zone changes its offset twice within this time."""
_SECOND_MS = 1_000


def offsets_of(name: str, from_ms: int, until_ms: int) -> Offsets:
    """Return the offsets of a zone between two moments.

    Raises:
        ArgumentInvalid: the zone is unknown.
    """
    try:
        zone = ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # a folder, a path, and a name without a file
        raise ArgumentInvalid(
            f"'{name}' is no time zone",
            hint="write for example Europe/Berlin, America/New_York or UTC",
        ) from None

    def offset_ms(moment_ms: int) -> int:
        moment = datetime.fromtimestamp(moment_ms // _SECOND_MS, UTC).astimezone(zone)
        offset = moment.utcoffset()
        assert offset is not None
        return offset // timedelta(milliseconds=1)

    found = [(from_ms, offset_ms(from_ms))]
    for step in range(from_ms, until_ms, _STEP_MS):
        before, after = found[-1][1], offset_ms(step + _STEP_MS)
        if after != before:
            moments = range(step, step + _STEP_MS)
            place = bisect_left(moments, True, key=lambda m, old=before: offset_ms(m) != old)  # type: ignore[misc]
            found.append((step + place, after))
    return found
