"""How much is measured: with BENCH_SMOKE=1 only so much that every line of a word runs.

The figures of such a round mean nothing. The variable reaches the processes that measure memory.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

SMOKE = os.environ.get("BENCH_SMOKE") == "1"


def least(usual: T, smoke: T) -> T:
    """Return how much there is of something."""
    return smoke if SMOKE else usual
