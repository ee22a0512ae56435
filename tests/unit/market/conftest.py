from __future__ import annotations

import pytest

from tests.unit.market.fakes import A_MIB, World
from xsc.base.limits import SLOT_STEP_BYTES
from xsc.market.pricing import PriceList
from xsc.terms.slot import STEP


@pytest.fixture
def world():
    return World()


@pytest.fixture
def pair(world):
    """A customer without room, to which room is worth the most that it pays, and a provider."""
    customer, provider = world.node(1, prices=PriceList(40 * A_MIB, 40 * A_MIB)), world.node(2)
    customer.room.storage = 0
    customer.room.steps = 0
    return customer, provider


@pytest.fixture
def three(world):
    """A customer and another, without room of their own, and a provider with 100 steps."""
    nodes = world.node(1), world.node(2), world.node(3)
    for node in nodes[:2]:
        node.room.storage = node.room.steps = 0
    nodes[2].room.storage = 100 * SLOT_STEP_BYTES
    nodes[2].room.steps = 100 * STEP["compute"]
    return nodes
