"""Ping and pong: the signed question and its signed answer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from xsc.base.limits import NONCE_BYTES
from xsc.identity.envelope import Count, Id32, Record

Nonce = Annotated[bytes, Field(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Ping(Record):
    """Signed by the prober."""

    node: Id32
    """The node that is asked."""
    nonce: Nonce
    sent_ms: Count


class Pong(Record):
    """Signed by the probed node: alive, and says whether it reaches the prober."""

    node: Id32
    """The node that answers."""
    nonce: Nonce
    """The ping's."""
    now_ms: Count
    """The answering node's wall clock."""
    reaches: bool | None
    """Whether the answering node's own probes reach the caller; None before it has tried."""


def check_pong(pong: Pong, ping: Ping) -> str | None:
    """Return what is wrong with an answer to a ping, or None."""
    if pong.node != ping.node:
        return "the pong names another node than the one asked"
    if pong.nonce != ping.nonce:
        return "the pong answers another ping"
    return None
