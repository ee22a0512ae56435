"""What the memory store loses with the power."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.db.memory import MemoryKeyValue


def test_a_crash_drops_what_came_after_the_last_synced_write():
    store = MemoryKeyValue()
    store.write([(b"a", b"1")], sync=False)
    store.write([(b"b", b"1")], sync=True)
    store.write([(b"a", None), (b"c", b"1")], sync=False)
    store.crash()
    assert list(store.scan(b"")) == [(b"a", b"1"), (b"b", b"1")]


writes = st.lists(
    st.tuples(
        st.lists(st.tuples(st.binary(max_size=1), st.none() | st.binary(max_size=1)), max_size=3),
        st.booleans(),
    )
)


@given(writes)
def test_what_survives_is_a_prefix_of_the_writes_up_to_the_last_synced(batches):
    store, model, durable = MemoryKeyValue(), {}, {}
    for changes, sync in batches:
        store.write(changes, sync=sync)
        model |= dict(changes)
        if sync:
            durable = dict(model)
    store.crash()
    assert dict(store.scan(b"")) == {k: v for k, v in durable.items() if v is not None}


def test_a_closed_store_refuses_calls():
    store = MemoryKeyValue()
    store.close()
    with pytest.raises(AssertionError):
        store.get(b"a")
