"""Calls that end early where the peer has stopped answering.

A long call may have much to do, or its peer may be gone. While a call takes long, its
peer is pinged. Where that does not answer, the call ends with `PeerSilent`, long before
its timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from xsc.base import encoding, errors, ids, merkle, peering
from xsc.base.clock import Clock

ATTEND_FIRST_MS = 500
"""After a call has taken that long, its peer is asked whether it is there; then more rarely."""
ATTEND_LAST_MS = 4_000


class Attended:
    """A caller that does not wait for a peer that is gone.

    Args:
        clock: the node's.
        caller: reaches the peers.
        is_there: says whether a peer answers at all, asked now.
    """

    def __init__(
        self, clock: Clock, caller: peering.Caller, is_there: Callable[[bytes], Awaitable[bool]]
    ) -> None:
        self._clock = clock
        self._caller = caller
        self._is_there = is_there

    async def call(
        self,
        peer: bytes,
        method: str,
        header: dict[str, encoding.Value],
        parts: Sequence[merkle.Part] = (),
        *,
        timeout_ms: int | None = None,
    ) -> peering.Reply:
        """Return the peer's answer; errors as the port says."""
        try:
            async with asyncio.timeout(None) as patience:
                watch = asyncio.create_task(self._watch(peer, patience))
                try:
                    return await self._caller.call(
                        peer, method, header, parts, timeout_ms=timeout_ms
                    )
                finally:
                    watch.cancel()
        except TimeoutError:
            if not patience.expired():
                raise
            raise errors.PeerSilent(f"the peer {ids.short(peer)} has stopped answering") from None

    async def _watch(self, peer: bytes, patience: asyncio.Timeout) -> None:
        """Ping the peer at growing intervals; end the call once it does not answer."""
        pause_ms = ATTEND_FIRST_MS
        while True:
            await self._clock.sleep_ms(pause_ms)
            if not await self._is_there(peer):
                patience.reschedule(asyncio.get_running_loop().time())
                return
            pause_ms = min(2 * pause_ms, ATTEND_LAST_MS)
