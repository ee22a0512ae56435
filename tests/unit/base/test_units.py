"""Sizes, durations, shares and credits in text."""

from __future__ import annotations

import pytest

from xsc.base.errors import ArgumentInvalid
from xsc.base.units import (
    ceil_div,
    format_credits,
    format_duration,
    format_share,
    format_size,
    parse_credits,
    parse_duration_ms,
    parse_month,
    parse_share_ppm,
    parse_size,
    say_credits,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1b", 1),
        ("64MiB", 64 * 1024**2),
        ("64M", 64 * 1024**2),
        ("64m", 64 * 1024**2),
        ("1.5 GiB", 3 * 1024**3 // 2),
        ("10GB", 10**10),
        (" 2 tib ", 2 * 1024**4),
        ("0.5k", 512),
    ],
)
def test_sizes(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "MiB", "-1", "1.5", "0.3KiB", "1,5k", "1 XB", "1e3", "٣", "1.", ".5", "9" * 5000, "1k k"],
    ids=lambda text: text[:8],
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ArgumentInvalid):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("250ms", 250),
        ("10s", 10_000),
        ("10", 10_000),
        ("0.25", 250),
        ("5m", 300_000),
        ("5min", 300_000),
        ("2h", 7_200_000),
        ("90d", 7_776_000_000),
    ],
)
def test_durations(text, duration_ms):
    assert parse_duration_ms(text) == duration_ms


@pytest.mark.parametrize("text", ["", "s", "1w", "-1s", "0.5ms", "1s 2ms"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ArgumentInvalid):
        parse_duration_ms(text)


@pytest.mark.parametrize(
    ("text", "ppm"),
    [("25%", 250_000), ("0.25", 250_000), ("100%", 1_000_000), ("1", 1_000_000), ("0.0001%", 1)],
)
def test_shares(text, ppm):
    assert parse_share_ppm(text) == ppm


@pytest.mark.parametrize("text", ["101%", "1.1", "0.00001%", "-5%", "x", "25 per cent", ""])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ArgumentInvalid):
        parse_share_ppm(text)


@pytest.mark.parametrize(
    ("text", "micro"), [("10", 10_000_000), ("0.25", 250_000), ("0.000001", 1), ("0", 0)]
)
def test_credits(text, micro):
    assert parse_credits(text) == micro


@pytest.mark.parametrize("text", ["0.0000001", "-1", "1 credit", "1%", ""])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ArgumentInvalid):
        parse_credits(text)


def test_texts_for_people():
    assert [format_size(n) for n in (0, 1023, 1024, 1536, 10 * 1024**3)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "10.0 GiB",
    ]
    assert [format_credits(n) for n in (0, 1, -250_000, 12_000_000)] == [
        "0.000000",
        "0.000001",
        "-0.250000",
        "12.000000",
    ]
    assert [format_share(n) for n in (0, 999, 250_000, 1_000_000)] == [
        "0.0%",
        "0.0%",
        "25.0%",
        "100.0%",
    ]
    durations = (0, 340, 1000, 61_000, 7_500_000, 90_061_001)
    assert [format_duration(n) for n in durations] == [
        "0ms",
        "340ms",
        "1s",
        "1m 1s",
        "2h 5m",
        "1d 1h",
    ]


def test_division_rounds_up():
    assert [ceil_div(a, 3) for a in (0, 1, 3, 4)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("micro", "said"),
    [
        (0, "0 credits"),
        (1, "0.000001 credits"),
        (1_000_000, "1 credit"),
        (10_000_000, "10 credits"),
        (-1_200_000, "-1.2 credits"),
    ],
)
def test_an_amount_in_words(micro, said):
    assert say_credits(micro) == said


def test_months_follow_on_each_other():
    assert parse_month("1970-01") == (0, 31 * 86_400_000)
    assert parse_month("2026-12")[1] == parse_month("2027-01")[0]
    assert parse_month("2028-02") == (1_832_976_000_000, 1_832_976_000_000 + 29 * 86_400_000)
    for text in ("", "2026", "2026-13", "2026-00", "1969-12", "9999-01", "2026-1", "٢٠٢٦-01"):
        with pytest.raises(ArgumentInvalid):
            parse_month(text)
