import itertools

import pytest

from xsc.api.ranges import (
    check_range,
    content_range,
    from_header,
    read_content_range,
)
from xsc.base.errors import ArgumentInvalid, RangeUnsatisfiable


def model(first, last, size):
    """RFC 9110, 14.1.2, byte by byte."""
    if first is None:
        return [index for index in range(size) if index >= size - last]
    return [index for index in range(size) if first <= index and (last is None or index <= last)]


@pytest.mark.parametrize("size", range(6))
def test_every_small_range_is_the_bytes_of_the_rfc(size):
    ends = [None, *range(8)]
    for first, last in itertools.product(ends, ends):
        text = f"{'' if first is None else first}-{'' if last is None else last}"
        empty = first is None and last is None
        if empty or (first is not None and last is not None and first > last):
            with pytest.raises(ArgumentInvalid):
                from_header(f"bytes={text}", size)
            continue
        expected = model(first, last, size)
        if expected:
            start, stop = from_header(f"bytes={text}", size)
            assert list(range(start, stop)) == expected
            answer = content_range(start, stop, size)
            assert read_content_range(answer) == (start, size)
        else:
            with pytest.raises(RangeUnsatisfiable, match=f"{size} bytes"):
                from_header(f"bytes={text}", size)


@pytest.mark.parametrize("text", ["", "-", "1", "1-2,3-4", "a-", "1 -2", "٣-٤", "1-2\n", "9" * 20])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ArgumentInvalid):
        check_range(text)


@pytest.mark.parametrize("value", ["1-2", "items=1-2", "bytes", "bytes=1-2,4-5", "Bytes=1-2"])
def test_a_header_of_another_kind_is_refused(value):
    with pytest.raises(ArgumentInvalid):
        from_header(value, 10)


def test_a_header_is_read():
    assert from_header("bytes=1-2", 10) == (1, 3)


@pytest.mark.parametrize("value", ["", "bytes */10", "bytes 1-/2", "items 1-2/3", "bytes 1-2/x"])
def test_an_answer_without_its_place_is_none(value):
    assert read_content_range(value) is None
