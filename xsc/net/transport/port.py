"""The transport port: one request to an address, one answer back.

A transport carries bytes. It knows no peers, signatures or methods; it bounds
what it reads (`limits`), and hands over the head of a request before its body,
so that a request can be refused unread. Adapters: `memory`, `http`; the suite
that both pass is tests/contracts/test_transport.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

Buffer: TypeAlias = "bytes | bytearray | memoryview"


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class RawRequest:
    """A request to send. The body is the buffers one after the other; they are not joined."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Sequence[Buffer] = ()


@dataclass(frozen=True, slots=True)
class RawResponse:
    """An answer. What `send` returns has its body in one buffer, or none."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[Buffer] = ()
    sent: Callable[[], None] = nothing
    """For who serves: to be called once, when the answer was written or is given up."""


@dataclass(slots=True)
class Traffic:
    """Bytes of bodies, both ways: what `xsc node status` calls traffic.

    A body that breaks off counts whole where it was sent, else not.
    """

    sent_bytes: int = 0
    received_bytes: int = 0


Take: TypeAlias = Callable[[Buffer], None]
"""Shown each piece that has come, in order, before it is kept; raises to refuse it."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that came in, its body still unread. Header names are lower case."""

    method: str
    path: str
    """The path as it was sent, with the query if there was one."""
    headers: Mapping[str, str]
    size_bytes: int
    """Announced length of the body, at most PEER_BODY_BYTES_MAX: nothing is held for it yet."""
    read: Callable[[Take], Awaitable[memoryview]]
    """Reads the whole body, once, and shows each piece. Raises FrameInvalid or PeerSilent where
    it does not come, and what the told one raises."""
    source: str = ""
    """Whom a connection is counted for with an unknown caller (`xsc.net.transport.addresses`)."""


Handler: TypeAlias = Callable[[Arrival], Awaitable[RawResponse]]


class Dropped(Exception):
    """The connection ended before any byte of an answer: the request may be sent again."""


class Transport(Protocol):
    """Sends requests and serves those of others."""

    @property
    def fingerprint(self) -> bytes | None:
        """SHA-256 of this end's certificate; None where it serves without TLS."""

    def addresses(self) -> tuple[str, ...]:
        """Return where others reach this end, once it serves."""

    async def send(
        self, address: str, fingerprint: bytes | None, request: RawRequest, timeout_ms: int
    ) -> RawResponse:
        """Return the answer of the node at an address.

        Args:
            address: as the other end's `addresses` gave it.
            fingerprint: of the certificate that it must show; None for one without TLS.
            request: what to send.
            timeout_ms: for all of it, from the connection to the last byte.

        Raises:
            PeerSilent: no connection, another certificate, or no whole answer in time.
            TooLarge: the answer is over PEER_BODY_BYTES_MAX.
            Dropped: see there.
        """

    async def serve(self, handler: Handler) -> None:
        """Begin to answer requests by the handler, and return.

        `sent` of each answer is called, also where nobody waits for it any more.
        """

    async def close(self) -> None:
        """Stop serving and drop all connections."""
