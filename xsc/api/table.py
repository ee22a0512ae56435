"""Every endpoint of `/v1` that needs the token."""

from __future__ import annotations

from typing import Any

from xsc.api import home, jobs, ledger, market, objects, peers, programs, services, space, status
from xsc.api.endpoint import Endpoint

ENDPOINTS: tuple[Endpoint[Any, Any], ...] = (
    *status.ENDPOINTS,
    *peers.ENDPOINTS,
    *objects.ENDPOINTS,
    *home.ENDPOINTS,
    *jobs.ENDPOINTS,
    *services.ENDPOINTS,
    *space.ENDPOINTS,
    *programs.ENDPOINTS,
    *market.ENDPOINTS,
    *ledger.ENDPOINTS,
)
