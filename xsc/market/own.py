"""The leases of a node with itself: of no price and no end, under which it uses what is free.

They are used as any other lease is. Nothing is kept free for them or owed under them, so nobody
signs them, and they are in no list of leases and on no disk.
"""

from __future__ import annotations

from typing import Final

from xsc.market.lease import LeaseTerms, LeaseUse
from xsc.market.lease_entry import LeaseEntry, Role
from xsc.market.quote import QUANTITY_MAX
from xsc.market.room import EVER_MS
from xsc.terms.lease import OWN_COMPUTE, OWN_STORAGE
from xsc.terms.quote import Kind

OWN: Final[dict[Kind, bytes]] = {"storage": OWN_STORAGE, "compute": OWN_COMPUTE}


def own_leases(role: Role, node: bytes) -> dict[bytes, LeaseEntry]:
    """Return the entries of a node in one role, by lease."""
    return {
        lease_id: LeaseEntry(
            role,
            LeaseTerms(lease_id, kind, node, node, 0, QUANTITY_MAX, 0, EVER_MS),
            LeaseUse(touched_ms=0, lapsed=True),
            raw=b"",
            request_id=b"",
        )
        for kind, lease_id in OWN.items()
    }
