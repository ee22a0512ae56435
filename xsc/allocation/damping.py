"""Damping: how much of its need a node states as active, from what it was granted beyond it.

Under `proportional` the factor scales needs, as in the original. Elsewhere it limits how fast new
asks are published, and is no entitlement (docs/design/allocation.md, G5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from xsc.base.limits import DAMPING_HISTORY_MAX, PPM
from xsc.base.units import ceil_div

SMOOTH_PPM: Final = PPM
MODERATE_PPM: Final = 800_000
OSCILLATING_PPM: Final = 500_000

OVER_MAX: Final = 2**31 - 1
"""What is beyond needs counts up to here: a ring of i32 has it."""

History: TypeAlias = tuple[tuple[int, int], ...]
"""What was granted beyond the needs, in ppm of them, and when in milliseconds, the oldest first."""


def over_allocated(needs: Mapping[bytes, int], received: Mapping[bytes, int]) -> int:
    """Return what is received beyond each need, in ppm of it, in all.

    One need's excess serves no other, and steps of bytes and of fuel do not add up.
    """
    return sum(
        max(0, units - needs[need]) * PPM // needs[need]
        for need, units in received.items()
        if need in needs
    )


def observe(history: History, over: int, now_ms: int) -> History:
    """Return the history with one more computation.

    The original keeps three of the last 30 s, or the last three where these are fewer: the last
    three in both cases.
    """
    return (*history, (min(over, OVER_MAX), now_ms))[-DAMPING_HISTORY_MAX:]


def factor_ppm(history: History) -> int:
    """Return the factor of a history.

    Up and down again, or down and up, oscillates; so does what is over-allocated by the same
    amount each time. What never rises is smooth, and so are less than three computations.
    """
    if len(history) < DAMPING_HISTORY_MAX:
        return SMOOTH_PPM
    first, second, third = (over for over, _ in history[-DAMPING_HISTORY_MAX:])
    if first < second > third or first > second < third or first == second == third > 0:
        return OSCILLATING_PPM
    return SMOOTH_PPM if first >= second >= third else MODERATE_PPM


def publish_delay_ms(debounce_ms: int, damping_ppm: int) -> int:
    """Return how long a new ask waits before it is published: the longer, the more it swings."""
    assert damping_ppm > 0, "no history gives 0"
    return ceil_div(debounce_ms * PPM, damping_ppm)
