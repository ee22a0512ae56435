"""What storage needs of others beside peers: leases on both sides.

`xsc.node.build` puts `xsc.market` behind `Hosts` and `Leases`; storage does not know it. Peers
are behind `xsc.base.peering`, a store's synced write is `xsc.base.keyvalue.Commit`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from xsc.api.market import PassedOver
from xsc.base import errors
from xsc.base.grade import Dimension
from xsc.terms.lease import LeaseHandle


class Offered(Protocol):
    """Room at hosts, and why others gave none."""

    @property
    def leases(self) -> Sequence[LeaseHandle]:
        """Room at distinct nodes, the preferred first."""

    @property
    def refused(self) -> Mapping[bytes, errors.XscError]:
        """Where fewer nodes gave room than were wanted: why each of the others did not."""

    @property
    def passed_over(self) -> Sequence[PassedOver]:
        """Other nodes and leases, and why they were not used."""


class LeaseEnd(Protocol):
    """What is known of the end of a lease that this node took."""

    @property
    def end_ms(self) -> int:
        """When it ends as things stand."""

    @property
    def reason(self) -> str:
        """Why it was not renewed although it is time to; empty while all is well."""


class Hosts(Protocol):
    """The customer's side of storage leases, and what is known of hosts."""

    async def lease_hosts(
        self, *, size_bytes: int, count: int, exclude: frozenset[bytes] = frozenset()
    ) -> Offered:
        """Return room for `size_bytes` at each of `count` distinct nodes, fewer where fewer exist.

        Where that is fewer, or none, it is said of every other node why it gave none.
        """

    def unplaced(self, size_bytes: int, providers: int) -> None:
        """Take note that room for so much at so many providers more was refused, and is needed."""

    def placed(self, size_bytes: int) -> None:
        """Take note that what needed so much at a provider has its room."""

    async def used(self, lease_id: bytes, delta_bytes: int, *, found: bool = False) -> None:
        """Take note of bytes that a host confirmed to hold (+) or to have deleted (-).

        Those that were `found` there were stored before, and may be counted already.
        """

    async def refused(self, lease_id: bytes) -> None:
        """Take note that a host took no write under a lease, and ask whether it knows it."""

    def is_denied(self, lease_id: bytes) -> bool:
        """Return whether the host of a lease has signed that it does not know it."""

    def lease_end(self, lease_id: bytes) -> LeaseEnd | None:
        """Return when a lease that this node took ends; None where it is not known."""

    def lease_price(self, lease_id: bytes) -> int:
        """Return the micro-credits a GiB and hour under a lease that this node took; 0 of none."""

    def is_up(self, node: bytes) -> bool:
        """Say whether a peer answered its last probes."""

    def is_absent(self, node: bytes) -> bool:
        """Say whether it is confirmed that a node does not answer, or it is no peer."""

    def response_ms(self, node: bytes) -> int:
        """Return how long a peer is expected to take for a small answer."""

    def labels(self, node: bytes) -> tuple[str, str, str]:
        """Return the site and the owner that a node names, and the introducer that it came by.

        Empty where it names none, or is not known.
        """

    async def learn_labels(self, nodes: Collection[bytes]) -> frozenset[bytes]:
        """Ask nodes that are up for labels not heard yet; return those whose labels are known."""

    def peers(self) -> Sequence[bytes]:
        """Return every known peer that is not blocked."""

    def report(self, node: bytes, dimension: Dimension, what: str) -> None:
        """Take note that a peer did wrong, for example "shard_mismatch"."""


class Leases(Protocol):
    """The provider's side of storage leases."""

    def admit(self, lease_id: bytes, customer: bytes, size_bytes: int) -> None:
        """Keep that much room under the lease for a write, until `stored` is told of it.

        Raises:
            LeaseExhausted: no such lease of that customer, over, or without that room.
            CreditExceeded: the customer owes too much already.
            SpaceExhausted: none is kept for it, and none is free.
        """

    def stored(self, lease_id: bytes, admitted_bytes: int, held_bytes: int) -> None:
        """Count what came of a write that was admitted: so many bytes are held more."""

    def end_ms(self, lease_id: bytes) -> int | None:
        """Return when a lease ends or ended; None where it is not known."""

    def price(self, lease_id: bytes) -> int:
        """Return the micro-credits a GiB and hour under a lease; 0 where it is not known."""

    def settle_use(self, lease_id: bytes, delta_bytes: int) -> None:
        """Count bytes that are held no more under a lease (-)."""


class ChargeRead(Protocol):
    """Charges callers for what is read from the disk."""

    def __call__(self, caller: bytes, method: str, size: int, *, made: bool = False) -> None:
        """Charge a caller of a method for bytes that are to be read, or were: then it owes them.

        Raises:
            RateLimited: the caller has too little left.
        """
