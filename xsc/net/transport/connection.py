"""One HTTP/1.1 connection, of either side: its transport, and whether the other end reads.

The server's side is `fast_path`, the client's `connection_pool`. Both read heads by `parser`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from xsc.base.limits import KIB
from xsc.net.transport.port import Buffer

PIECE_BYTES = 128 * KIB
"""Written at once: the event loop copies what the socket does not take. The slowest body that is
still allowed brings more in NO_PROGRESS_MS."""


class Connection(asyncio.BaseProtocol):
    """Keeps the transport of one connection, and waits until it takes more."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        """Set while the transport takes more, and once it is lost: nobody waits for ever."""
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (each end is one)
        """Drop the transport."""
        self._transport = None
        self._writable.set()

    def pause_writing(self) -> None:
        """Have writers wait: the other end does not read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let writers go on."""
        self._writable.set()


def pieces(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """Yield the buffers in pieces of PIECE_BYTES at most; small bodies as one."""
    if sum(len(buffer) for buffer in buffers) <= PIECE_BYTES:
        yield b"".join(buffers)
        return
    for buffer in buffers:
        view = memoryview(buffer)
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]
