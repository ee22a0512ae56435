"""Interval tree clocks: which of two events came first, without a list of participants.

Almeida, Baquero, Fonte, "Interval Tree Clocks", OPODIS 2008. A participant owns an
interval, a part of [0, 1), and counts its events there. An event tree says how many
events are known for each part of [0, 1). Both are kept in normal form only.

- interval: 0 (nothing), 1 (all of it), or (left half, right half)
- event tree: n, or (n, left half, right half), where n is added to both halves

Of the paper's operations, none gives an interval back. Three additions: a domain
separates clocks that do not share one [0, 1), and stamps of two domains are concurrent. Grants
are cut so that many cost little depth (`cut_grant`). A received stamp is believed only for its
author's interval (`Clock.adopt`).

A founder grants itself a whole domain. An owner of an interval gives a part of it to a joiner by
a signed grant, with its own grant inside, so that a grant alone shows where it comes from.
An interval that is lost is lost, and a node that lost its state asks for a new one.
docs/design/space.md, rules C1 to C10. Vectors: `tests/vectors/space_itc.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeAlias

from pydantic import model_validator

from xsc.base.errors import RecordInvalid, SpaceExhausted, TooLarge
from xsc.identity.envelope import Count, Id32, Record, open_signed
from xsc.space import limits

Interval: TypeAlias = "int | tuple[Interval, Interval]"
Event: TypeAlias = "int | tuple[int, Event, Event]"


# Intervals


def _pair(left: Interval, right: Interval) -> Interval:
    """Return the normal form of two halves."""
    return left if isinstance(left, int) and left == right else (left, right)


def minus(one: Interval, other: Interval) -> Interval:
    """Return the part of an interval that is not in the other."""
    if one == 0 or other == 1:
        return 0
    if other == 0:
        return one
    left, right = (1, 1) if isinstance(one, int) else one
    assert not isinstance(other, int)
    return _pair(minus(left, other[0]), minus(right, other[1]))


def covers(one: Interval, other: Interval) -> bool:
    """Say whether the first interval holds all of the second."""
    return minus(other, one) == 0


def depth_of(tree: Interval | Event) -> int:
    """Return the number of levels below the root of an interval or event tree."""
    if isinstance(tree, int):
        return 0
    return 1 + max(depth_of(tree[-2]), depth_of(tree[-1]))


def nodes_of(tree: Interval | Event) -> int:
    """Return the number of nodes of an interval or event tree, leaves included."""
    if isinstance(tree, int):
        return 1
    return 1 + nodes_of(tree[-2]) + nodes_of(tree[-1])


def _pieces(interval: Interval, way: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Return the way from the root to each piece, from right to left."""
    if isinstance(interval, int):
        return [way] if interval else []
    return _pieces(interval[1], (*way, 1)) + _pieces(interval[0], (*way, 0))


def _piece(way: tuple[int, ...]) -> Interval:
    """Return the interval that has one piece, at the end of a way."""
    piece: Interval = 1
    for right in reversed(way):
        piece = (0, piece) if right else (piece, 0)
    return piece


def grant_depth(number: int) -> int:
    """Return how many levels below its giver's first interval the grant of a number is cut.

    With b = bits of the number: b + bits of b, the lengths of a prefix code. The intervals of
    the first 16 383 grants fill 31/32 of the giver's: 14 levels for the thousandth grant.
    """
    bits = number.bit_length()
    return bits + bits.bit_length()


def cut_grant(interval: Interval, first_depth: int, number: int) -> tuple[Interval, Interval]:
    """Return what a giver keeps and what it gives.

    The best fit among the giver's pieces is cut. Halving each time would reach depth 69 after
    69 grants.

    Args:
        interval: what the giver has now.
        first_depth: depth of the interval that the giver was once given; 0 for a founder.
        number: of this grant among all of the giver's, from 1.

    Raises:
        SpaceExhausted: the cut would be deeper than CLOCK_DEPTH_MAX.
    """
    depth = first_depth + grant_depth(number)
    pieces = _pieces(interval)
    fits = [way for way in pieces if len(way) <= depth]
    way = max(fits, key=len) if fits else min(pieces, key=len)
    if len(way) >= depth and (not fits or len(pieces) == 1):
        depth = len(way) + 1  # nothing fits, or nothing would be left to the giver
    if depth > limits.CLOCK_DEPTH_MAX:
        raise SpaceExhausted("no interval of this clock domain is left to give")
    given = _piece(way + (1,) * (depth - len(way)))
    return minus(interval, given), given


# Event trees


def _lift(event: Event, by: int) -> Event:
    if isinstance(event, int):
        return event + by
    return (event[0] + by, event[1], event[2])


def _base(event: Event) -> int:
    """Return the least counter of an event tree."""
    return event if isinstance(event, int) else event[0]


def height(event: Event) -> int:
    """Return the greatest counter of an event tree."""
    if isinstance(event, int):
        return event
    return event[0] + max(height(event[1]), height(event[2]))


def _node(base: int, left: Event, right: Event) -> Event:
    """Return the normal form of a base and two halves in normal form."""
    if isinstance(left, int) and left == right:
        return base + left
    least = min(_base(left), _base(right))
    if not least:
        return (base, left, right)
    return (base + least, _lift(left, -least), _lift(right, -least))


def _open(event: Event) -> tuple[int, Event, Event]:
    return (event, 0, 0) if isinstance(event, int) else event


def leq(one: Event, other: Event) -> bool:
    """Say whether every event that the first tree counts is counted by the second."""
    return _leq(one, other, 0)


def _leq(one: Event, other: Event, ahead: int) -> bool:
    """Compare, where the first tree is `ahead` by the bases above."""
    if isinstance(one, int):
        return one + ahead <= _base(other)
    base, left, right = one
    ahead += base
    if isinstance(other, int):
        return _leq(left, other, ahead) and _leq(right, other, ahead)
    if ahead > other[0]:
        return False
    ahead -= other[0]
    return _leq(left, other[1], ahead) and _leq(right, other[2], ahead)


def join_events(one: Event, other: Event) -> Event:
    """Return the tree that counts what either counts."""
    if isinstance(one, int) and isinstance(other, int):
        return max(one, other)
    if _base(one) > _base(other):
        one, other = other, one
    low, left, right = _open(one)
    high, other_left, other_right = _open(other)
    ahead = high - low
    if ahead:
        other_left, other_right = _lift(other_left, ahead), _lift(other_right, ahead)
    return _node(low, join_events(left, other_left), join_events(right, other_right))


def _fill(interval: Interval, event: Event) -> Event:
    """Return the tree made simpler by lifting the owner's counters to what is known beside."""
    if isinstance(interval, int):
        return height(event) if interval else event
    if isinstance(event, int):
        return event
    base, left, right = event
    if interval[0] == 1:
        right = _fill(interval[1], right)
        left = max(height(left), _base(right))
    elif interval[1] == 1:
        left = _fill(interval[0], left)
        right = max(height(right), _base(left))
    else:
        left, right = _fill(interval[0], left), _fill(interval[1], right)
    return _node(base, left, right)


def _grow(interval: Interval, event: Event) -> tuple[Event, tuple[int, int]]:
    """Return the tree with one more event where that is cheapest, and the cost.

    The cost is the leaves opened, then the depth; of two equal costs the right half is taken.
    """
    if isinstance(interval, int):
        return height(event) + 1, (0, 0)
    base, left, right = _open(event)
    grown: list[tuple[tuple[int, int], Event]] = []
    for half, (mine, counted) in enumerate(zip(interval, (left, right), strict=True)):
        if mine != 0:
            tree, cost = _grow(mine, counted)
            grown.append((cost, _node(base, *((tree, right) if half == 0 else (left, tree)))))
    (opened, depth), best = min(reversed(grown), key=lambda choice: choice[0])
    return best, (opened + isinstance(event, int), depth + 1)


def tick(interval: Interval, event: Event) -> Event:
    """Return the tree with one more event of the interval's owner: fill, else grow."""
    assert interval != 0, "an event needs an interval"
    filled = _fill(interval, event)
    if filled != event and height(own_part(interval, filled)) < limits.FILL_END:
        return filled
    return _grow(interval, event)[0]


def own_part(interval: Interval, event: Event) -> Event:
    """Return what a tree counts in an interval, and 0 outside.

    A piece counts as one leaf, with its least counter: an owner's own tree has a leaf there,
    and more detail could only be about others.
    """
    if isinstance(interval, int):
        return _base(event) if interval else 0
    base, left, right = _open(event)
    return _node(
        0, own_part(interval[0], _lift(left, base)), own_part(interval[1], _lift(right, base))
    )


# Stamps and clocks


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a record says of its place in causality: a domain and an event tree.

    It has no interval: its receiver could count in the author's name with one.
    """

    domain: bytes
    event: Event

    def before(self, other: Stamp) -> bool:
        """Say whether this stamp's events are a part of the other's, and not all of them."""
        return (
            self.domain == other.domain
            and self.event != other.event
            and leq(self.event, other.event)
        )

    def concurrent(self, other: Stamp) -> bool:
        """Say whether neither is before the other, and they are not equal."""
        return self != other and not self.before(other) and not other.before(self)


@dataclass(frozen=True, slots=True)
class Clock:
    """A participant's own clock: its interval and what it knows of all intervals."""

    domain: bytes
    interval: Interval
    event: Event

    def tick(self) -> Clock:
        """Return the clock after one more own event."""
        return replace(self, event=tick(self.interval, self.event))

    def peek(self) -> Stamp:
        """Return the stamp to send."""
        return Stamp(self.domain, self.event)

    def adopt(self, author: Interval, stamp: Stamp) -> Clock:
        """Return the clock after a record of another participant was stored.

        Takes over what the stamp says of its author's interval and nothing of others, for which
        the author's word proves nothing. The own interval never changes. A stamp of another
        domain changes nothing, nor does one that would make the own stamp too large.
        """
        if stamp.domain != self.domain:
            return self
        known = join_events(self.event, own_part(minus(author, self.interval), stamp.event))
        if known == self.event:
            return self
        few = nodes_of(known) <= max(limits.CLOCK_NODES_JOINED_MAX, nodes_of(self.event))
        fits = few and len(event_bytes(known)) <= limits.CLOCK_BYTES_JOINED_MAX
        return replace(self, event=known) if fits else self


# Canonical bytes: bits in the order of a walk from the root, filled up with zeros


def _bits_of_interval(interval: Interval) -> str:
    """Return `00` or `01` for a leaf, `1` and both halves for a node."""
    if isinstance(interval, int):
        return f"0{interval}"
    return "1" + _bits_of_interval(interval[0]) + _bits_of_interval(interval[1])


def _bits_of_event(event: Event) -> str:
    """Return `0` for a leaf or `1` for a node, n + 1 in Elias' gamma code, then both halves."""
    number = f"{_base(event) + 1:b}"
    coded = "0" * (len(number) - 1) + number
    if isinstance(event, int):
        return "0" + coded
    return "1" + coded + _bits_of_event(event[1]) + _bits_of_event(event[2])


def _packed(bits: str) -> bytes:
    size = (len(bits) + 7) // 8
    return int(bits.ljust(size * 8, "0"), 2).to_bytes(size, "big")


def interval_bytes(interval: Interval) -> bytes:
    """Return the canonical bytes of an interval."""
    return _packed(_bits_of_interval(interval))


def event_bytes(event: Event) -> bytes:
    """Return the canonical bytes of an event tree."""
    return _packed(_bits_of_event(event))


class _Reader:
    """Reads one tree from bytes, and refuses all that no tree is written as."""

    def __init__(self, raw: bytes, nodes_max: int) -> None:
        if len(raw) > limits.CLOCK_BYTES_MAX:
            raise TooLarge(
                f"a clock of {len(raw)} bytes is over its bound of {limits.CLOCK_BYTES_MAX}"
            )
        self._bits = f"{int.from_bytes(raw, 'big'):0{8 * len(raw)}b}" if raw else ""
        self._at = 0
        self._nodes = 0
        self._nodes_max = nodes_max

    def _take(self, count: int) -> str:
        taken = self._bits[self._at : self._at + count]
        if len(taken) < count:
            raise RecordInvalid("a clock ends in the middle")
        self._at += count
        return taken

    def _node(self, depth: int) -> bool:
        """Read whether a node has halves."""
        self._nodes += 1
        if depth > limits.CLOCK_DEPTH_MAX or self._nodes > self._nodes_max:
            raise RecordInvalid(
                f"a clock has over {limits.CLOCK_DEPTH_MAX} levels or {self._nodes_max} nodes"
            )
        return self._take(1) == "1"

    def _number(self) -> int:
        end = self._bits.find("1", self._at)
        zeros = end - self._at
        if end < 0 or zeros >= limits.COUNTER_END.bit_length():
            raise RecordInvalid("a counter of a clock is out of range")
        return int(self._take(2 * zeros + 1), 2) - 1

    def interval(self, depth: int = 0) -> Interval:
        if not self._node(depth):
            return int(self._take(1))
        left, right = self.interval(depth + 1), self.interval(depth + 1)
        if isinstance(left, int) and left == right:
            raise RecordInvalid("an interval is not in normal form")
        return (left, right)

    def event(self, depth: int = 0, above: int = 0) -> Event:
        has_halves, base = self._node(depth), self._number()
        above += base
        if above >= limits.COUNTER_END:
            raise RecordInvalid("a counter of a clock is out of range")
        if not has_halves:
            return base
        left, right = self.event(depth + 1, above), self.event(depth + 1, above)
        if min(_base(left), _base(right)) or (isinstance(left, int) and left == right):
            raise RecordInvalid("an event tree is not in normal form")
        return (base, left, right)

    def ends(self) -> None:
        rest = self._bits[self._at :]
        if len(rest) > 7 or "1" in rest:
            raise RecordInvalid("a clock has bits after its end")


def read_interval(raw: bytes) -> Interval:
    """Return the interval of canonical bytes.

    Raises:
        TooLarge, RecordInvalid: over a bound, not in normal form, or not exactly one interval.
    """
    reader = _Reader(raw, limits.INTERVAL_NODES_MAX)
    interval = reader.interval()
    reader.ends()
    return interval


def read_event(raw: bytes) -> Event:
    """Return the event tree of canonical bytes.

    Raises:
        TooLarge, RecordInvalid: over a bound, not in normal form, a counter of COUNTER_END or
            more, or not exactly one tree.
    """
    reader = _Reader(raw, limits.CLOCK_NODES_MAX)
    event = reader.event()
    reader.ends()
    return event


def unheard(clock: Clock, stamp: Stamp, intervals: Mapping[bytes, Interval]) -> list[bytes]:
    """Return the participants of whom a stamp counts events that a clock does not.

    Of a stamp of another domain, which is concurrent with all of the clock's, it is nobody.

    Args:
        clock: of whoever looks.
        stamp: of what is looked at.
        intervals: by participant, its interval in the clock's domain.
    """
    if stamp.domain != clock.domain:
        return []
    return [
        participant
        for participant, interval in intervals.items()
        if not leq(own_part(interval, stamp.event), clock.event)
    ]


# Grants


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
        interval = read_interval(self.interval)
        if interval == 0 or (self.giver is None and interval != 1):
            raise ValueError("a grant gives something, and a founder's everything")
        return self


@dataclass(frozen=True, slots=True)
class Granted:
    """What a grant proves."""

    node: bytes
    domain: bytes
    """Id of the founder's grant."""
    interval: Interval
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
    grant, interval = signed.record, read_interval(signed.record.interval)
    if grant.receiver != node:
        raise RecordInvalid("a grant for another node")
    if grant.giver is None:
        if signed.author != node:
            raise RecordInvalid("a founder grants a domain to itself")
        return Granted(node, signed.id, interval, frozenset(), raw)
    if levels == 1:
        raise RecordInvalid(f"a grant has at most {limits.GRANT_LEVELS_MAX} givers")
    giver = read_grant(grant.giver, signed.author, network=network, levels=levels - 1)
    if not covers(giver.interval, interval):
        raise RecordInvalid("a grant of an interval that its giver did not have")
    return Granted(node, giver.domain, interval, giver.givers | {giver.node}, raw)


def counted(granted: Granted, others: Iterable[Granted]) -> Interval:
    """Return where a node counts: what it was granted, without what others were.

    What its givers have around it does not count against it. Where two overlap otherwise, neither
    is believed there, so that they are concurrent.
    """
    interval = granted.interval
    for other in others:
        is_around = other.node in granted.givers and covers(other.interval, granted.interval)
        if other.node != granted.node and other.domain == granted.domain and not is_around:
            interval = minus(interval, other.interval)
    return interval
