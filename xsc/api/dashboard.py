"""The dashboard: pages for a browser on this machine."""

from __future__ import annotations

from xsc.api.endpoint import Model, Nothing, post


class Link(Model):
    """What logs one browser in, once."""

    url: str
    good_ms: int
    """For how long."""


LOGIN = post("/v1/dashboard/login", Nothing, Link, "Make a link to the dashboard.", status=201)
