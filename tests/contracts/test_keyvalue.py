"""What every ordered key-value store keeps; run on both adapters.

The laws stand in `xsc.base.keyvalue`. How an adapter loses power or dies is
its own: `tests/unit/db`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.db.leveldb import LevelDBKeyValue
from xsc.db.memory import MemoryKeyValue


@dataclass
class Subject:
    store: KeyValue
    reopened: Callable[[], KeyValue]


@pytest.fixture(params=["memory", "leveldb"])
def subject(request, tmp_path) -> Iterator[Subject]:
    if request.param == "memory":
        memory = MemoryKeyValue()

        def reopened() -> KeyValue:
            memory.close()
            memory.reopen()
            return memory

        yield Subject(memory, reopened)
        memory.close()
        return
    opened = [LevelDBKeyValue(tmp_path / "db")]

    def reopened_leveldb() -> KeyValue:
        opened[-1].close()
        opened.append(LevelDBKeyValue(tmp_path / "db"))
        return opened[-1]

    yield Subject(opened[0], reopened_leveldb)
    opened[-1].close()


@pytest.fixture
def store(subject) -> KeyValue:
    return subject.store


def test_gives_back_what_was_written(store):
    store.write([(b"a", b"1"), (b"b", b"")], sync=False)
    assert (store.get(b"a"), store.get(b"b"), store.get(b"c")) == (b"1", b"", None)


def test_a_later_change_wins_also_within_one_write(store):
    store.write([(b"a", b"1"), (b"a", b"2"), (b"b", b"1"), (b"b", None)], sync=False)
    assert (store.get(b"a"), store.get(b"b")) == (b"2", None)
    store.write([(b"a", None), (b"a", b"3")], sync=False)
    assert store.get(b"a") == b"3"


def test_deleting_what_is_not_there_is_nothing(store):
    store.write([(b"a", None)], sync=True)
    assert list(store.scan(b"")) == []


def test_keys_come_in_the_order_of_their_bytes(store):
    keys = [b"", b"\0", b"a", b"a\0", b"aa", b"b", b"\x7f", b"\x80", b"\xff", b"\xff\xff"]
    store.write([(key, key) for key in reversed(keys)], sync=False)
    assert list(store.scan(b"")) == [(key, key) for key in sorted(keys)]
    assert [key for key, _ in store.scan(b"", reverse=True)] == sorted(keys, reverse=True)


def test_a_scan_takes_its_start_and_leaves_its_stop(store):
    store.write([(bytes([n]), b"") for n in range(10)], sync=False)
    assert [key[0] for key, _ in store.scan(b"\3", b"\6")] == [3, 4, 5]
    assert [key[0] for key, _ in store.scan(b"\3", b"\6", reverse=True)] == [5, 4, 3]
    assert [key[0] for key, _ in store.scan(b"\7")] == [7, 8, 9]
    assert list(store.scan(b"\6", b"\6")) == []
    assert list(store.scan(b"\6", b"\3")) == []


def test_a_prefix_is_scanned_up_to_its_end(store):
    store.write([(key, b"") for key in (b"a/", b"a/x", b"a/\xff", b"a0", b"a")], sync=False)
    found = [key for key, _ in store.scan(b"a/", prefix_end(b"a/"))]
    assert found == [b"a/", b"a/x", b"a/\xff"]


def test_a_scan_sees_the_state_at_its_start(store):
    store.write([(b"a", b"1"), (b"b", b"1"), (b"c", b"1")], sync=False)
    unread, begun = store.scan(b""), store.scan(b"")
    next(begun)
    store.write([(b"a", b"2"), (b"b", None), (b"d", b"2")], sync=True)
    assert list(unread) == [(b"a", b"1"), (b"b", b"1"), (b"c", b"1")]
    assert list(begun) == [(b"b", b"1"), (b"c", b"1")]


def test_a_scan_may_be_left_unfinished(store):
    store.write([(bytes([n]), b"") for n in range(10)], sync=False)
    for _, _ in store.scan(b""):
        break
    store.write([(b"a", b"1")], sync=False)
    assert store.get(b"a") == b"1"


def test_views_of_buffers_can_be_written(store):
    buffer = bytearray(b"value")
    store.write([(b"a", memoryview(buffer)[1:3])], sync=False)
    buffer[:] = b"xxxxx"
    assert store.get(b"a") == b"al"


def test_all_is_there_after_a_clean_close(subject):
    subject.store.write([(b"a", b"1")], sync=True)
    subject.store.write([(b"b", bytes(300_000))], sync=False)
    store = subject.reopened()
    assert list(store.scan(b"")) == [(b"a", b"1"), (b"b", bytes(300_000))]


def test_compaction_changes_no_value(store):
    store.write([(bytes([n]), bytes(50_000)) for n in range(100)], sync=False)
    store.write([(bytes([n]), None) for n in range(0, 100, 2)], sync=True)
    store.compact(b"\0", b"\x80")
    assert [key[0] for key, _ in store.scan(b"")] == list(range(1, 100, 2))


keys = st.binary(max_size=3)
writes = st.lists(st.lists(st.tuples(keys, st.none() | st.binary(max_size=4)), max_size=5))


@given(batches=writes, start=keys, stop=st.none() | keys, reverse=st.booleans())
def test_it_is_an_ordered_map(subject, batches, start, stop, reverse):
    model: dict[bytes, bytes] = {}
    subject.store.write([(key, None) for key, _ in subject.store.scan(b"")], sync=False)
    for batch in batches:
        subject.store.write(batch, sync=False)
        for key, value in batch:
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
    expected = sorted(
        (pair for pair in model.items() if start <= pair[0] and (stop is None or pair[0] < stop)),
        reverse=reverse,
    )
    assert list(subject.store.scan(start, stop, reverse=reverse)) == expected
