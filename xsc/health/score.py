"""How far to rely on a peer: the lower bound of its availability, in integers.

The Wilson score interval's lower bound (z = 1.645, one-sided 95 %) says what
share a peer answers at least, so that ten answers of ten count for less than a
hundred of a hundred. It is computed exactly: the result is the floor of the
real value in parts per million, and therefore keeps its laws to the last unit:

- 0 <= quality <= 1 000 000;
- one more answer never lowers it, one more miss never raises it.

A peer begins as if it had answered z² probes (about 2.7), which puts it at
exactly one half: usable, but behind every peer that has proven itself.

A wrong answer halves the score, and takes ever less of it as days pass: once it is
not kept any more, nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from xsc.base import limits, units

_SCALE = 1_000_000
_HALVINGS = limits.PPM.bit_length()
"""After so many nothing is left."""
_Z_SQUARED = 2_706_025
"""1.645², in units of 1/_SCALE."""


def _lower_bound(good: int, bad: int) -> int:
    """Return the bound for counts given in units of 1/_SCALE, not both zero.

    With a, b the counts, n = a + b and z² all in that unit, the bound is
    ((2a + z²) - sqrt((4 z² a b + z⁴ n) / n)) / 2 (n + z²).
    """
    count = good + bad
    under_root = 4 * _Z_SQUARED * good * bad + _Z_SQUARED * _Z_SQUARED * count
    # The least integer that is not below PPM times the root.
    root = isqrt(units.ceil_div(limits.PPM * limits.PPM * under_root, count) - 1) + 1
    return max(0, (limits.PPM * (2 * good + _Z_SQUARED) - root) // (2 * (count + _Z_SQUARED)))


def quality_ppm(answered: int, missed: int) -> int:
    """Return a peer's score, 0 to 1 000 000; 500 000 before the first probe."""
    return _lower_bound(answered * _SCALE + _Z_SQUARED, missed * _SCALE)


def trust_ppm(wrong: Mapping[int, int]) -> int:
    """Return what wrong answers leave of a score; PPM where there are none.

    Args:
        wrong: how many there were, by age in buckets, 0 to BUCKETS_KEPT - 1.
    """
    left = limits.PPM
    for age, count in sorted(wrong.items()):
        for _ in range(min(count, _HALVINGS)):
            left = left * (limits.BUCKETS_KEPT + age) // (2 * limits.BUCKETS_KEPT)
    return left
