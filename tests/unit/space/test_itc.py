"""Interval tree clocks: the paper's example, the bytes, and each fault that the first had."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.strategies import vectors
from xsc.base.errors import RecordInvalid, SpaceExhausted, TooLarge
from xsc.space import itc
from xsc.space.itc import Clock, Stamp, join_events, leq, unheard
from xsc.space.limits import (
    CLOCK_DEPTH_MAX,
    CLOCK_NODES_JOINED_MAX,
    CLOCK_NODES_MAX,
    COUNTER_END,
    FILL_END,
    INTERVAL_NODES_MAX,
)

GOLDEN = vectors("space_itc")
DOMAIN, OTHER = b"\1" * 32, b"\2" * 32


def tree(shown):
    return tuple(map(tree, shown)) if isinstance(shown, list) else shown


def bits(text):
    size = (len(text) + 7) // 8
    return int(text.ljust(8 * size, "0"), 2).to_bytes(size, "big")


def granted(count, first=1):
    """Clocks of `count` joiners and of their inviter, last, as grants cut them."""
    kept, clocks = first, []
    for number in range(1, count + 1):
        kept, given = itc.cut_grant(kept, itc.depth_of(first), number)
        clocks.append(Clock(DOMAIN, given, 0))
    return [*clocks, Clock(DOMAIN, kept, 0)]


def heard(clock, other):
    """The clock after a record of another, whose interval is known."""
    return clock.adopt(other.interval, other.peek())


# The paper


def demonstration():
    """The clocks after each step, with intervals as the paper cuts and adds them."""
    steps = iter(GOLDEN["demonstration"])

    def clocks(**events):
        shown = next(steps)["stamps"]
        return {
            name: Clock(DOMAIN, tree(shown[name]["interval"]), event)
            for name, event in events.items()
        }

    now = clocks(a=0)
    yield now
    now = clocks(a=0, b=0)
    yield now
    now = clocks(a=now["a"].tick().event, b=now["b"].tick().event)
    yield now
    now = clocks(a=now["a"].event, b=now["b"].tick().event, c=now["a"].event)
    yield now
    now = clocks(a=now["a"].tick().event, b=join_events(now["b"].event, now["c"].event))
    yield now
    now = clocks(a=now["a"].event, b=now["b"].event, c=now["b"].event)
    yield now
    now = clocks(a=join_events(now["a"].event, now["b"].event), c=now["c"].event)
    yield now
    yield clocks(a=now["a"].tick().event, c=now["c"].event)


@pytest.mark.parametrize(
    ("case", "clocks"),
    list(zip(GOLDEN["demonstration"], demonstration(), strict=True)),
    ids=[case["after"] for case in GOLDEN["demonstration"]],
)
def test_the_demonstration_of_the_paper(case, clocks):
    assert clocks.keys() == case["stamps"].keys()
    for name, shown in case["stamps"].items():
        clock = clocks[name]
        assert (clock.interval, clock.event) == (tree(shown["interval"]), tree(shown["event"]))
        assert itc.interval_bytes(clock.interval).hex() == shown["interval_bytes"]
        assert itc.event_bytes(clock.event).hex() == shown["event_bytes"]


def test_the_end_of_the_demonstration_is_ordered():
    *_, end = demonstration()
    assert end["c"].peek().before(end["a"].peek())
    assert not end["a"].peek().before(end["c"].peek())


# Bytes


@pytest.mark.parametrize("case", GOLDEN["events"], ids=lambda case: case["bytes"])
def test_golden_bytes_of_event_trees(case):
    event, raw = tree(case["event"]), bytes.fromhex(case["bytes"])
    assert itc.event_bytes(event) == raw
    assert itc.read_event(raw) == event


@pytest.mark.parametrize("case", GOLDEN["intervals"], ids=lambda case: case["bytes"])
def test_golden_bytes_of_intervals(case):
    interval, raw = tree(case["interval"]), bytes.fromhex(case["bytes"])
    assert itc.interval_bytes(interval) == raw
    assert itc.read_interval(raw) == interval


def deep(levels):
    event = 0
    for _ in range(levels):
        event = (0, event, 1)
    return event


def full(levels):
    """A tree with 2^levels leaves in normal form."""
    if not levels:
        return 0
    half = full(levels - 1)
    return (0, half, (1, *half[1:]) if isinstance(half, tuple) else 1)


def comb(levels):
    """An interval with 2^levels pieces."""
    return (comb(levels - 1), comb(levels - 1)) if levels else (1, 0)


@pytest.mark.parametrize(
    ("what", "raw"),
    [
        ("nothing", b""),
        ("cut", itc.event_bytes((1, 0, 5))[:-1]),
        ("equal leaves", bits("11" + "0010" + "0010")),
        ("both halves above 0", bits("11" + "0010" + "0011")),
        ("half a node above 0", bits("11" + "0010" + "1010" + "01" + "0010")),
        ("a counter of 2^53", bits("0" + "0" * 53 + f"{COUNTER_END + 1:b}")),
        ("a counter without an end", bytes(40)),
        ("a sum of 2^53", itc.event_bytes((COUNTER_END - 1, 0, 1))),
        ("too deep", itc.event_bytes(deep(CLOCK_DEPTH_MAX + 1))),
        ("too many nodes", itc.event_bytes(full(12))),
        ("a byte after it", itc.event_bytes(7) + b"\0"),
        ("a bit after it", bits("01" + "000001")),
    ],
)
def test_what_is_no_event_tree_is_refused(what, raw):
    with pytest.raises(RecordInvalid):
        itc.read_event(raw)


@pytest.mark.parametrize(
    ("what", "raw"),
    [
        ("nothing", b""),
        ("two whole halves", bits("1" + "01" + "01")),
        ("two empty halves", bits("1" + "00" + "00")),
        ("cut", bits("1" + "1" + "01" + "00")[:0]),
        ("a byte after it", bits("01") + b"\0"),
        ("too deep", itc.interval_bytes(itc._piece((1,) * (CLOCK_DEPTH_MAX + 1)))),
        ("too many pieces", itc.interval_bytes(comb(7))),
    ],
)
def test_what_is_no_interval_is_refused(what, raw):
    with pytest.raises(RecordInvalid):
        itc.read_interval(raw)


def test_the_largest_trees_are_read():
    for event in (deep(CLOCK_DEPTH_MAX), full(11), COUNTER_END - 1):
        assert itc.read_event(itc.event_bytes(event)) == event
    assert itc.nodes_of(full(11)) == CLOCK_NODES_MAX - 1


def test_an_interval_has_so_many_nodes_at_most():
    largest = comb(6)
    assert itc.nodes_of(largest) == INTERVAL_NODES_MAX - 1
    assert itc.read_interval(itc.interval_bytes(largest)) == largest

    def cut(interval):
        return (cut(interval[0]), interval[1]) if isinstance(interval, tuple) else (1, 0)

    more = cut(largest)
    assert itc.nodes_of(more) == INTERVAL_NODES_MAX + 1
    with pytest.raises(RecordInvalid, match=f"or {INTERVAL_NODES_MAX} nodes"):
        itc.read_interval(itc.interval_bytes(more))


def test_a_long_clock_is_refused_before_it_is_read():
    with pytest.raises(TooLarge):
        itc.read_event(bytes(2**20))


# Intervals


def test_a_thousand_grants_of_one_inviter_stay_flat_and_apart():
    clocks = granted(1_000)
    assert max(itc.depth_of(clock.interval) for clock in clocks) <= 14
    left = 1
    for clock in clocks:
        assert itc.covers(left, clock.interval)
        left = itc.minus(left, clock.interval)
    assert left == 0


def test_a_chain_of_invitations_gives_out_when_it_is_too_deep():
    interval = 1
    for _ in range(CLOCK_DEPTH_MAX // 2):
        _, interval = itc.cut_grant(interval, itc.depth_of(interval), 1)
    with pytest.raises(SpaceExhausted):
        itc.cut_grant(interval, itc.depth_of(interval), 1)


def test_an_inviter_always_keeps_something():
    interval = itc._piece((0,) * 58)
    for number in range(1, 8):
        interval, given = itc.cut_grant(interval, 58, number)
        assert interval != 0
        assert given != 0
    with pytest.raises(SpaceExhausted):
        itc.cut_grant(interval, 58, 8)


# Faults that were found in an earlier implementation of these clocks


def test_fault_1_who_joined_has_an_interval_of_its_own():
    """There, every participant began with all of [0, 1), and two first events were equal."""
    one, other, _ = granted(2)
    assert one.tick().peek().concurrent(other.tick().peek())
    founder, stranger = Clock(DOMAIN, 1, 0), Clock(OTHER, 1, 0)
    assert founder.tick().peek().concurrent(stranger.tick().peek())


def test_fault_2_every_event_counts_also_after_a_fork():
    """There, the second event of a forked stamp changed nothing."""
    clock, other = granted(1)
    stamps = [clock.peek()]
    for _ in range(10):
        clock = clock.tick()
        stamps.append(clock.peek())
    for number, earlier in enumerate(stamps):
        assert all(earlier.before(later) for later in stamps[number + 1 :])
    assert clock.peek().concurrent(other.tick().peek())


def test_fault_3_no_part_of_an_interval_is_given_twice():
    """There, 1 and (0, 1) made 1."""
    kept, given = itc.cut_grant(1, 0, 1)
    assert itc.minus(kept, given) == kept
    assert itc.minus(1, given) == kept


def test_fault_4_what_is_received_brings_no_interval():
    """There, whole stamps were joined, and both sides had the same interval from then on."""
    one, other, _ = granted(2)
    one, other = one.tick(), other.tick()
    one, other = heard(one, other), heard(other, one)
    assert not hasattr(one.peek(), "interval")
    assert one.tick().peek().concurrent(other.tick().peek())
    assert itc.minus(one.interval, other.interval) == one.interval


def test_fault_6_a_clock_says_nothing_of_what_is_held():
    """There, all with a stamp up to one's own were called a consistent cut.

    A clock that knows of a later record of an author is also above the earlier one that it never
    saw. So no rule takes a clock for a list of what is held: heads do that.
    """
    author, reader, _ = granted(2)
    first = author.tick()
    second = first.tick()
    reader = heard(reader, second)
    assert first.peek().before(reader.tick().peek())


@pytest.mark.parametrize("holders", [16, 64, 256])
def test_fault_7_a_stamp_takes_a_byte_for_each_active_holder(holders):
    """There, O(log n) was claimed; it is linear, with a small factor, and the bounds know it."""
    rng = random.Random(holders)
    clocks = granted(holders - 1)
    for _ in range(20 * holders):
        one, other = rng.randrange(holders), rng.randrange(holders)
        clocks[one] = clocks[one].tick()
        if one != other:
            clocks[other] = Clock(
                DOMAIN,
                clocks[other].interval,
                join_events(clocks[other].event, clocks[one].event),
            )
    sizes = sorted(len(itc.event_bytes(clock.event)) for clock in clocks)
    assert holders // 4 < sizes[holders // 2] <= 1.1 * holders + 8
    assert max(itc.nodes_of(clock.event) for clock in clocks) < 3 * holders


def test_fault_8_joins_and_leaves_without_end_never_make_a_stamp_too_large():
    """There, intervals that are never given back made stamps grow until nothing took them."""
    inviter = Clock(DOMAIN, (0, (1, 0)), (0, full(10), (0, 0, full(8))))
    sizes = [itc.nodes_of(inviter.event)]
    for number in range(1, 400):
        kept, given = itc.cut_grant(inviter.interval, 2, number)
        guest = Clock(DOMAIN, given, 1 + number % 3)
        inviter = heard(Clock(DOMAIN, kept, inviter.event), guest)  # and never again
        sizes.append(itc.nodes_of(inviter.event))
    assert CLOCK_NODES_JOINED_MAX - 8 < max(sizes) <= CLOCK_NODES_JOINED_MAX
    own = inviter.tick()
    assert inviter.peek().before(own.peek())
    assert itc.read_event(itc.event_bytes(own.event)) == own.event


def test_fault_9_a_claim_about_others_makes_nothing_of_theirs_stale():
    """There, 10^18 events in the intervals of others made all that these did later old."""
    liar, victim, reader = granted(2)
    lie = Stamp(DOMAIN, 10**15)
    reader = reader.adopt(liar.interval, lie)
    assert leq(itc.own_part(liar.interval, lie.event), reader.event)
    assert itc.own_part(victim.interval, reader.event) == 0
    assert not victim.tick().peek().before(reader.peek())
    victim = victim.adopt(liar.interval, lie)
    for _ in range(3):
        before, victim = victim, victim.tick()
        assert before.peek().before(victim.peek())


def test_fault_9_a_neighbour_cannot_use_up_the_counters_of_another():
    """`fill` lifts an own counter to what is known beside it, so a neighbour's 2^53 - 1 too."""
    victim, liar = Clock(DOMAIN, (1, 0), 0), Clock(DOMAIN, (0, 1), 0)
    victim = victim.adopt(liar.interval, Stamp(DOMAIN, (0, 0, COUNTER_END - 1)))
    for _ in range(3):
        victim = victim.tick()
    assert itc.height(itc.own_part(victim.interval, victim.event)) < FILL_END
    assert itc.read_event(itc.event_bytes(victim.event)) == victim.event


def test_fault_9_a_fragmented_stamp_adds_no_more_than_its_authors_pieces():
    author, reader, _ = granted(2)
    rubble = itc.join_events(0, Stamp(DOMAIN, full(11)).event)
    known = reader.adopt(author.interval, Stamp(DOMAIN, rubble))
    assert itc.nodes_of(known.event) <= 2 * itc.nodes_of(author.interval)


def test_stamps_of_many_large_counters_leave_room_for_own_events():
    """Two readable stamps made the own one larger than anybody reads, and that for good."""

    def row(levels, piece, gap):
        return (*gap, piece, row(levels - 1, piece, gap)) if levels else 0

    def spread(levels, leaf, gap):
        half = spread(levels - 1, leaf, gap) if levels else leaf
        return (*gap, half, half) if levels else leaf

    mine = spread(4, row(40, 1, ()), ())
    many = spread(4, row(40, 2**52, (0,)), (0,))
    victim = Clock(DOMAIN, (0, (comb(5), 0)), 0)
    for half in ((0, many, 0), (0, 0, many)):
        stamp = Stamp(DOMAIN, (0, half, 0))
        assert itc.read_event(itc.event_bytes(stamp.event)) == stamp.event
        victim = victim.adopt(((mine, mine), 0), stamp)
    assert victim.event != 0
    for _ in range(300):
        victim = victim.tick()
    assert itc.read_event(itc.event_bytes(victim.event)) == victim.event


def test_the_intervals_of_many_grants_are_read():
    for first in (1, itc._piece((1, 0) * 22)):
        kept, depth = first, itc.depth_of(first)
        for number in range(1, 1_000):
            kept, given = itc.cut_grant(kept, depth, number)
            for interval in (kept, given):
                assert itc.read_interval(itc.interval_bytes(interval)) == interval


def test_an_own_interval_is_never_counted_up_by_another():
    one, other, _ = granted(2)
    assert one.adopt(1, Stamp(DOMAIN, 5)).tick().event != 6
    assert itc.own_part(one.interval, one.adopt(1, Stamp(DOMAIN, 5)).event) == 0
    assert one.adopt(other.interval, Stamp(OTHER, 5)) == one


def test_stamps_of_two_domains_are_concurrent():
    here, there = Stamp(DOMAIN, 1), Stamp(OTHER, 2)
    assert here.concurrent(there)
    assert there.concurrent(here)
    assert not here.before(there)
    assert not here.concurrent(here)


def test_a_stamp_is_compared_owner_by_owner():
    one, other, looker = (replace(clock, domain=b"d") for clock in granted(2))
    intervals = {b"one": one.interval, b"other": other.interval}
    other = other.tick()
    one = replace(one, event=join_events(one.event, other.event)).tick()
    stamp = Stamp(b"d", one.event)
    assert unheard(looker, stamp, intervals) == [b"one", b"other"]
    looker = looker.adopt(one.interval, stamp)
    assert unheard(looker, stamp, intervals) == [b"other"], "its author had heard of it"
    assert unheard(looker, stamp, {b"one": one.interval}) == []
    assert unheard(looker, Stamp(b"e", one.event), intervals) == [], "concurrent"
    looker = looker.adopt(other.interval, Stamp(b"d", other.event))
    assert unheard(looker, stamp, intervals) == []
