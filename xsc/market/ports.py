"""What the market needs of others, each as small as its use of it, and what the operator decides.

Peers are called through `xsc.base.peering`. Credit is kept by `ledger`, quality
by `health`, standing by `allocation`, capacity by
`storage` and `compute`; `xsc.node.build` puts them together. What the market
gives is declared where it is used: in the ports of `storage` and `compute`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from xsc.base import errors, limits, peering
from xsc.base.grade import Dimension, Grade
from xsc.market.pricing import PriceList
from xsc.terms.pricing import Quote
from xsc.terms.quote import Kind, Tier
from xsc.terms.slot import Entitlement, NeedSlot

EXHAUSTED: Final[dict[Kind, type[errors.XscError]]] = {
    "storage": errors.SpaceExhausted,
    "compute": errors.ComputeExhausted,
}
"""The error of a node that has too little left to lease."""

NeedOf: TypeAlias = Callable[[bytes, Kind, bytes | None], bytes]
"""Returns the need that a lease counts for; by customer, kind, and the need that it names."""


class Credit(Protocol):
    """What peers may owe this node, and how their debt is booked."""

    def credit_left(self, peer: bytes) -> int:
        """Return the micro-credits that the peer may still come to owe; can be negative."""

    def shares_with(self, peer: bytes) -> Sequence[bytes]:
        """Return the peers whose debts count together with one's, itself among them."""

    async def collect(self, voucher: bytes) -> int:
        """Book what a voucher leaves unsettled, and return what is settled of its account in all.

        Calls with the same voucher book once, also after a fault.

        Raises:
            CreditExceeded, EntryRefused, PeerSilent: nothing is booked yet; ask again.
        """

    def settled(self, account: bytes) -> int:
        """Return the micro-credits that are booked in an account in all."""


class Quality(Protocol):
    """How peers have served so far."""

    def grade(self, peer: bytes) -> Grade:
        """Return how the peer is judged."""

    def served(self, peer: bytes, dimension: Dimension) -> None:
        """Note that the peer did what it should."""

    def is_up(self, peer: bytes) -> bool:
        """Return whether the peer answered lately."""

    def quality_ppm(self, peer: bytes) -> int:
        """Return the peer's score, 0 to 1 000 000."""

    def report(self, peer: bytes, dimension: Dimension, what: str) -> None:
        """Count a plainly wrong answer of the peer."""

    async def probe_unknown(self) -> None:
        """Probe the peers that were not probed since the start."""


class Standing(Protocol):
    """What nodes have published: recognition, and what they offer."""

    def tier(self, peer: bytes) -> Tier:
        """Return the tier on which the peer is served."""

    def quote(self, kind: Kind, provider: bytes, customer: bytes) -> Quote | None:
        """Return what a provider asks of a customer now; None where it offers it nothing."""

    def labels(self, node: bytes) -> tuple[str, str] | None:
        """Return the site and the owner that a node names; None where it has published nothing."""

    async def learn(self, nodes: Sequence[bytes], *, anew: bool = False) -> None:
        """Fetch what nodes that are up have published, where it is not here yet, or anew."""


class Capacity(Protocol):
    """What this node has to offer, to others and to itself."""

    def level(self, kind: Kind) -> int:
        """Return what there is of a kind in all: bytes, or fuel steps a second."""

    def free(self, kind: Kind) -> int:
        """Return the bytes neither held nor reserved by a write that is under way, or all fuel.

        Nothing but leases takes fuel, and the market counts those.
        """


@dataclass(frozen=True, slots=True)
class MarketSettings:
    """What the operator decides."""

    prices: PriceList
    price_max: Mapping[Kind, int]
    """The most that is paid."""
    settle_interval_ms: int
    """How often vouchers go to providers."""
    booking_interval_ms: int
    """How long a voucher waits at most until it is booked."""
    site: str = ""
    owner: str = ""
    lease_warning_ms: int = limits.LEASE_WARNING_MS
    """How long before its end a lease that was not renewed is warned of."""
    storage_lease_ms: int = limits.STORAGE_LEASE_MS
    """How long leases of storage last: those that are taken, and at most those that are granted."""


@dataclass(slots=True)
class MarketPorts:
    """What the market needs of the other services.

    Those that need the market are made after it, and then set what they give.
    """

    peers: peering.Peers
    credit: Credit
    quality: Quality
    standing: Standing
    capacity: Capacity
    leaving: Callable[[], Collection[bytes]]
    """Returns the nodes that are leaving the network: no room is taken there."""
    granted: Callable[[], Sequence[Entitlement]] = field(init=False)
    """Returns what this node has granted to needs of others, ahead of use."""
    received: Callable[[], Sequence[Entitlement]] = field(init=False)
    """Returns what others offer to this node's needs, once it is to take leases on it."""
    needs: Callable[[], Sequence[NeedSlot]]
    """Returns what this node says that it needs."""
    need_of: NeedOf
    on_need: Callable[[], None]
    """Called when what this node needs by default may have changed."""
    prove: Callable[[Sequence[bytes]], Awaitable[object]] = field(init=False)
    """Challenges providers now: what they hold is paid up to the last proof of it."""
    custodians: Callable[[], Collection[bytes]] = field(init=False)
    """Returns whom this node named as custodians of what it stored."""
    on_denied: Callable[[Collection[bytes]], Awaitable[None]] = field(init=False)
    """Called with the leases of this node that a provider has signed not to know."""
