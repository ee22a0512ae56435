"""Storage: capacity, objects and their hosts, repairs; put and get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from xsc.dashboard.page import Action, Asked, Page
from xsc.dashboard.source import Node


async def gather(node: Node, _: Asked) -> Mapping[str, Any]:
    """Return what the page shows."""
    return {}


PAGES: Final = (Page("/storage", "Storage", "storage.html", gather),)
ACTIONS: Final[tuple[Action, ...]] = ()
