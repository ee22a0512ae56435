"""A service that an owner deploys at a node: a standing order for each request of it.

Nobody could sign an order at the moment that a request comes. The node that holds the deployment
signs an execution receipt over it for each request (docs/design/services.md).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from xsc.base import limits
from xsc.identity.envelope import Count, Id32, Record

ServiceName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
VersionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
Variable = tuple[Annotated[str, Field(min_length=1)], str]


class Deployment(Record):
    """Signed by the owner: hold this module, and run it for whoever asks, within these limits.

    Of two deployments of one service the one of the higher generation holds.
    """

    owner: Id32
    provider: Id32
    """The node that holds it."""
    name: ServiceName
    version: VersionName
    generation: Annotated[int, Field(gt=0, lt=2**63)]
    module: Id32
    """SHA-256 of the module's bytes."""
    environment: Annotated[tuple[Variable, ...], Field(max_length=limits.ENVIRONMENT_MAX)]
    """Variables beside those of the request, sorted by name."""
    fuel_max: Annotated[int, Field(gt=0, le=limits.FUEL_MAX)]
    memory_bytes_max: Annotated[int, Field(gt=0, le=limits.MEMORY_BYTES_MAX)]
    timeout_ms: Annotated[int, Field(gt=0, le=limits.TIMEOUT_MS_MAX)]
    output_bytes_max: Annotated[int, Field(gt=0, le=limits.OUTPUT_BYTES_MAX)]
    concurrency: Annotated[int, Field(gt=0, le=limits.SERVICE_CONCURRENCY_MAX)]
    """Requests that may run at once."""
    created_ms: Count
