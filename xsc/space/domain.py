"""Clock domains: how a node gets its interval, and how others check it.

A founder signs a genesis; its hash is the domain, all of which the founder owns. An owner of
an interval gives a part of it to a joiner by a signed grant. The chain from the genesis to
the newest grant proves an interval. Intervals are never given back: one that is lost is
lost, and a node that lost its state asks for a new one. docs/design/space.md, C5 to C8.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import model_validator

from xsc.base.encoding import decode, encode
from xsc.base.errors import RecordInvalid
from xsc.identity.envelope import Count, Id32, Record, Signed, kind_of, open_signed
from xsc.space.itc import (
    Interval,
    covers,
    cut_grant,
    depth_of,
    interval_bytes,
    read_interval,
    sum_intervals,
)
from xsc.space.limits import CLOCK_DEPTH_MAX
from xsc.space.record import Sequence

CHAIN_ITEMS_MAX = CLOCK_DEPTH_MAX // 2 + 2
"""Each grant is cut at least two levels deeper; a genesis and an own grant beside."""


class Genesis(Record):
    """The beginning of a clock domain. Its id is the domain."""

    KIND: ClassVar[str] = "space_genesis"

    founder: Id32
    founded_ms: Count


class Grant(Record):
    """One part of the giver's interval, for one joiner."""

    KIND: ClassVar[str] = "space_grant"

    domain: Id32
    parent: Id32
    """Id of the genesis or grant by which the giver has its own interval."""
    number: Sequence
    """Of this grant among those of the giver under this parent, from 1."""
    receiver: Id32
    interval: bytes
    kept: bytes
    """What the giver has left."""

    @model_validator(mode="after")
    def _is_well_formed(self) -> Self:
        given, kept = read_interval(self.interval), read_interval(self.kept)
        if given == 0 or kept == 0:
            raise ValueError("a grant gives something and keeps something")
        sum_intervals(given, kept)
        return self


@dataclass(frozen=True, slots=True)
class Holding:
    """The interval of one node, and what is needed to grant from it."""

    domain: bytes
    node: bytes
    source: bytes
    """Id of the genesis or grant that gave the node its interval."""
    first: Interval
    """The interval as it was given."""
    kept: Interval
    """What is left of it."""
    granted: int = 0
    """Number of the last grant."""


def founded(genesis: Signed[Genesis]) -> Holding:
    """Return the holding of a founder.

    Raises:
        RecordInvalid: it was signed by another node than it names.
    """
    if genesis.author != genesis.record.founder:
        raise RecordInvalid("a genesis is signed by its founder")
    return Holding(genesis.id, genesis.author, genesis.id, 1, 1)


def next_grant(holding: Holding, receiver: bytes) -> tuple[Grant, Holding]:
    """Return the grant for a joiner, and the giver's holding once the grant is stored.

    The giver stores the signed grant before it sends it, and sends the same one to a joiner
    that asks again.

    Raises:
        SpaceExhausted: nothing is left to give.
    """
    number = holding.granted + 1
    first_depth = depth_of(holding.first)
    kept, given = cut_grant(holding.kept, first_depth, number)
    grant = Grant(
        domain=holding.domain,
        parent=holding.source,
        number=number,
        receiver=receiver,
        interval=interval_bytes(given),
        kept=interval_bytes(kept),
    )
    return grant, Holding(holding.domain, holding.node, holding.source, holding.first, kept, number)


def follow(holding: Holding, grant: Signed[Grant], node: bytes) -> Holding:
    """Return the holding of a node, giver or receiver, after a grant from a holding.

    Raises:
        RecordInvalid: the giver did not have what it grants.
    """
    record = grant.record
    given, kept = read_interval(record.interval), read_interval(record.kept)
    if (
        grant.author != holding.node
        or record.domain != holding.domain
        or record.parent != holding.source
        or record.number <= holding.granted
        or not covers(holding.kept, sum_intervals(given, kept))
    ):
        raise RecordInvalid("a grant of an interval that its giver did not have")
    if node == record.receiver:
        return Holding(holding.domain, node, grant.id, given, given)
    return Holding(holding.domain, holding.node, holding.source, holding.first, kept, record.number)


def chain_bytes(chain: Many[bytes]) -> bytes:
    """Return the value under which a node publishes its chain."""
    return encode([*chain])


def published_chain(value: bytes) -> list[bytes]:
    """Return the items of a chain that a node published; none is checked.

    Raises:
        TooLarge, RecordInvalid: not a list of byte strings.
    """
    items = decode(value)
    if not isinstance(items, list):
        raise RecordInvalid("a chain is a list")
    chain = [item for item in items if isinstance(item, bytes)]
    if len(chain) != len(items):
        raise RecordInvalid("an item of a chain is a byte string")
    return chain


def read_chain(chain: Many[bytes], node: bytes, *, network: bytes) -> Holding:
    """Return the interval of a node that a chain proves; raise as `read_holdings`."""
    return read_holdings(chain, node, network=network)[-1]


def read_holdings(chain: Many[bytes], node: bytes, *, network: bytes) -> list[Holding]:
    """Return what a chain proves of each giver after its grant, and last of the node.

    The chain is a genesis, the grants from its founder down to the node, and, where the node
    gave grants itself, its last one. A node that left its interval may stand higher up as well:
    as the founder, or as who granted to the giver of its present one.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: an item is false, or does not follow.
    """
    if not 1 <= len(chain) <= CHAIN_ITEMS_MAX:
        raise RecordInvalid(f"a chain has 1 to {CHAIN_ITEMS_MAX} items")
    holding = founded(open_signed(chain[0], Genesis, network=network))
    givers: list[Holding] = []
    for place, raw in enumerate(chain[1:], 2):
        if kind_of(raw) != Grant.KIND:
            raise RecordInvalid("a chain goes on with grants")
        grant = open_signed(raw, Grant, network=network)
        after = follow(holding, grant, holding.node)
        if place == len(chain) and grant.record.receiver != node == holding.node:
            holding = after
        else:
            givers.append(after)
            holding = follow(holding, grant, grant.record.receiver)
    if holding.node != node:
        raise RecordInvalid("the chain leads to another node")
    return [*givers, holding]
