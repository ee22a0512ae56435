"""Which signed requests are new: a window of time, and what was seen in it.

A request is accepted once. Its creation must lie within REQUEST_WINDOW_MS of
this node's clock; within the window nonces are remembered. What is older than
the memory is refused by a *floor*: the start of this process, and whatever was
forgotten since. The quota bounds how many requests there are within it.

The floor alone leaves a hole: a peer whose clock is ahead signs requests that
lie after a restart that is still to come, and they could be played again to
the restarted node. So before such a request is accepted, a *horizon* beyond it
is written to the disk (what `admit` returns), and the next start takes it for
that peer's floor.

This module only decides; `xsc.net.service` reads the clock and writes horizons.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from xsc.base.errors import ClockSkewed, ReplayRefused
from xsc.base.limits import REQUEST_WINDOW_MS

HORIZON_STEP_MS = 2_000
"""How far a horizon is set beyond a request, so that not each request writes one."""


class _Seen:
    """What is remembered of one peer."""

    def __init__(self, floor_ms: int, horizon_ms: int) -> None:
        self.floor_ms = floor_ms
        self.horizon_ms = horizon_ms
        self.nonces: set[bytes] = set()
        self.order: list[tuple[int, bytes]] = []


class ReplayGuard:
    """The state of all peers; `admit` is its only step."""

    def __init__(self, *, boot_ms: int, horizons: Mapping[bytes, int]) -> None:
        self._boot_ms = boot_ms
        self._peers = {
            peer: _Seen(max(boot_ms, horizon), horizon) for peer, horizon in horizons.items()
        }

    def admit(self, peer: bytes, *, created_ms: int, nonce: bytes, now_ms: int) -> int | None:
        """Remember a request, if it is new.

        Returns a horizon where one must be on the disk before the request acts.

        Raises:
            ClockSkewed: created outside of the window; names the skew and its direction.
            ReplayRefused: seen before, or from before what is remembered.
        """
        if abs(created_ms - now_ms) > REQUEST_WINDOW_MS:
            raise ClockSkewed(_skew(created_ms - now_ms), hint="set the clocks of both nodes")
        seen = self._peers.setdefault(peer, _Seen(self._boot_ms, 0))
        self._forget(seen, now_ms - REQUEST_WINDOW_MS)
        if created_ms < seen.floor_ms:
            raise ReplayRefused(
                "the request was made before this node can tell whether it is new",
                hint="sign it anew",
            )
        if nonce in seen.nonces:
            raise ReplayRefused("the request was seen before", hint="sign it anew")
        seen.nonces.add(nonce)
        heapq.heappush(seen.order, (created_ms, nonce))
        if created_ms <= now_ms or created_ms < seen.horizon_ms:
            return None
        seen.horizon_ms = created_ms + HORIZON_STEP_MS
        return seen.horizon_ms

    @staticmethod
    def _forget(seen: _Seen, before_ms: int) -> None:
        """Drop nonces out of the window, and raise the floor over them.

        The floor keeps them refused even when this node's clock is set back.
        """
        while seen.order and seen.order[0][0] < before_ms:
            created_ms, nonce = heapq.heappop(seen.order)
            seen.nonces.discard(nonce)
            seen.floor_ms = max(seen.floor_ms, created_ms + 1)


def _skew(ahead_ms: int) -> str:
    seconds = f"{abs(ahead_ms) / 1000:.1f} s"
    if ahead_ms > 0:
        return f"the caller's clock is {seconds} ahead of this node's"
    return f"the caller's clock is {seconds} behind this node's"
