"""What all simulations share: they do without what only costs time."""

from __future__ import annotations

import gc

import pytest

from tests.sim.signatures import simulated


@pytest.fixture(autouse=True)
def _quick():
    usual = gc.get_threshold()
    # A world is some hundred thousand objects that live as long as it does.
    gc.set_threshold(50_000, 20, 20)
    with simulated():
        yield
    gc.set_threshold(*usual)
