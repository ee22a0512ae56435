"""How peers are judged: in which dimensions, and what comes of it (`xsc.health.score`)."""

from __future__ import annotations

from typing import Literal, TypeAlias

Dimension: TypeAlias = Literal["integrity", "availability", "compute", "payment"]
Grade: TypeAlias = Literal["new", "vetted", "watch", "suspended", "barred"]
"""From those that are not known yet to the worst."""
