import itertools

import pytest

from tests.unit.storage.world import content
from xsc.base.errors import ShardsInsufficient
from xsc.storage.object.erasure import Code, cut, rebuild


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
