"""The dashboard: a link that logs a browser in."""

from __future__ import annotations

from xsc.api import dashboard as api
from xsc.api.endpoint import Nothing
from xsc.dashboard.session import CODE_MS
from xsc.node.build import Node


async def login(node: Node, _: Nothing) -> api.Link:
    """Make a link to the dashboard."""
    return api.Link(url=f"{node.api_url}/login?code={node.sessions.new_code()}", good_ms=CODE_MS)
