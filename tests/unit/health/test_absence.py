from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.network import content
from xsc.health.absence import CONTROL_TARGETS, HELPERS, TOLD, helpers, told, window_counts

IDS = [content(32, number) for number in range(200)]


@pytest.mark.parametrize("nodes", range(2, 13))
def test_a_window_counts_only_if_others_answered(nodes):
    targets = nodes - 1
    for answered, silent in product(range(targets + 1), repeat=2):
        absent = targets - answered - silent
        if absent < 0:
            continue
        counts = window_counts(answered, silent, absent)
        if targets == 1 or answered == 0:
            assert not counts
        elif answered + silent >= CONTROL_TARGETS:
            assert counts == (answered >= silent)
        else:
            assert counts


@pytest.mark.parametrize("nodes", range(2, 13))
def test_a_prober_that_hears_nobody_and_a_minority_say_nothing(nodes):
    targets = nodes - 1
    assert not window_counts(0, targets, 0)
    for heard in range(targets + 1):
        if targets >= CONTROL_TARGETS and 2 * heard < targets:
            assert not window_counts(heard, targets - heard, 0)


PEERS = st.dictionaries(st.sampled_from(IDS[:12]), st.sampled_from([b"x", b"y", b"z"]), max_size=12)


@given(PEERS, st.sampled_from([b"x", b"y", b"other"]), st.integers(0, 10**6), st.integers(1, 3))
def test_helpers_are_in_other_domains_first_and_no_more_than_asked_for(peers, where, turn, most):
    found = helpers(where, peers.items(), turn, most)
    assert len(found) == len(set(found)) == min(most, len(peers))
    apart = set(peers.values()) - {where}
    domains = [peers[peer] for peer in found]
    assert len(set(domains[: len(apart)])) == min(most, len(apart))
    assert where not in domains[: len(apart)]


def test_all_helpers_have_their_turn():
    peers = [(peer, peer) for peer in IDS[:12]]
    asked = Counter(
        peer for turn in range(12) for peer in helpers(b"x", peers, turn * HELPERS, HELPERS)
    )
    assert set(asked.values()) == {HELPERS}
    assert helpers(b"x", [], 5, HELPERS) == []


@pytest.mark.parametrize("count", [*range(1, 30), 50, 100, 200])
def test_what_one_tells_reaches_all_in_few_steps_and_each_is_told_by_few(count):
    """The missed one is on no ring."""
    nodes = IDS[:count]
    whom = {node: told(node, [each for each in nodes if each != node]) for node in nodes}
    for node, some in whom.items():
        assert len(some) == len(set(some)) == min(TOLD, count - 1)
        assert node not in some
    told_by = Counter(each for some in whom.values() for each in some)
    assert set(told_by.values()) <= {min(TOLD, count - 1)}
    know, steps = {nodes[0]}, 0
    while len(know) < count:
        know |= {each for node in know for each in whom[node]}
        steps += 1
    assert steps <= 8
    assert count > 50 or steps <= 5
