from __future__ import annotations

import pytest

from tests.unit.client.stand_in import StandIn


@pytest.fixture
def stand_in(tmp_path):
    server = StandIn(tmp_path / "home")
    yield server
    server.close()
