"""Says what a large put comes to, before anything is sent."""

from __future__ import annotations

from xsc import api
from xsc.base.errors import XscError
from xsc.base.limits import GIB
from xsc.base.units import format_credits, format_size
from xsc.cli.output import say
from xsc.client.calls import Calls


def say_cost(calls: Calls, size_bytes: int | None, code: tuple[int, int] | None) -> None:
    """Print what more than a GiB costs a month; nothing for a stream, or where nobody quotes."""
    if size_bytes is None or size_bytes <= GIB:
        return
    try:
        coded = None if code is None else f"{code[0]},{code[1]}"
        found = calls.ask(
            api.market.ESTIMATE, api.market.Estimate(size_bytes=size_bytes, code=coded)
        )
    except XscError:
        return  # of what is wrong the put itself tells
    say(
        f"{format_size(size_bytes)}, {format_size(found['coded_bytes'])} coded {found['code']}, "
        f"cost about {format_credits(found['storage_micro'])} credits in 30 days "
        "at the prices quoted now"
    )
