"""The peer-call port: how a subsystem asks a peer for something and answers one.

`xsc.net` provides it and the subsystems use it; it stands in `base` so that
none of them knows the other, and so that it is said once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from xsc.base.encoding import Value
from xsc.base.errors import XscError
from xsc.base.merkle import Part

Header: TypeAlias = dict[str, Value]
"""Of a call or an answer, decoded."""
Parts: TypeAlias = Sequence[Part]
"""What came with a call, verified."""
Answered: TypeAlias = "tuple[Header, Sequence[bytes | memoryview]]"
"""Header and bodies of an answer."""
Handler: TypeAlias = Callable[[bytes, Header, Parts], Awaitable[Answered]]
"""Takes the authenticated caller's id, the header and verified parts.

A handler that waits clears the header before: decoded, it takes many times its bytes."""
Asked: TypeAlias = tuple[Header, Parts]
"""Header and verified parts of a call."""
Outcome: TypeAlias = "Answered | XscError"
"""What came of one call of several."""
GroupHandler: TypeAlias = Callable[[bytes, Sequence[Asked]], Awaitable[Sequence[Outcome]]]
"""Takes calls of one caller and method that came together; gives what came of each, in order."""


class Reply(Protocol):
    """What a peer answered; the parts are not verified."""

    @property
    def header(self) -> dict[str, Value]:
        """The decoded header."""

    @property
    def parts(self) -> Sequence[memoryview]:
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

    def is_peer(self, node: bytes) -> bool:
        """Say whether a node is one of `peers`."""

    def introducer_of(self, node: bytes) -> str:
        """Return the id of whose word there is for a node: its own where it is known directly.

        Empty of a node that is not known.
        """
