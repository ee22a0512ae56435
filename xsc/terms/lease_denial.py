"""A host's word that it does not know leases which its customer says that it granted."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from xsc.base.limits import LEASES_A_CUSTOMER_MAX
from xsc.identity.envelope import Count, Id32, Record


class LeaseDenial(Record):
    """Signed by the provider. With the lease, which it signed too, this shows that it broke it."""

    KIND: ClassVar[str] = "lease_denial"

    provider: Id32
    customer: Id32
    leases: Annotated[tuple[Id32, ...], Field(min_length=1, max_length=LEASES_A_CUSTOMER_MAX)]
    denied_ms: Count
