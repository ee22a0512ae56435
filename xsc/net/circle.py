"""Rules of the circle: who introduces whom to whom, and whose introduction counts.

A node knows a peer *directly* by an invitation, or because its operator confirmed it;
all others were introduced by a direct peer. An introduced peer introduces nobody. So
what came by one introducer is bounded in number (INTRODUCED_A_PEER_MAX) and in
distance (INTRODUCTION_HOPS_MAX), whatever that introducer signs. docs/design/net.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field

from xsc.base.limits import INTRODUCED_A_PEER_MAX, INTRODUCTION_HOPS_MAX, PEERS_MAX
from xsc.identity.envelope import Count, Id32, Record
from xsc.net.book import PeerInfo

T = TypeVar("T")


class Member(Record):
    """Signed by the introducer: this node is of my circle."""

    KIND: ClassVar[str] = "member"

    node: Id32
    hops: Annotated[int, Field(ge=1, le=INTRODUCTION_HOPS_MAX)]
    """1 where the introducer knows it directly, 2 where a direct peer introduced it."""
    since_ms: Count
    """When the introducer came to know it, by its own clock."""


def hops_to(info: PeerInfo) -> int:
    """Return how many introductions lie between a node and a peer that it knows; 0 is direct."""
    return 0 if info.through is None else info.hops


def members_for(peer: PeerInfo, known: Iterable[PeerInfo]) -> list[tuple[PeerInfo, Member]]:
    """Return whom to introduce to a peer, with what is to be signed: the nearest and oldest.

    Only who takes introductions is introduced, and only direct peers that take them are told.
    """
    if not (may_introduce(peer) and peer.introducible):
        return []
    found = [
        info
        for info in known
        if info.introducible
        and info.record
        and not info.blocked
        and peer.node_id not in (info.node_id, info.introducer)
        and hops_to(info) < INTRODUCTION_HOPS_MAX
    ]
    found.sort(key=lambda info: (hops_to(info), info.added_ms, info.node_id))
    return [
        (info, Member(node=info.node_id, hops=hops_to(info) + 1, since_ms=info.added_ms))
        for info in found[:INTRODUCED_A_PEER_MAX]
    ]


def may_introduce(introducer: PeerInfo) -> bool:
    """Say whether introductions of a peer count: it is known directly."""
    return introducer.through is None and not introducer.blocked


def room_for(introducer: bytes, known: Sequence[PeerInfo]) -> int:
    """Return how many peers more an introducer can make known: of its own share, and of all."""
    taken = sum(info.through == introducer for info in known)
    return max(0, min(INTRODUCED_A_PEER_MAX - taken, PEERS_MAX - len(known)))


def in_turn(items: Sequence[T], turn: int, most: int) -> Sequence[T]:
    """Return so many items at most: others each turn, and all of them in turn."""
    if len(items) <= most:
        return items
    start = turn * most % len(items)
    return [*items[start:], *items[:start]][:most]
