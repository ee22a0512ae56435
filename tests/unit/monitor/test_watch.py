"""Work that somebody watches."""

import pytest

from xsc.base.errors import ArgumentInvalid
from xsc.monitor.watch import Works


def test_how_far_work_is_until_it_ends():
    works = Works()
    with works.watch_of("a")(10) as progress:
        progress(3)
        progress(4)
        (row,) = works.rows()
        assert (row.id, row.done_bytes, row.total_bytes) == ("a", 7, 10)
    assert works.rows() == []


def test_of_two_with_one_id_the_second_is_refused_and_the_first_goes_on():
    works = Works()
    with works.watch_of("a")(10) as progress:
        progress(3)
        with pytest.raises(ArgumentInvalid, match="has that id"), works.watch_of("a")(5):
            pass
        assert [row.done_bytes for row in works.rows()] == [3]
    with works.watch_of("")(10):
        assert works.rows() == []
