from __future__ import annotations

import pytest

from tests.unit.market.fakes import World


@pytest.fixture
def world():
    return World()


@pytest.fixture
def pair(world):
    """A customer without room and a provider."""
    customer, provider = world.node(1), world.node(2)
    customer.room.storage = 0
    customer.room.steps = 0
    return customer, provider
