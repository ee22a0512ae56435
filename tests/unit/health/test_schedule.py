from collections import Counter
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.network import content
from xsc.health.schedule import PROBES_A_PERIOD, RESPONSES_MIN, TIMEOUT_MS_MIN, due, timeout_ms

A, B, C = b"a", b"b", b"c"
IDS = [content(32, number) for number in range(200)]


def test_the_ring_goes_on_after_the_last_one():
    assert due([C, B, A], A) == [B, C, A]
    assert due([C, B, A], b"aa") == [B, C, A]
    assert due([C, B, A], C, {B}) == [A, C]
    assert due([A, A], B) == [A]
    assert due([], A) == []


@pytest.mark.parametrize("count", [2, 12, 13, 14, 50, 200])
def test_each_peer_has_its_turn_and_a_period_no_more_than_so_many(count):
    own, peers = IDS[0], IDS[1:count]
    asked, after = [], own
    for _ in range(-(-len(peers) // PROBES_A_PERIOD)):
        turn = due(peers, after)
        assert len(turn) == min(PROBES_A_PERIOD, len(peers))
        asked, after = asked + turn, turn[-1]
    assert set(asked[: len(peers)]) == set(peers)


@pytest.mark.parametrize("count", [13, 50, 200])
def test_in_each_period_so_many_probe_each_node_although_all_begin_together(count):
    last = {node: node for node in IDS[:count]}
    for _ in range(2 * count // PROBES_A_PERIOD):
        probed = Counter()
        for own, after in last.items():
            turn = due([each for each in last if each != own], after)
            last[own] = turn[-1]
            probed.update(turn)
        assert set(probed.values()) == {PROBES_A_PERIOD}


TIMES = st.lists(st.integers(0, 60_000), min_size=RESPONSES_MIN, max_size=200)


@given(TIMES)
def test_the_timeout_is_mean_and_four_deviations_within_its_bounds(times):
    found, exact = timeout_ms(times, 0, 10**6), fmean(times) + 4 * pstdev(times)
    assert found >= TIMEOUT_MS_MIN
    assert found == TIMEOUT_MS_MIN or abs(found - exact) <= 2


@given(st.lists(st.integers(0, 60_000), max_size=200), st.integers(0, 10**6))
def test_it_passes_no_bound_and_misses_double_it(times, misses):
    once, more = timeout_ms(times, misses, 3_000), timeout_ms(times, misses + 1, 3_000)
    assert TIMEOUT_MS_MIN <= once <= more <= 3_000
    if len(times) < RESPONSES_MIN:
        assert once == 3_000
    if misses < 2:
        assert more == min(3_000, 2 * once)


def test_a_short_bound_stays():
    assert timeout_ms([1] * 20, 0, 300) == 300
