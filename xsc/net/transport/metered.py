"""A transport that counts the bytes of bodies, both ways: what `xsc node status` calls traffic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from xsc.net.transport.port import (
    Arrival,
    Buffer,
    Handler,
    RawRequest,
    RawResponse,
    Take,
    Transport,
)


def _size(buffers: Iterable[Buffer]) -> int:
    return sum(len(buffer) for buffer in buffers)


class Metered:
    """Passes everything on. A body that breaks off counts whole where it was sent, else not."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.sent_bytes = 0
        self.received_bytes = 0

    @property
    def fingerprint(self) -> bytes | None:
        """SHA-256 of this end's certificate; None where it serves without TLS."""
        return self._transport.fingerprint

    def addresses(self) -> tuple[str, ...]:
        """Return where others reach this end, once it serves."""
        return self._transport.addresses()

    async def send(
        self, address: str, fingerprint: bytes | None, request: RawRequest, timeout_ms: int
    ) -> RawResponse:
        """Return the answer of the node at an address; errors as the port says."""
        self.sent_bytes += _size(request.body)
        answer = await self._transport.send(address, fingerprint, request, timeout_ms)
        self.received_bytes += _size(answer.body)
        return answer

    async def serve(self, handler: Handler) -> None:
        """Begin to answer requests by the handler, and return."""

        async def counted(arrival: Arrival) -> RawResponse:
            async def read(take: Take) -> memoryview:
                body = await arrival.read(take)
                self.received_bytes += len(body)
                return body

            answer = await handler(replace(arrival, read=read))
            self.sent_bytes += _size(answer.body)
            return answer

        await self._transport.serve(counted)

    async def close(self) -> None:
        """Stop serving and drop all connections."""
        await self._transport.close()
