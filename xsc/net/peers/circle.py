"""Rules of the circle: who introduces whom to whom, and whose introduction counts.

A node knows a peer *directly* by an invitation, or because its operator confirmed it;
all others were introduced. Who is direct introduces whom it knows directly itself, by its
signature, and passes on what its own direct peers signed. A newcomer counts with its
introducer: the author of that signature where it is direct here, and else who introduced
that author. So it makes no difference who passes a newcomer on, and what came by one
introducer is bounded in number (INTRODUCED_A_PEER_MAX) and in distance
(INTRODUCTION_HOPS_MAX), whatever it signs and whoever passes it on. docs/design/net.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, TypeVar

from pydantic import Field

from xsc.base.limits import INTRODUCED_A_PEER_MAX, PEERS_MAX
from xsc.identity.envelope import Count, Id32, Record, author_of
from xsc.net.peers.roster import PeerInfo

INTRODUCTION_HOPS_MAX = 2
"""Between an introducer and whom it introduces: its own friends, and the friends of these."""

T = TypeVar("T")
_author_of = lru_cache(maxsize=PEERS_MAX)(author_of)


class Member(Record):
    """Signed by its origin: this node is of my circle."""

    node: Id32
    hops: Annotated[int, Field(ge=1, le=1)]
    """Between the two of them: nobody signs for whom others introduced to it."""
    since_ms: Count
    """When the origin came to know it, by its own clock."""


class Introduction(Record):
    """What a node publishes of one peer that it introduces; both parts are signed themselves."""

    member: bytes
    """By the origin."""
    record: bytes
    """By the one that is introduced: its address record, as it was when it was published."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a newcomer belongs: who answers for it, and how many introductions away it is."""

    introducer: bytes
    hops: int


def hops_to(info: PeerInfo) -> int:
    """Return how many introductions lie between a node and a peer that it knows; 0 is direct."""
    return 0 if info.through is None else info.hops


def origin_of(info: PeerInfo) -> bytes | None:
    """Return who signed that a peer is of its circle; None where there is no such record."""
    return _author_of(info.member) if info.member else None


def members(known: Iterable[PeerInfo]) -> list[tuple[PeerInfo, Member | None]]:
    """Return whom a node introduces, the nearest and oldest, with what is to be signed.

    That is None where the signed record of another is passed on. Only who takes introductions
    is introduced. All peers are told the same: each takes what it may (`place_for`).
    """
    found = [
        info
        for info in known
        if info.introducible
        and info.record
        and not info.blocked
        and hops_to(info) < INTRODUCTION_HOPS_MAX
        and (info.through is None or info.member)
    ]
    found.sort(key=lambda info: (hops_to(info), info.added_ms, info.node_id))
    named: list[tuple[PeerInfo, Member | None]] = []
    passed_on: Counter[bytes] = Counter()
    for info in found:
        if info.through is None:
            named.append((info, Member(node=info.node_id, hops=1, since_ms=info.added_ms)))
        elif is_within_share(passed_on[info.through], passed_on.total()):
            passed_on[info.through] += 1
            named.append((info, None))
    return named[:INTRODUCED_A_PEER_MAX]


def slots(held: Mapping[int, bytes], wanted: Collection[bytes]) -> dict[int, bytes | None]:
    """Return what to write, by number, so that a list has what is wanted and nothing else.

    What is there already stays where it is; None empties a place.

    Args:
        held: by number, from 0 on.
        wanted: at most INTRODUCED_A_PEER_MAX.
    """
    free = [number for number in range(INTRODUCED_A_PEER_MAX) if held.get(number) not in wanted]
    there = set(held.values())
    new = [item for item in wanted if item not in there]
    emptied: dict[int, bytes | None] = {number: None for number in free if number in held}
    return emptied | dict(zip(free, new, strict=False))


def may_introduce(introducer: PeerInfo) -> bool:
    """Say whether introductions of a peer count: it is known directly."""
    return introducer.through is None and not introducer.blocked


def is_within_share(own: int, taken: int) -> bool:
    """Say whether one origin may have one more passed on.

    One has at most half of what the others left, so that there is room for others.

    Args:
        own: of `taken`, how many it has.
        taken: how many of INTRODUCED_A_PEER_MAX are.
    """
    return 2 * (own + 1) <= INTRODUCED_A_PEER_MAX - (taken - own)


def place_for(origin: bytes, known: Sequence[PeerInfo]) -> Place | None:
    """Return the place of a newcomer by who signed its `member` record; None if it has none.

    Whom an introducer signs for itself, and whom those sign for that it introduced, are
    counted apart: guests of a peer leave room for all that are its own.
    """
    peers = {info.node_id: info for info in known}
    author = peers.get(origin)
    if author is None or author.blocked or len(known) >= PEERS_MAX:
        return None
    place = Place(author.through or origin, hops_to(author) + 1)
    introducer = peers.get(place.introducer)
    if introducer is None or not may_introduce(introducer) or place.hops > INTRODUCTION_HOPS_MAX:
        return None
    beside = [
        info
        for info in peers.values()
        if info.through == place.introducer and info.hops == place.hops
    ]
    if place.hops == 1:
        return place if len(beside) < INTRODUCED_A_PEER_MAX else None
    own = sum(origin_of(info) == origin for info in beside)
    return place if is_within_share(own, len(beside)) else None


def in_turn(items: Sequence[T], turn: int, most: int) -> Sequence[T]:
    """Return so many items at most: others each turn, and all of them in turn."""
    if len(items) <= most:
        return items
    start = turn * most % len(items)
    return [*items[start:], *items[:start]][:most]
