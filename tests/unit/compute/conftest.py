from __future__ import annotations

import pytest

from tests.unit.compute.test_service import World


@pytest.fixture
async def world(network):
    made = World(network)
    for node in (made.customer, made.provider, made.other):
        await node.service.start()
    yield made
    for node in (made.customer, made.provider, made.other):
        await node.service.stop()
