"""Large bodies go to a peer one after the other, each with the whole line for itself.

Together they would not arrive sooner, only all of them late; and were this node
killed, each would have arrived in part and count for nothing.
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
    """Wait until a body may be sent; what is given is called once it has left.

    Where it was not called, leaving the context does the same.
    """
    if size_bytes <= BATCH_CALL_BYTES_MAX:
        yield lambda: None
        return
    async with turns.of(peer) as left:
        yield left
