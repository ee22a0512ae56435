"""Tables: no cell is ever broken, whatever the width."""

import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.text import cause, printable
from xsc.cli import show
from xsc.cli.market import MOMENT
from xsc.cli.show import moment, table_lines, width_of

CELL = st.text("ab1年", min_size=1, max_size=60)
TABLES = st.integers(1, 9).flatmap(
    lambda count: st.tuples(
        st.lists(st.sampled_from(["name", "<size"]), min_size=count, max_size=count),
        st.lists(st.lists(CELL, min_size=count, max_size=count), min_size=1, max_size=4),
    )
)


@given(TABLES, st.integers(1, 200))
def test_every_cell_stands_whole_and_only_one_that_is_alone_passes_the_width(table, width):
    columns, rows = table
    heads, *shown = table_lines(columns, rows, width)
    assert " ".join(heads).split() == [column.removeprefix("<") for column in columns]
    for row, lines in zip(rows, shown, strict=True):
        assert " ".join(lines).split() == row
        assert [len(line.split()) for line in lines] == [len(line.split()) for line in heads]
        for line in lines:
            assert width_of(line) <= width or len(line.split()) == 1


@given(TABLES)
def test_where_lines_may_have_any_length_a_row_is_one(table):
    columns, rows = table
    assert [len(lines) for lines in table_lines(columns, rows, None)] == [1] * (1 + len(rows))


def test_numbers_stand_to_the_right_and_what_does_not_fit_stands_below():
    lines = table_lines(["name", "<size", "id"], [["a", "1", "x" * 9], ["bcd", "20", "y"]], 12)
    assert lines == [
        ["name  size", "  id"],
        ["a        1", "  xxxxxxxxx"],
        ["bcd     20", "  y"],
    ]


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland"])
def test_a_time_is_shown_in_utc_and_read_back_as_the_same(monkeypatch, zone):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        shown = moment(1_795_383_000_999)
        assert MOMENT.convert(shown.removesuffix(" UTC"), None, None) == 1_795_383_000_000
    time.tzset()
    assert shown == "2026-11-22 21:30:00 UTC"


def test_a_name_that_is_no_text_is_shown_by_its_bytes_and_leaves_json_readable(capfdbinary):
    name = os.fsdecode(b"caf\xc3\xa9 \xff\n")
    assert printable(name) == r"café \xff\n"
    for shown in (name, "café"):
        show.json({"file": shown})
        written = capfdbinary.readouterr().out.decode("utf-8", "strict")
        assert json.loads(written) == {"file": shown}


def test_why_a_file_cannot_be_read_is_said_in_words(tmp_path):
    with pytest.raises(IsADirectoryError) as met:
        tmp_path.read_bytes()
    assert cause(met.value) == "is a directory"
    with pytest.raises(UnicodeDecodeError) as undecoded:
        b"\xff".decode()
    assert cause(undecoded.value) == "it is not UTF-8 text"
