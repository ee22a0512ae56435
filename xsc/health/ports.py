"""What challenges need of others: of probes how peers are, of storage what lies where.

`xsc.node.build` connects them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol

from xsc.base.grade import Dimension
from xsc.terms.possession import Answered, Extent, Holding, Root

Role = Literal["customer", "provider"]


class Probed(Protocol):
    """What a probe came to."""

    @property
    def available(self) -> bool:
        """Whether the peer answered."""


class Probes(Protocol):
    """The availability of peers, as challenges see it."""

    def peers(self) -> Sequence[bytes]:
        """Return who is probed."""

    def is_up(self, peer: bytes) -> bool:
        """Say whether a peer answered its last probes."""

    def is_found(self, peer: bytes) -> bool:
        """Say whether a peer is silent here, and others brought a pong of it last."""

    async def probe(self, peer: bytes) -> Probed:
        """Probe a peer now.

        Raises:
            PeerUnknown: it is no peer any more.
        """

    def is_cut_off(self, peer: bytes) -> bool:
        """Say whether no other peer was heard lately: this node's own connection may be down."""

    def served(self, peer: bytes, dimension: Dimension) -> None:
        """Note that a peer did what it should."""

    def silent(self, peer: bytes) -> None:
        """Note that a peer is silent about what it holds, for so long that it counts as lost."""

    def report(
        self, peer: bytes, dimension: Dimension, what: str, *, evidence: bytes = b""
    ) -> None:
        """Note that a peer did something plainly wrong."""


class Payments(Protocol):
    """The market, which pays for what is proven."""

    def challenged(self, role: Role, peer: bytes, proof: Answered) -> None:
        """Note what a challenge of a customer came to, over all that it has at a provider."""

    def certified(self, customer: bytes, raw: bytes, leaves: int) -> None:
        """Keep a custodian's record, to be shown to its customer, if its list covers all."""


class Possessions(Protocol):
    """Storage, as challenges see it."""

    async def held(self, hosts: Collection[bytes]) -> Mapping[tuple[bytes, bytes], Holding]:
        """Return what this node looks after at hosts, by host and customer."""

    async def lost(
        self, host: bytes, customer: bytes, names: Collection[bytes] | None
    ) -> frozenset[bytes]:
        """Have extents at a host count as lost, and repaired; None names all that are there.

        Return those of them that the host should still have: others moved or were deleted.
        """

    async def whole(self, host: bytes, extent: Extent, body: int, root: Root) -> None:
        """Read a whole body from a host.

        Raises:
            ShardMismatch: the host gave other bytes.
            ShardsInsufficient: it says that it does not have it.
            XscError: what it answered, or that it is silent.
        """
