from __future__ import annotations

import pytest

from xsc.base.errors import ArgumentInvalid, TooLarge
from xsc.base.limits import BATCH_ITEMS_MAX
from xsc.compute.wasm.rows import read_lines


@pytest.mark.parametrize(
    ("raw", "calls"),
    [
        (b"", []),
        (b"1 2", [["1", "2"]]),
        (b"1 2\n", [["1", "2"]]),
        (b" 1\t2 \r\n-3  nan:0x1\n", [["1", "2"], ["-3", "nan:0x1"]]),
        (b"\n\n", [[], []]),
    ],
)
def test_a_line_is_a_call(raw, calls):
    assert read_lines(raw) == calls


def test_what_is_no_batch_is_refused():
    for raw in (b"\xff\n", "٣\n".encode()):
        with pytest.raises(ArgumentInvalid):
            read_lines(raw)
    assert len(read_lines(b"1\n" * BATCH_ITEMS_MAX)) == BATCH_ITEMS_MAX
    with pytest.raises(TooLarge):
        read_lines(b"1\n" * (BATCH_ITEMS_MAX + 1))
