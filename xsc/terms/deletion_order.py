"""A customer's word that a host need not keep something of an object any longer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from xsc.identity.envelope import Count, Id32, Record


class DeletionOrder(Record):
    """Signed by the customer: the host may delete what that customer stored of an object.

    A host that leaves keeps the orders as its proof that nobody needs what it held.
    """

    customer: Id32
    host: Id32
    locate: Id32
    """The object's locate id."""
    columns: Annotated[tuple[Annotated[int, Field(ge=0, lt=256)], ...], Field(max_length=256)]
    """The columns to delete; none named: all that the customer stored under the locate id."""
    final: bool
    """Whether a put of that customer and object that comes later is refused, too."""
    ordered_ms: Count
