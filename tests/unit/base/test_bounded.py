"""Bounded dicts drop the least recently used entries, and never exceed their bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.bounded import Bounded

KEYS = st.integers(0, 7)
SIZES = st.integers(0, 12)
STEPS = st.lists(st.tuples(st.sampled_from(["put", "get", "pop"]), KEYS, SIZES), max_size=60)
BOUNDS = st.one_of(st.none(), st.integers(1, 10))


def test_the_least_recently_used_entry_goes_first():
    kept = Bounded[str, int](2)
    assert kept.put("a", 1) == kept.put("b", 2) == []
    assert kept.get("a") == 1
    assert "b" in kept
    assert kept.put("c", 3) == ["b"]
    assert list(kept) == ["a", "c"]
    assert kept.put("a", 4) == []
    assert kept.put("d", 5) == ["c"]
    assert (kept.get("a"), kept.get("c"), kept.pop("d"), kept.pop("d")) == (4, None, 5, None)
    assert len(kept) == 1


def test_sizes_are_bounded_and_room_is_made_before_an_entry_comes():
    kept = Bounded[str, bytes](size_max=10, size_of=len)
    kept.put("a", b"1234")
    kept.put("b", b"1234")
    assert kept.size == 8
    assert kept.make_room(2) == []
    assert kept.make_room(3) == ["a"]
    assert kept.put("b", b"123456") == []
    assert kept.size == 6
    assert kept.put("huge", bytes(11)) == ["b"]
    assert list(kept) == ["huge"]
    kept.clear()
    assert (len(kept), kept.size) == (0, 0)


@given(STEPS, BOUNDS, BOUNDS)
def test_it_does_what_a_list_does(steps, count_max, size_max):
    kept = Bounded[int, tuple[int, int]](count_max, size_max=size_max, size_of=lambda v: v[1])
    model: list[tuple[int, tuple[int, int]]] = []
    for number, (step, key, size) in enumerate(steps):
        value = dict(model).get(key)
        rest = [item for item in model if item[0] != key]
        if step == "pop":
            assert kept.pop(key) == value
            model = rest
        elif step == "get":
            assert kept.get(key) == value
            model = model if value is None else [*rest, (key, value)]
        else:
            dropped = []
            model = [*rest, (key, (number, size))]
            while (count_max is not None and len(model) > count_max) or (
                size_max is not None
                and len(model) > 1
                and sum(item[1][1] for item in model) > size_max
            ):
                dropped.append(model.pop(0)[0])
            assert kept.put(key, (number, size)) == dropped
        assert list(kept) == [item[0] for item in model]
        assert len(kept) == len(model)
        assert all((key in kept) == (key in dict(model)) for key in range(8))
        if size_max is not None:
            assert kept.size == sum(item[1][1] for item in model)


def test_a_holder_cannot_push_out_the_entries_of_others():
    kept = Bounded[int, str](size_max=4)
    kept.put(0, "mine", "anna")
    for number in range(1, 100):
        kept.put(number, "theirs", "bert")
    assert kept.get(0) == "mine"
    assert [number for number in range(1, 100) if number in kept] == [97, 98, 99]
    assert kept.get(97) == "theirs"
    assert kept.put(100, "theirs", "bert") == [98]


def test_the_newest_entry_stays_though_its_holder_has_most():
    kept = Bounded[int, str](size_max=10)
    kept.put(1, "", "anna", 4)
    kept.put(2, "", "bert", 3)
    assert kept.put(3, "", "carl", 9) == [1, 2]
    assert kept.put(4, "", "carl", 11) == [3]
    assert (list(kept), kept.size) == ([4], 11)
    kept.clear()
    assert (len(kept), kept.size, kept.put(5, "", "anna", 10)) == (0, 0, [])


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "get", "pop"]), KEYS, st.integers(0, 2), SIZES),
        max_size=60,
    ),
    st.integers(1, 20),
)
def test_it_is_shared_as_a_list_is(steps, size_max):
    kept = Bounded[int, int](size_max=size_max)
    model: list[tuple[int, int, int, int]] = []  # key, value, holder, size
    for number, (step, key, holder, size) in enumerate(steps):
        known = next((item for item in model if item[0] == key), None)
        rest = [item for item in model if item[0] != key]
        if step == "pop":
            assert kept.pop(key) == (known and known[1])
            model = rest
        elif step == "get":
            assert kept.get(key) == (known and known[1])
            model = model if known is None else [*rest, known]
        else:
            model = [*rest, (key, number, holder, size)]
            for gone in kept.put(key, number, holder, size):
                assert sum(item[3] for item in model) > size_max
                sums = {
                    each: sum(item[3] for item in model if item[2] == each)
                    for each in range(3)
                    if any(item[2] == each and item[0] != key for item in model)
                }
                (lost,) = (item for item in model if item[0] == gone)
                alone = [item for item in model if item[2] == holder] == model[-1:]
                assert sums[lost[2]] == max(sums.values())
                assert lost[2] != holder or not alone
                assert next(item for item in model if item[2] == lost[2]) == lost
                model.remove(lost)
            assert len(model) == 1 or sum(item[3] for item in model) <= size_max
        assert sum(item[3] for item in model) == kept.size
        assert set(kept._keys) == set(kept._sizes) == {item[2] for item in model}
        assert all((each in kept) == any(item[0] == each for item in model) for each in range(8))
        assert len(kept) == len(model)
