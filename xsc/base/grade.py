"""The dimensions in which peers are judged, and their grades. The rules: `xsc.health.score`."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

Dimension: TypeAlias = Literal["integrity", "availability", "compute", "payment"]
Grade: TypeAlias = Literal["new", "vetted", "watch", "suspended", "barred"]
"""From those that are not known yet to the worst."""

GRADES: Final[tuple[Grade, ...]] = get_args(Grade)
UNTRUSTED: Final[frozenset[Grade]] = frozenset({"suspended", "barred"})
"""Who takes nothing new while there are others, or at all."""
