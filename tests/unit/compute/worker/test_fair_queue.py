"""Customers take turns, whatever they have waiting."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from xsc.compute.worker.fair_queue import FairQueue

CUSTOMERS = st.sampled_from([b"a", b"b", b"c"])


@given(st.lists(st.tuples(CUSTOMERS, st.integers(0, 3)), max_size=40))
def test_who_waits_is_passed_once_by_each_other_and_goes_in_its_own_order(steps):
    turns, waiting, passed = FairQueue(), {}, Counter()
    for number, (customer, what) in enumerate(steps):
        mine = waiting.setdefault(customer, [])
        if what == 0 and len(turns):
            first = turns.first()
            assert turns.take() is first
            taker = first[0]
            assert waiting[taker].pop(0) is first
            for other, theirs in waiting.items():
                if other != taker and theirs:
                    passed[other, taker] += 1
                    assert passed[other, taker] <= 1
            for pair in [pair for pair in passed if pair[0] == taker or not waiting[pair[0]]]:
                del passed[pair]
        elif what == 1 and mine:
            gone = mine.pop(len(mine) // 2)
            assert turns.drop(customer, gone)
            assert not turns.drop(customer, gone)
            if not mine:
                for pair in [pair for pair in passed if pair[0] == customer]:
                    del passed[pair]
        elif what == 2:
            mine.insert(0, (customer, number))
            turns.add_first(customer, mine[0])
        else:
            mine.append((customer, number))
            turns.add(customer, mine[-1])
        assert len(turns) == sum(map(len, waiting.values()))
    assert Counter(turns.clear()) == Counter(item for each in waiting.values() for item in each)
    assert len(turns) == 0
