"""A folder in memory for tests of real databases: how long a disk takes to sync is not tested."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from xsc.base.clock import InlineExecutor, ManualClock
from xsc.base.limits import MIB
from xsc.base.log import SilentLog
from xsc.identity.context import Context

MEMORY = Path("/dev/shm")
ROOM_BYTES = 1024 * MIB


@pytest.fixture
def tmp_path(tmp_path):
    """Return an empty folder: in memory, where the system offers some that is large enough."""
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="xsc-test-") as folder:
        yield Path(folder)


def made_for(key, network, clock=None, executor=None):
    """Return what a service of a node is made with that reaches nobody and keeps nothing."""
    ports = (clock or ManualClock(), None, executor or InlineExecutor(), None, SilentLog())
    return Context(key, network, *ports, None, None)
