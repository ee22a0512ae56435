"""Every endpoint of `/v1` that needs the token."""

from __future__ import annotations

from typing import Any

from xsc.api import (
    home,
    jobs,
    ledger,
    market,
    monitor,
    objects,
    peers,
    programs,
    services,
    space,
    status,
)
from xsc.api.endpoint import Endpoint

SUBJECTS = (status, monitor, peers, objects, home, jobs, services, space, programs, market, ledger)
ENDPOINTS: tuple[Endpoint[Any, Any], ...] = tuple(
    each for subject in SUBJECTS for each in vars(subject).values() if isinstance(each, Endpoint)
)
