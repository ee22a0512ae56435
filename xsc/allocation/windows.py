"""Resolves recurrences to explicit windows: half-open intervals of UTC.

An owner writes `Mon-Fri 20:00-08:00 Europe/Berlin` and publishes one window after the other, so
that no reader needs a time zone database. Zones are looked up by the caller. docs/design/slots.md,
W1 to W4.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, TypeAlias

from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import SLOT_HORIZON_MS
from xsc.terms.slot import Window

MINUTE_MS: Final = 60_000
DAY_MS: Final = 24 * 60 * MINUTE_MS
ENDLESS_MS: Final = 2**63 - 1
"""The end of a slot that is valid until it is withdrawn."""
Zones: TypeAlias = Callable[[str], tzinfo]
"""Returns the time zone of a name."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TEXT = re.compile(r"([A-Za-z,-]+) +(\d\d?):(\d\d)-(\d\d?):(\d\d)(?: +(\S+))?")
_HINT: Final = 'write for example "daily 22:00-06:00 Europe/Berlin" or "Mon-Fri 09:00-17:00"'


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A time of day on some days of the week, in the local time of a zone."""

    days: frozenset[int]
    """Days of the week on which a window begins; Monday is 0."""
    start_minute: int
    end_minute: int
    """Counted from the same midnight: above 24 h where the window ends the day after."""
    zone: str


def _days(text: str) -> frozenset[int]:
    if text.lower() == "daily":
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            raise ArgumentInvalid(f"'{part}' is no day of the week", hint=_HINT)
        begin, end = _DAYS.index(first), _DAYS.index(last if dash else first)
        found.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(found)


def parse_recurrence(text: str) -> Recurrence:
    """Parse "daily 22:00-06:00 Europe/Berlin" or "Mon,Wed 09:00-17:00"; the default zone is UTC.

    Raises:
        ArgumentInvalid: the days or times are missing or wrong, or start and end are equal.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise ArgumentInvalid(f"'{text}' is not a recurrence", hint=_HINT)
    start, end = (int(match[hour]) * 60 + int(match[hour + 1]) for hour in (2, 4))
    if int(match[3]) > 59 or int(match[5]) > 59 or start >= 24 * 60 or end > 24 * 60:
        raise ArgumentInvalid(f"'{text}' has a time of day that does not exist", hint=_HINT)
    if start == end:
        raise ArgumentInvalid(
            f"'{text}' has windows of no length", hint="00:00-24:00 is the whole day"
        )
    end_minute = end if end > start else end + 24 * 60
    return Recurrence(_days(match[1]), start, end_minute, match[6] or "UTC")


def _offset_ms(moment: datetime) -> int:
    """Return how far the local time of a moment is ahead of UTC."""
    offset = moment.utcoffset()
    assert offset is not None, "a moment has a zone"
    return offset // timedelta(milliseconds=1)


def moment_at(wall_ms: int, zone: tzinfo) -> int:
    """Return the first moment at which the local clock shows `wall_ms` or later.

    A local time that is skipped in spring becomes the moment of the change. Of a local time that
    occurs twice in autumn, the first counts. The result never falls while `wall_ms` rises, so
    windows that are disjoint in local time are disjoint in UTC.
    """
    wall = (_EPOCH + timedelta(milliseconds=wall_ms)).replace(tzinfo=zone)
    before, after = (wall_ms - _offset_ms(wall.replace(fold=fold)) for fold in (0, 1))
    if before <= after:
        return before

    def shown_ms(moment_ms: int) -> int:
        moment = _EPOCH + timedelta(milliseconds=moment_ms)
        return moment_ms + _offset_ms(moment.astimezone(zone))

    # No clock shows it: with the new offset it would be before the change, with the old one after.
    return after + bisect_left(range(after, before), wall_ms, key=shown_ms)


def occurrences(text: str, zones: Zones, from_ms: int, until_ms: int) -> Iterator[Window]:
    """Yield the windows of a recurrence between two moments, cut at these.

    Raises:
        ArgumentInvalid: it is no recurrence, or its zone is not known.
    """
    recurrence = parse_recurrence(text)
    zone = zones(recurrence.zone)
    for day in range(from_ms // DAY_MS - 2, until_ms // DAY_MS + 2):
        if (_EPOCH.weekday() + day) % 7 not in recurrence.days:
            continue
        start, end = (
            moment_at(day * DAY_MS + minute * MINUTE_MS, zone)
            for minute in (recurrence.start_minute, recurrence.end_minute)
        )
        start, end = max(start, from_ms), min(end, until_ms)
        if start < end:
            yield start, end


def next_window(text: str, zones: Zones, from_ms: int, until_ms: int, now_ms: int) -> Window | None:
    """Return the first window of a recurrence between two moments that is not over.

    It is cut at these, at now and at the horizon. None: there is none.

    Raises:
        ArgumentInvalid: as `occurrences`.
    """
    begin, end = max(from_ms, now_ms), min(until_ms, now_ms + SLOT_HORIZON_MS)
    return next(occurrences(text, zones, begin, end), None)


def single(from_ms: int, until_ms: int, now_ms: int) -> Window:
    """Return the window of a slot without a recurrence. Without an end it ends at the horizon.

    Raises:
        ArgumentInvalid: the window is over, or begins or ends beyond the horizon.
    """
    horizon = now_ms + SLOT_HORIZON_MS
    until_ms = horizon if until_ms == ENDLESS_MS else until_ms
    if from_ms >= horizon or until_ms > horizon:
        raise ArgumentInvalid(
            f"it begins or ends more than {SLOT_HORIZON_MS // DAY_MS} days from now",
            hint="end it earlier, for example --to +30d; declare the rest when it is closer",
        )
    if from_ms < until_ms <= now_ms:
        raise ArgumentInvalid("the window is over", hint="end it after now, for example --to +8h")
    return from_ms, until_ms
