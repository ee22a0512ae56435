from __future__ import annotations

import pytest

from tests.unit.market.fakes import A_MIB, World
from xsc.market.pricing import PriceList


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
