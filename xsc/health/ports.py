"""What health needs of others: a way to call peers, who they are, and what to say of itself.

`xsc.node.build` gives all three; what health gives (`is_up`, `quality_ppm`,
`response_ms`) is declared where it is used, in the ports of `market`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from xsc.base.encoding import Value
from xsc.base.merkle import Part

Handler: TypeAlias = Callable[
    [bytes, dict[str, Value], Sequence[Part]],
    Awaitable[tuple[dict[str, Value], Sequence[bytes | memoryview]]],
]
"""Takes the authenticated caller, the header and verified parts; gives header and bodies."""


class Reply(Protocol):
    """What a peer answered; the parts are not verified."""

    @property
    def header(self) -> dict[str, Value]:
        """The decoded header."""

    @property
    def parts(self) -> list[memoryview]:
        """The bodies, in order."""


class Caller(Protocol):
    """Calls a method of a peer."""

    async def call(
        self,
        peer: bytes,
        method: str,
        header: dict[str, Value],
        parts: Sequence[Part] = (),
        *,
        timeout_ms: int | None = None,
    ) -> Reply:
        """Return the peer's answer.

        Raises:
            PeerSilent: no connection, or no answer in time.
            PeerUnknown: no such peer.
            XscError: the error that the peer answered with.
        """


class Peers(Protocol):
    """Who is known."""

    def peers(self) -> Sequence[bytes]:
        """Return every known peer that is not blocked, never the own node."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What this node tells whoever probes it."""

    name: str
    version: str
    storage_free_bytes: int
    storage_capacity_bytes: int
    compute_free_steps: int


class Describe(Protocol):
    """Gives the present state of this node."""

    def __call__(self) -> NodeInfo:
        """Return what to say of this node now."""
