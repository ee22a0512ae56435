"""What the ledger needs of others: a way to call peers.

Peers are reached through `net`; vouchers are handed over by the market, which
sees the ledger as its port `Credit`. `xsc.node.build` puts them together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
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
