"""Every word of `python -m benchmarks` runs to its end, in its shortest round."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.__main__ import ALONE, PARTS
from tests.e2e.conftest import REPOSITORY


# One worker plays what needs no network, another what shares one: that takes a minute of a core.
@pytest.mark.parametrize(
    "words",
    [
        pytest.param([word], id=word, marks=pytest.mark.xdist_group("benchmarks alone"))
        for word in ALONE
    ]
    + [pytest.param([*PARTS], id="network", marks=pytest.mark.timeout(900))],
)
def test_a_short_round_of_each_word_runs_to_its_end(words):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=REPOSITORY,
        env={**os.environ, "BENCH_SMOKE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "DIFFERENT" not in done.stdout
    # Each begins with an empty line and its title.
    assert done.stdout.count("\n\n") >= len(words)
