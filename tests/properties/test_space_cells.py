"""Laws of cells: contents merge in any order, and the strongest value follows from the content."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import values
from xsc.base.encoding import encode, tagged_sha256
from xsc.base.errors import RecordInvalid
from xsc.space.cells import (
    MERGE_RULES,
    Contribution,
    cell_bytes,
    cell_value,
    latest,
    merge_content,
    strongest,
)
from xsc.space.itc import Stamp

SOURCES = st.sampled_from([bytes([number]) * 32 for number in range(5)])
EVENTS = st.sampled_from([0, 1, 2, (0, 1, 0), (0, 0, 1), (0, 2, 0), (0, 2, 1), (1, 0, 1)])
NUMBERS = st.integers(-(2**40), 2**40)
SAID = st.one_of(
    NUMBERS,
    st.lists(NUMBERS, max_size=3),
    st.tuples(NUMBERS, NUMBERS).map(sorted),
    st.dictionaries(st.sampled_from(["x", "y"]), NUMBERS),
    values(),
)


def said_of(**fields):
    """A contribution whose id is that of its content, as a record's is."""
    return Contribution(id=tagged_sha256("test", repr(fields).encode()), **fields)


CONTRIBUTIONS = st.builds(
    said_of,
    value=SAID,
    sequence=st.integers(1, 3),
    written_ms=st.integers(0, 3),
    stamp=st.builds(Stamp, st.sampled_from([b"\1" * 32, b"\2" * 32]), EVENTS),
)
CONTENTS = st.dictionaries(SOURCES, CONTRIBUTIONS)
RULES = st.sampled_from([*MERGE_RULES, "map:max", "map:map:min", "map:union"])


@given(CONTENTS, CONTENTS, CONTENTS, RULES)
def test_contents_merge_in_any_order(one, other, third, rule):
    joined = merge_content(one, other)
    assert joined == merge_content(other, one)
    assert merge_content(joined, third) == merge_content(one, merge_content(other, third))
    assert merge_content(joined, other) == joined
    turned = dict(reversed(joined.items()))
    assert strongest(rule, joined) == strongest(rule, turned)


@given(CONTENTS, RULES, st.sets(SOURCES))
def test_the_strongest_value_of_some_sources_is_that_of_a_cell_without_the_others(
    content, rule, sources
):
    left = {source: said for source, said in content.items() if source in sources}
    assert strongest(rule, content, sources) == strongest(rule, left)


@given(CONTENTS.filter(bool))
def test_no_other_contribution_follows_the_last(content):
    last = content[latest(content)]
    assert not any(last.stamp.before(said.stamp) for said in content.values())


@given(st.lists(st.lists(NUMBERS, max_size=4), max_size=4))
def test_a_union_has_each_member_once_in_one_order(said):
    content = {
        bytes([number]) * 32: Contribution(value, 1, 0, bytes(32), Stamp(b"", 0))
        for number, value in enumerate(said)
    }
    found = strongest("union", content).value or []
    assert found == sorted(set().union(*said), key=encode)


@given(values())
def test_a_cell_reads_what_it_wrote_or_refuses_to_write_it(value):
    try:
        raw = cell_bytes(value)
    except RecordInvalid:
        return
    assert cell_value(raw) == value


@given(st.binary(max_size=40))
def test_any_bytes_are_a_cells_value_or_refused_by_name(raw):
    try:
        value = cell_value(raw)
    except RecordInvalid:
        return
    assert cell_value(cell_bytes(value)) == value
