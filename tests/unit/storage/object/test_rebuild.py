import itertools

import pytest

from tests.unit.storage.world import content
from xsc.base.errors import ShardsInsufficient
from xsc.storage.object.erasure import Code, cut
from xsc.storage.object.rebuild import Rebuild, plan_rebuilds, rebuild

NODES = [bytes([index]) * 32 for index in range(6)]


@pytest.mark.parametrize("size", [1, 5, 1001])
def test_rebuilt_shards_are_bit_identical_whatever_they_are_built_from(size):
    shards = cut(content(size), Code())
    for kept in itertools.combinations(range(6), 4):
        lost = [column for column in range(6) if column not in kept]
        built = rebuild({column: shards[column].data for column in kept}, Code(), size, lost)
        assert [(s.column, bytes(s.data), s.root) for s in built] == [
            (column, bytes(shards[column].data), shards[column].root) for column in lost
        ]


def test_too_few_shards_are_refused():
    shards = cut(content(10), Code())
    with pytest.raises(ShardsInsufficient):
        rebuild({0: shards[0].data}, Code(), 10, [5])


def test_a_plan_goes_segment_by_segment_and_avoids_the_gone():
    plan = plan_rebuilds(NODES, {4, 1}, {2, 0}, {NODES[1], NODES[5]})
    assert plan == [Rebuild(0, (1, 4), (0, 2, 3)), Rebuild(2, (1, 4), (0, 2, 3))]


def test_nothing_stored_is_nothing_to_rebuild():
    assert plan_rebuilds(NODES, {0}, set(), set()) == []
