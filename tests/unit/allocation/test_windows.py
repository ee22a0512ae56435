"""Recurrences become windows of UTC: both changes of the clock, the horizon, and bad input."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.allocation.commitments import zone_of
from xsc.allocation.windows import (
    DAY_MS,
    ENDLESS_MS,
    MINUTE_MS,
    moment_at,
    next_window,
    occurrences,
    parse_recurrence,
    single,
)
from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import SLOT_HORIZON_MS

HOUR = 60 * MINUTE_MS


def at(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def shown(windows):
    return [
        " - ".join(datetime.fromtimestamp(m // 1000, UTC).strftime("%m-%d %H:%M") for m in window)
        for window in windows
    ]


def resolved(text, first, last):
    return [*occurrences(text, zone_of, at(first), at(last))]


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("daily 09:00-17:30", ["11-23 09:00 - 11-23 17:30", "11-24 09:00 - 11-24 17:30"]),
        ("daily 9:00-17:30 UTC", ["11-23 09:00 - 11-23 17:30", "11-24 09:00 - 11-24 17:30"]),
        ("Tue 20:00-08:00 Europe/Berlin", ["11-24 19:00 - 11-25 00:00"]),
        ("mon,TUE 00:00-24:00", ["11-23 00:00 - 11-24 00:00", "11-24 00:00 - 11-25 00:00"]),
        ("Sun-Mon 23:00-01:00", ["11-23 00:00 - 11-23 01:00", "11-23 23:00 - 11-24 01:00"]),
        ("Wed 00:00-24:00 Asia/Kathmandu", ["11-24 18:15 - 11-25 00:00"]),
        ("Wed-Sat 10:00-11:00", []),
    ],
)
def test_a_recurrence_is_resolved_to_windows_of_utc(text, windows):
    """The 23rd of November 2026 is a Monday; what begins before or ends after is cut."""
    assert shown(resolved(text, "2026-11-23", "2026-11-25")) == windows


def test_a_day_in_spring_has_23_hours_and_one_in_autumn_25():
    spring = resolved("Sun 00:00-24:00 Europe/Berlin", "2027-03-26", "2027-03-30")
    autumn = resolved("Sun 00:00-24:00 Europe/Berlin", "2027-10-29", "2027-11-02")
    assert [end - start for start, end in spring] == [23 * HOUR]
    assert [end - start for start, end in autumn] == [25 * HOUR]
    assert shown(spring) == ["03-27 23:00 - 03-28 22:00"]


@pytest.mark.parametrize(
    ("times", "window"),
    [
        ("01:30-03:30", ["03-28 00:30 - 03-28 01:30"]),
        ("02:30-04:00", ["03-28 01:00 - 03-28 02:00"]),
        ("01:00-02:30", ["03-28 00:00 - 03-28 01:00"]),
        ("02:10-02:50", []),
    ],
)
def test_a_window_over_the_hour_that_is_skipped_in_spring(times, window):
    """In Berlin the clock goes from 02:00 to 03:00, at 01:00 UTC."""
    assert shown(resolved(f"Sun {times} Europe/Berlin", "2027-03-26", "2027-03-30")) == window


@pytest.mark.parametrize(
    ("times", "window"),
    [
        ("01:30-02:30", ["10-30 23:30 - 10-31 00:30"]),
        ("02:30-03:30", ["10-31 00:30 - 10-31 02:30"]),
        ("02:15-02:45", ["10-31 00:15 - 10-31 00:45"]),
    ],
)
def test_of_an_hour_that_occurs_twice_in_autumn_the_first_counts(times, window):
    """In Berlin the clock goes from 03:00 back to 02:00, at 01:00 UTC."""
    assert shown(resolved(f"Sun {times} Europe/Berlin", "2027-10-29", "2027-11-02")) == window


ZONES = sorted(available_timezones())


@given(
    name=st.sampled_from(ZONES),
    wall=st.lists(st.integers(at("1990-01-01"), at("2037-01-01")), min_size=2, max_size=8),
)
def test_windows_that_are_disjoint_in_local_time_are_so_in_utc(name, wall):
    zone = zone_of(name)
    moments = [moment_at(moment, zone) for moment in sorted(wall)]
    assert moments == sorted(moments)


def changes(zone, first, last):
    """Return the hours in which a zone changes its offset, with the offsets before and after."""
    offsets = {}
    for moment in range(first, last, HOUR):
        local = datetime.fromtimestamp(moment // 1000, UTC).astimezone(zone)
        offsets[moment] = local.utcoffset() // timedelta(milliseconds=1)
    return [
        (moment, offsets[moment - HOUR], offset)
        for moment, offset in offsets.items()
        if moment > first and offset != offsets[moment - HOUR]
    ]


@pytest.mark.parametrize(
    ("name", "year"),
    [
        ("Europe/Berlin", 2027),
        ("America/New_York", 2026),
        ("Australia/Lord_Howe", 2026),  # half an hour
        ("Pacific/Apia", 2011),  # a day that never was
        ("America/Caracas", 2016),
        ("Africa/Casablanca", 2026),
    ],
)
def test_a_local_time_is_the_first_moment_that_shows_it_or_a_later_one(name, year):
    zone, minute = zone_of(name), 60_000
    found = changes(zone, at(f"{year}-01-01"), at(f"{year + 1}-01-01"))
    assert found
    for hour, before, after in found:
        around = range(hour - 30 * HOUR, hour + 30 * HOUR, minute)
        local = [datetime.fromtimestamp(m // 1000, UTC).astimezone(zone) for m in around]
        shown = [at(each.replace(tzinfo=None).isoformat()) for each in local]
        first = max(shown[0], hour + min(before, after) - 27 * HOUR)
        for wall in range(first, hour + max(before, after) + 2 * HOUR, 10 * minute):
            expected = next(m for m, face in zip(around, shown, strict=True) if face >= wall)
            assert moment_at(wall, zone) == expected


def test_offsets_are_exact_to_the_millisecond():
    zone = zone_of("Europe/Berlin")
    skipped, twice = at("2027-03-28T02:00"), at("2027-10-31T02:00")
    spring, autumn = at("2027-03-28T01:00"), at("2027-10-31T01:00")
    assert [moment_at(skipped + late, zone) - spring for late in (-1, 0, 1, HOUR)] == [-1, 0, 0, 0]
    assert moment_at(skipped + HOUR + 1, zone) == spring + 1
    assert [moment_at(twice + late, zone) - autumn for late in (0, HOUR - 1)] == [-HOUR, -1]
    assert moment_at(twice + HOUR, zone) == autumn + HOUR


@pytest.mark.parametrize(
    "name", ["Europe/Berlim", "Europe", "../etc/passwd", "/etc/passwd", "", "a\0b", "x" * 5000]
)
def test_an_unknown_zone_is_refused_in_one_sentence(name):
    with pytest.raises(ArgumentInvalid, match="is no time zone") as refused:
        zone_of(name)
    assert "Europe/Berlin" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a recurrence"),
        ("every second", "not a recurrence"),
        ("daily", "not a recurrence"),
        ("daily 10-12", "not a recurrence"),
        ("daily 10:00-12:00 UTC UTC", "not a recurrence"),
        ("Mon-Fry 10:00-12:00", "no day of the week"),
        ("Mon,, 10:00-12:00", "no day of the week"),
        ("Mon-Tue-Wed 10:00-12:00", "no day of the week"),
        ("daily 24:00-12:00", "does not exist"),
        ("daily 10:60-12:00", "does not exist"),
        ("daily 10:00-24:01", "does not exist"),
        ("daily 10:00-10:00", "no length"),
    ],
)
def test_a_text_that_is_no_recurrence_is_refused(text, why):
    with pytest.raises(ArgumentInvalid, match=why):
        parse_recurrence(text)


def test_a_window_without_an_end_ends_at_the_horizon():
    assert single(5, ENDLESS_MS, 7) == (5, 7 + SLOT_HORIZON_MS)
    assert single(5, 9, 7) == (5, 9)


@pytest.mark.parametrize(
    ("window", "why"),
    [
        ((1, 7), "is over"),
        ((1, 8 + SLOT_HORIZON_MS), "more than 90 days"),
        ((7 + SLOT_HORIZON_MS, ENDLESS_MS), "begins or ends more than 90 days"),
    ],
)
def test_a_single_window_is_refused(window, why):
    with pytest.raises(ArgumentInvalid, match=why):
        single(*window, 7)


def test_a_recurrence_goes_on_as_time_passes():
    """Each night comes once it is the next, whole, however often one looks."""
    begin, seen = at("2026-11-23T22:00"), []
    for hours in range(0, 24 * 200, 7):
        now = begin + hours * HOUR
        if not seen or seen[-1][1] <= now:
            seen.append(next_window("daily 20:00-08:00", zone_of, 0, ENDLESS_MS, now))
    assert seen[0] == (begin, begin + 10 * HOUR), "cut at the moment at which it is made"
    assert {end - start for start, end in seen[1:]} == {12 * HOUR}
    assert {later[0] - earlier[1] for earlier, later in pairwise(seen)} == {12 * HOUR}


def test_a_recurrence_is_not_lost_while_nobody_looks():
    after = at("2026-11-23") + 40 * DAY_MS + 9 * HOUR
    window = next_window("Mon 20:00-21:00", zone_of, 0, ENDLESS_MS, after)
    assert shown([window]) == ["01-04 20:00 - 01-04 21:00"]


@pytest.mark.parametrize(
    ("times", "window"),
    [
        (("2026-11-24T01:00", "2027-01-01"), ["11-24 01:00 - 11-24 08:00"]),
        (("2026-11-25", "2027-01-01"), ["11-25 00:00 - 11-25 08:00"]),
        (("2026-11-01", "2026-11-24T05:00"), ["11-23 22:00 - 11-24 05:00"]),
        (("2026-11-01", "2026-11-23T22:00"), []),
        (("2027-02-22", "2030-01-01"), []),
    ],
)
def test_the_next_window_is_cut_at_the_times_of_its_slot_and_within_the_horizon(times, window):
    start, end = map(at, times)
    found = next_window("daily 20:00-08:00", zone_of, start, end, at("2026-11-23T22:00"))
    assert shown([] if found is None else [found]) == window


def test_no_time_takes_long_to_look_for_a_window():
    for start, end in ((2**62, ENDLESS_MS), (0, ENDLESS_MS), (2**62, 2**62 + 1), (9, 2)):
        found = next_window("daily 10:00-12:00", zone_of, start, end, DAY_MS)
        assert found == ((DAY_MS + 10 * HOUR, DAY_MS + 12 * HOUR) if start == 0 else None)
