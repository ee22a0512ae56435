"""What counts as lost, and whom to trust."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.storage.repair.repair_rules import (
    NodeHistory,
    is_gone,
    is_steady,
    lost_columns,
    observed,
)

GRACE = 60_000
NODES = [bytes([node]) * 32 for node in range(10)]


def test_silence_counts_only_after_the_grace():
    history = observed(None, up=True, now_ms=0, grace_ms=GRACE)
    history = observed(history, up=False, now_ms=10, grace_ms=GRACE)
    assert not is_gone(history, 9 + GRACE, GRACE)
    assert is_gone(history, 10 + GRACE, GRACE)
    assert not is_gone(None, 10**9, GRACE)


def test_a_node_that_was_never_seen_has_the_grace_too():
    history = observed(None, up=False, now_ms=500, grace_ms=GRACE)
    assert not is_gone(history, 499 + GRACE, GRACE)
    assert is_gone(history, 500 + GRACE, GRACE)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, GRACE - 1)), max_size=60))
def test_a_node_that_comes_back_within_the_grace_is_never_given_up(steps):
    now_ms, history, silent_ms = 0, None, 0
    for up, duration_ms in steps:
        up_now = up or silent_ms + duration_ms >= GRACE
        history = observed(history, up=up_now, now_ms=now_ms, grace_ms=GRACE)
        silent_ms = 0 if up_now else silent_ms + duration_ms
        now_ms += duration_ms
        assert not is_gone(history, now_ms, GRACE)
        assert history.falls == 0


@pytest.mark.parametrize("falls", range(12))
def test_each_fall_doubles_how_long_a_node_must_stay_up(falls):
    history = NodeHistory(None, 1_000, falls)
    needed = 0 if falls == 0 else GRACE << min(falls - 1, 6)
    assert is_steady(history, 1_000 + needed, GRACE)
    if needed:
        assert not is_steady(history, 999 + needed, GRACE)
    assert not is_steady(NodeHistory(5, 0, falls), 10**12, GRACE)


def test_what_is_admitted_is_lost_and_what_is_silent_only_with_its_node():
    states = ["ok", "missing", "corrupt", "unreachable", "unreachable", "ok"]
    assert lost_columns(NODES[:6], states, {NODES[3]}) == {1, 2, 3}
    assert lost_columns(NODES[:6], states, set()) == {1, 2}
