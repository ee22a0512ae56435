"""Compute, programs and space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from xsc.dashboard.page import Asked, Page
from xsc.dashboard.source import Node


async def gather(node: Node, _: Asked) -> Mapping[str, Any]:
    """Return what the page shows."""
    return {}


PAGES: Final = (
    Page("/compute", "Compute", "compute.html", gather),
    Page("/programs", "Programs and space", "programs.html", gather),
)
