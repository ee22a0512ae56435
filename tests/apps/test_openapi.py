"""A program that makes requests of the OpenAPI document finds nothing in a node that has peers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xsc.client.core import find_place

CASES = os.environ.get("TEST_API_CASES", "8")
"""Of each endpoint."""


@pytest.mark.timeout(7200)
def test_no_request_makes_a_node_answer_otherwise_than_it_says(small_net, tmp_path):
    net = small_net
    net.up(3)
    place = find_place(net[0].home)
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("st"), "--config-file"),
            *(Path(__file__).with_name("schemathesis.toml"), "run", "--no-color"),
            *("--header", f"Authorization: Bearer {place.token}", "--max-examples", CASES),
            f"http://{place.host}:{place.port}/openapi.json",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    net.down()
    assert "api.request_bug" not in (net[0].home / "node.log").read_text()
