"""A host's word that it does not know leases which its customer says that it granted."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from xsc.base.limits import LEASES_A_CUSTOMER_MAX
from xsc.identity.envelope import Count, Id32, Record


class LeaseDenial(Record):
    """Signed by the provider: it has no such lease at this moment.

    With the lease this does not show that the provider broke it: a lease of storage that
    holds nothing is taken back long before its end, and forgotten.
    """

    KIND: ClassVar[str] = "lease_denial"

    provider: Id32
    customer: Id32
    leases: Annotated[tuple[Id32, ...], Field(min_length=1, max_length=LEASES_A_CUSTOMER_MAX)]
    denied_ms: Count
