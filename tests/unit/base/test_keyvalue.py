"""The end of a prefix: where a scan over it stops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.keyvalue import prefix_end

KEYS = st.binary(max_size=4).map(lambda raw: bytes(byte % 3 + 253 for byte in raw))


@given(KEYS, KEYS)
def test_a_scan_up_to_the_end_sees_exactly_the_keys_with_the_prefix(prefix, key):
    end = prefix_end(prefix)
    assert (prefix <= key and (end is None or key < end)) == key.startswith(prefix)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"", None), (b"\xff", None), (b"\xff\xff", None), (b"a", b"b"), (b"a\xff", b"b")],
)
def test_edges(prefix, end):
    assert prefix_end(prefix) == end
