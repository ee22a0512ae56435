"""What counts as lost, whom to trust, and where columns go."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.storage.mending import (
    Watch,
    is_gone,
    is_steady,
    lost_columns,
    margin,
    next_want,
    surplus,
    watched,
)

GRACE = 60_000
NODES = [bytes([node]) * 32 for node in range(10)]
OWN = NODES[0]


def test_silence_counts_only_after_the_grace():
    watch = watched(None, up=True, now_ms=0, grace_ms=GRACE)
    watch = watched(watch, up=False, now_ms=10, grace_ms=GRACE)
    assert not is_gone(watch, 9 + GRACE, GRACE)
    assert is_gone(watch, 10 + GRACE, GRACE)
    assert not is_gone(None, 10**9, GRACE)


def test_a_node_that_was_never_seen_has_the_grace_too():
    watch = watched(None, up=False, now_ms=500, grace_ms=GRACE)
    assert not is_gone(watch, 499 + GRACE, GRACE)
    assert is_gone(watch, 500 + GRACE, GRACE)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, GRACE - 1)), max_size=60))
def test_a_node_that_comes_back_within_the_grace_is_never_given_up(steps):
    now_ms, watch, silent_ms = 0, None, 0
    for up, duration_ms in steps:
        up_now = up or silent_ms + duration_ms >= GRACE
        watch = watched(watch, up=up_now, now_ms=now_ms, grace_ms=GRACE)
        silent_ms = 0 if up_now else silent_ms + duration_ms
        now_ms += duration_ms
        assert not is_gone(watch, now_ms, GRACE)
        assert watch.falls == 0


@pytest.mark.parametrize("falls", range(12))
def test_each_fall_doubles_how_long_a_node_must_stay_up(falls):
    watch = Watch(None, 1_000, falls)
    needed = 0 if falls == 0 else GRACE << min(falls - 1, 6)
    assert is_steady(watch, 1_000 + needed, GRACE)
    if needed:
        assert not is_steady(watch, 999 + needed, GRACE)
    assert not is_steady(Watch(5, 0, falls), 10**12, GRACE)


def test_what_is_admitted_is_lost_and_what_is_silent_only_with_its_node():
    states = ["ok", "missing", "corrupt", "unreachable", "unreachable", "ok"]
    assert lost_columns(NODES[:6], states, {NODES[3]}) == {1, 2, 3}
    assert lost_columns(NODES[:6], states, set()) == {1, 2}
    assert margin(states, 4) == -2


def play(columns, homeless, available):
    """Follow the plan to its end; return the columns, what was left, and how many moved."""
    doubled = len(set(columns)) < len(columns)
    columns, homeless = list(columns), set(homeless)
    moves = 0
    while want := next_want(columns, homeless, available, own=OWN, doubled=doubled):
        assert want.targets <= set(available)
        columns[want.column] = min(want.targets)
        homeless.discard(want.column)
        moves += 1
        assert moves <= 2 * len(columns), "the plan must end"
    return columns, homeless, moves


@given(st.sets(st.integers(0, 5)), st.sets(st.integers(0, 9)))
def test_distinct_hosts_stay_distinct_and_nothing_moves_without_a_reason(lost, up):
    columns = NODES[:6]
    available = {NODES[node] for node in up}
    after, left, moves = play(columns, lost, available)
    homes = [node for column, node in enumerate(after) if column not in left]
    assert len(homes) == len(set(homes))
    for column in range(6):
        if column not in lost:
            assert after[column] == columns[column]
    keeping = {node for column, node in enumerate(columns) if column not in lost}
    assert moves == min(len(lost), len(available - keeping))
    assert len(left) == len(lost) - moves


@given(st.integers(1, 9))
def test_a_lone_nodes_object_spreads_as_evenly_as_it_can(count):
    after, left, _ = play([OWN] * 6, (), NODES[:count])
    held = Counter(after)
    assert not left
    assert len(held) == min(6, count)
    assert max(held.values()) - min(held.values()) <= 1


def test_the_own_node_and_the_place_of_the_loss_come_last():
    want = next_want(NODES[1:7], {2}, [OWN, NODES[3], NODES[8]], own=OWN, doubled=False)
    assert (want.column, want.targets) == (2, {NODES[8]})
    want = next_want(NODES[1:7], {2}, [OWN, NODES[3]], own=OWN, doubled=False)
    assert want.targets == {NODES[3]}
    want = next_want(NODES[1:7], {2}, [OWN], own=OWN, doubled=False)
    assert want.targets == {OWN}
    assert next_want(NODES[1:7], {2}, [NODES[1]], own=OWN, doubled=False) is None
    assert next_want(NODES[1:7], {2}, [], own=OWN, doubled=False) is None


def test_what_lies_elsewhere_by_now_is_surplus():
    assert surplus(NODES[:6], NODES[2], [0, 2, 5]) == {0, 5}
