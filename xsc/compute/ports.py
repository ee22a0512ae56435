"""The ports of compute: calls to peers, leases, the provider's book, stored inputs.

Peers are reached through `net`, leases and the book are kept by `market`;
`xsc.node.build` puts them together. The sandbox port is in `xsc.compute.wasm.sandbox`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from xsc.base.grade import Dimension
from xsc.terms.lease import LeaseHandle, RunTerms


class ComputeLeases(Protocol):
    """The customer's side of the market."""

    async def lease_compute(
        self,
        *,
        fuel_steps: int,
        on: bytes | None,
        saved: Mapping[bytes, int] | None = None,
        wait_ms: int = 0,
    ) -> LeaseHandle:
        """Return a lease to run under, on that node or on the best.

        Args:
            fuel_steps: the most that may be billed.
            on: the node; None for the best.
            saved: how many bytes of the job need not be sent to a node: at about the same price
                such a one is better.
            wait_ms: how long it may wait until others of the many runs of this node there end.

        Raises:
            NoOffers, ComputeExhausted: nobody offers it.
            RateLimited: it had to wait for longer.
        """

    async def lease_providers(
        self, *, fuel_steps: int, count: int, exclude: frozenset[bytes]
    ) -> Sequence[LeaseHandle]:
        """Return a lease at each of `count` other nodes, fewer where fewer offer it.

        Nodes of different sites and owners come first: a provider and its verifier should not
        belong to one person.

        Raises:
            NoOffers: nobody offers it.
        """

    async def refused(self, lease_id: bytes) -> None:
        """Prefer other leases for a while, because a provider runs nothing under this one."""

    def report(self, node: bytes, dimension: Dimension, what: str) -> None:
        """Record misconduct of a peer, for example "dissent"."""

    async def spent(self, lease_id: bytes, fuel_steps: int) -> None:
        """Record what a verified receipt bills, and extend the voucher."""

    def unused(self, lease_id: bytes, fuel_steps: int) -> None:
        """Take back what was leased for a run that its provider refused, or could not end."""


class ComputeBook(Protocol):
    """The provider's side of the market."""

    def compute_terms(self, lease_id: bytes, customer: bytes, fuel_steps: int) -> RunTerms:
        """Return the terms of a run that may be billed so much; `admit_compute` comes next.

        Raises:
            LeaseExhausted: the lease is over, not this customer's, or never of so many steps.
            CreditExceeded: the customer has reached its limit, or has not so much credit.
        """

    async def admit_compute(
        self, lease_id: bytes, customer: bytes, fuel_steps: int, wait_ms: int
    ) -> None:
        """Reserve the steps, once the customer's other calls leave enough of lease and credit.

        Raises:
            LeaseExhausted: they have used what the lease was for.
            CreditExceeded: the customer has reached its limit.
            RateLimited: they did not end in time, or too many wait.
        """

    def used_compute(self, lease_id: bytes, reserved_steps: int, used_steps: int) -> None:
        """Replace a reservation by the steps that were used."""


class InputObject(Protocol):
    """A stored object that a job reads as a file."""

    @property
    def name(self) -> str:
        """The file's name, without a slash."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    @property
    def digest(self) -> bytes:
        """The SHA-256 of its content."""

    @property
    def reference(self) -> bytes:
        """Lets another node read this object, and no other."""

    @property
    def spared(self) -> Mapping[bytes, int]:
        """How many bytes of it each node that holds shards need not receive."""

    async def read(self) -> bytes:
        """Return its content."""


class InputReader(Protocol):
    """Reads objects for the jobs of others."""

    async def read_reference(self, raw: bytes, size_max: int) -> tuple[bytes, int]:
        """Return an object's content, and how many bytes were received from other nodes for it.

        Raises:
            TooLarge: it has more bytes than that; nothing was fetched.
            XscError: it cannot be read from here.
        """


class ServiceLeases(ComputeLeases, Protocol):
    """The leases of an owner of services."""

    async def lease_service(self, *, fuel_steps: int, on: bytes) -> LeaseHandle:
        """Return a new lease at a node for a service there, which no run uses.

        Raises:
            NoOffers: it offers none.
        """

    def price_and_room(self, lease_id: bytes, provider: bytes) -> tuple[int, int] | None:
        """Return the price a Gfuel of a compute lease taken there, and the steps left under it.

        None where no such lease is known.
        """

    def rates_at(self, provider: bytes) -> Sequence[bytes]:
        """Return the leases there with a cleared rate for services, the largest first."""


class ServiceBook(ComputeBook, Protocol):
    """The book of a holder of services."""

    def end_ms(self, lease_id: bytes) -> int | None:
        """Return when a lease that was granted ends; None where it is not known."""
