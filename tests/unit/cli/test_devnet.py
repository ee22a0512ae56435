"""How far a devnet is that starts: pairs that were introduced, and nodes that see all others."""

from __future__ import annotations

import time

import pytest

from tests.unit.client.stand_in import StandIn
from xsc.cli import devnet


@pytest.fixture
def three(tmp_path):
    """Three nodes; each knows all others, and that they offer something."""
    nodes = [StandIn(tmp_path / f"node-{number}") for number in range(3)]
    slots = [{"node": f"n{number}", "role": "offer"} for number in range(3)]
    for number, node in enumerate(nodes):
        peers = [
            {"id": f"n{other}", "state": "up", "introducer": None}
            for other in range(3)
            if other != number
        ]
        node.answers("GET", "/v1/status", {"id": f"n{number}"})
        node.answers("GET", "/v1/peers", {"peers": peers})
        node.answers("GET", "/v1/market/slots", {"slots": slots})
    yield [node.home for node in nodes]
    for node in nodes:
        node.close()


def test_each_pair_and_each_node_that_sees_all_is_told(three):
    pairs, nodes = [], []
    devnet.introduce(three, pairs.append)
    assert sum(pairs) == 3
    devnet.wait_until_healthy(three, time.monotonic() + 60, nodes.append)
    assert sum(nodes) == 6
