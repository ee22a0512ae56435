"""Sends large bodies to a peer one at a time, each at the full bandwidth.

Concurrent bodies would all arrive late, and none sooner. If this node were killed,
each would be incomplete, and therefore useless.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from xsc.base.limits import BATCH_CALL_BYTES_MAX
from xsc.base.turns import Turns


@asynccontextmanager
async def turn_to_send(
    turns: Turns[str], peer: str, size_bytes: int
) -> AsyncIterator[Callable[[], None]]:
    """Wait until a body may be sent; yield a function that ends the turn.

    Call it once the body is sent. Leaving the context ends the turn as well.
    """
    if size_bytes <= BATCH_CALL_BYTES_MAX:
        yield lambda: None
        return
    async with turns.of(peer) as left:
        yield left
