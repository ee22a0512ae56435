"""A service that an owner deploys at a node, and the receipt for one request of it.

The owner signs the deployment: it stands for an order of each request, which
nobody could sign at the moment that it comes. The node that holds it signs a
receipt over it for each request, where somebody pays (docs/design/services.md).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from xsc.base import limits
from xsc.identity.envelope import Count, Id32, Record
from xsc.terms.execution import Observed, Outcome

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


class ServiceReceipt(Record):
    """Signed by the node that holds a deployment, for one request."""

    deployment: bytes
    """The owner's signed deployment, whole."""
    lease_id: Id32
    number: Count
    """Grows with each request of the service at that node."""
    nonce: Annotated[bytes, Field(min_length=16, max_length=16)]
    """What the program's random bytes follow from; in text the request's id."""
    created_ms: Count
    """Where the program's clock began."""
    status: Annotated[int, Field(ge=200, le=599)]
    """What the caller was answered with."""
    outcome: Outcome
    observed: Observed
    amount_micro: Count
    """The price of this request under the lease."""
