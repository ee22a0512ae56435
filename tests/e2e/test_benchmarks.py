"""Every word of `python -m benchmarks` runs to its end, in its shortest round."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.__main__ import ALONE, PARTS
from tests.e2e.conftest import REPOSITORY


def test_a_short_round_of_each_word_runs_to_its_end():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *PARTS, *ALONE],
        cwd=REPOSITORY,
        env={**os.environ, "BENCH_SMOKE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "DIFFERENT" not in done.stdout
    # Each begins with an empty line and its title.
    assert done.stdout.count("\n\n") >= len(PARTS) + len(ALONE)
