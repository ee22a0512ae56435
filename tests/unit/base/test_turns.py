"""Each has its turn."""

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.turns import one_of_each


def test_who_has_much_leaves_room_for_who_has_little():
    assert one_of_each(["aaaa", "b", "cc"], 5) == ["a", "b", "c", "a", "c"]
    assert one_of_each([], 5) == []
    assert one_of_each(["a"], 0) == []


@given(st.lists(st.lists(st.integers() | st.none(), max_size=8), max_size=8), st.integers(0, 70))
def test_all_are_there_if_there_is_room_and_each_has_its_share(lists, most):
    found = one_of_each(
        [[(place, item) for item in each] for place, each in enumerate(lists)], most
    )
    assert len(found) == min(most, sum(map(len, lists)))
    counts = [sum(place == owner for owner, _ in found) for place in range(len(lists))]
    for place, each in enumerate(lists):
        assert counts[place] >= min(len(each), max(counts, default=0) - 1)
