"""Clock domains: how a node gets its interval, and how others check it.

A founder grants itself a whole domain. An owner of an interval gives a part of it to a joiner by
a signed grant, with its own grant inside, so that a grant alone shows where it comes from.
Intervals are never given back: one that is lost is lost, and a node that lost its state asks
for a new one. docs/design/space.md, C5 to C8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import model_validator

from xsc.base.errors import RecordInvalid
from xsc.identity.envelope import Count, Id32, Record, open_signed
from xsc.space import itc, limits


class Grant(Record):
    """An interval for one node, by the node that gives it."""

    KIND: ClassVar[str] = "space_grant"

    giver: bytes | None
    """The giver's own grant; None where a founder grants itself a domain."""
    receiver: Id32
    interval: bytes
    granted_ms: Count

    @model_validator(mode="after")
    def _is_well_formed(self) -> Self:
        interval = itc.read_interval(self.interval)
        if interval == 0 or (self.giver is None and interval != 1):
            raise ValueError("a grant gives something, and a founder's everything")
        return self


@dataclass(frozen=True, slots=True)
class Granted:
    """What a grant proves."""

    node: bytes
    domain: bytes
    """Id of the founder's grant."""
    interval: itc.Interval
    givers: frozenset[bytes]
    """All from the founder on."""
    raw: bytes


def read_grant(
    raw: bytes, node: bytes, *, network: bytes, levels: int = limits.GRANT_LEVELS_MAX
) -> Granted:
    """Return what a grant proves of a node.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: it is none for that node, or its giver did not
            have what it gives.
    """
    signed = open_signed(raw, Grant, network=network, size_max=limits.GRANT_BYTES_MAX)
    grant, interval = signed.record, itc.read_interval(signed.record.interval)
    if grant.receiver != node:
        raise RecordInvalid("a grant for another node")
    if grant.giver is None:
        if signed.author != node:
            raise RecordInvalid("a founder grants a domain to itself")
        return Granted(node, signed.id, interval, frozenset(), raw)
    if levels == 1:
        raise RecordInvalid(f"a grant has at most {limits.GRANT_LEVELS_MAX} givers")
    giver = read_grant(grant.giver, signed.author, network=network, levels=levels - 1)
    if not itc.covers(giver.interval, interval):
        raise RecordInvalid("a grant of an interval that its giver did not have")
    return Granted(node, giver.domain, interval, giver.givers | {giver.node}, raw)


def counted(granted: Granted, others: Iterable[Granted]) -> itc.Interval:
    """Return where a node counts: what it was granted, without what others were.

    What its givers have around it does not count against it. Where two overlap otherwise, neither
    is believed there, so that they are concurrent.
    """
    interval = granted.interval
    for other in others:
        is_around = other.node in granted.givers and itc.covers(other.interval, granted.interval)
        if other.node != granted.node and other.domain == granted.domain and not is_around:
            interval = itc.minus(interval, other.interval)
    return interval
