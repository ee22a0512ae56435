"""Laws of units: text keeps the number, or says that it cannot."""

from __future__ import annotations

import contextlib
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import ArgumentInvalid
from xsc.base.units import (
    ceil_div,
    format_credits,
    format_duration,
    format_share,
    format_size,
    parse_credits,
    parse_duration_ms,
    parse_share_ppm,
    parse_size,
)

AMOUNTS = st.one_of(st.integers(0, 5000), st.integers(0, 2**63 - 1))


@given(AMOUNTS)
def test_credits_survive_their_text(micro):
    assert parse_credits(format_credits(micro)) == micro
    assert format_credits(-micro) == (f"-{format_credits(micro)}" if micro else "0.000000")


@given(AMOUNTS)
def test_whole_numbers_of_the_smallest_unit_survive(number):
    assert parse_size(str(number)) == number
    assert parse_size(f"{number}KiB") == number * 1024
    assert parse_duration_ms(f"{number}ms") == number


@given(AMOUNTS)
def test_a_size_for_people_is_never_more_and_never_a_tenth_of_its_unit_less(size_bytes):
    number, unit = format_size(size_bytes).split()
    scale = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}[unit]
    shown = Fraction(number) * scale
    assert shown <= size_bytes < shown + Fraction(scale, 10) + (unit == "B")


@given(AMOUNTS)
def test_a_duration_for_people_is_never_more_and_leaves_out_less_than_its_last_unit(duration_ms):
    parts = format_duration(duration_ms).split()
    shown = sum(parse_duration_ms(part) for part in parts)
    last = parts[-1].lstrip("0123456789")
    assert len(parts) <= 2
    assert shown <= duration_ms
    assert duration_ms - shown < parse_duration_ms(f"1{last}")


@given(st.integers(0, 1_000_000))
def test_a_share_is_the_same_as_fraction_and_as_percentage(ppm):
    assert parse_share_ppm(f"{ppm // 1_000_000}.{ppm % 1_000_000:06d}") == ppm
    assert parse_share_ppm(f"{ppm // 10_000}.{ppm % 10_000:04d}%") == ppm
    assert 0 <= ppm - parse_share_ppm(format_share(ppm)) < 1000


@given(st.text(max_size=12))
def test_any_text_is_a_number_or_named_as_wrong(text):
    for parse in (parse_size, parse_duration_ms, parse_share_ppm, parse_credits):
        with contextlib.suppress(ArgumentInvalid):
            assert parse(text) >= 0


@given(AMOUNTS, st.integers(1, 2**63 - 1))
def test_division_rounds_up_to_the_least_that_suffices(a, b):
    up = ceil_div(a, b)
    assert up * b >= a
    assert (up - 1) * b < a
