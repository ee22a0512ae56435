"""Every endpoint of `/v1` that needs the token."""

from __future__ import annotations

from typing import Any

from xsc import api
from xsc.api.endpoint import Endpoint

SUBJECTS = tuple(getattr(api, name) for name in api.__all__)
ENDPOINTS: tuple[Endpoint[Any, Any], ...] = tuple(
    each for subject in SUBJECTS for each in vars(subject).values() if isinstance(each, Endpoint)
)
